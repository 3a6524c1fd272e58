"""Bar charts of how many images have each finding, routine, driver or rule, the rarest first."""

from __future__ import annotations

from dataclasses import dataclass

from apcaudit.bulk.stack import Stacked
from apcaudit.reports.dataset import Dataset, rank

_MOST = 300
"""How many bars of a kind the report has; the commonest are left out."""

_NAMED = 3
"""How many images of a bar are named; the others are counted."""

#: The kinds of `apcaudit stack` in the report: heading, heading of the column, and a note for the reader.
_KINDS = {
    "finding": ("Findings", "Finding", "What one machine has alone comes first."),
    "kernel-routine": (
        "KernelRoutines of queued APCs",
        "KernelRoutine",
        "Of all queued APCs, also those without a finding.",
    ),
    "normal-routine": ("NormalRoutines of queued kernel APCs", "NormalRoutine", "Also of APCs without a finding."),
    "start-routine": ("Start routines", "Start routine", "Of kernel threads with findings or queued APCs."),
    "yara": ("YARA rules", "Rule", "Rules that match the driver of a thread."),
    "driver": ("Drivers", "Driver", "All kernel modules, with or without a finding."),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar: name, place of code (module+RVA), a finding's highest severity, number of images, and images per 1,000."""

    name: str
    place: str
    severity: str | None
    images: int
    share: float
    named: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """The bars of one kind: `key` is its name in the page, `left_out` the number of bars left out."""

    key: str
    title: str
    thing: str
    note: str
    bars: tuple[Bar, ...]
    left_out: int


def charts(dataset: Dataset) -> tuple[Chart, ...]:
    """Make the charts of a dataset, none for a kind that no image has."""
    worst: dict[str, str] = {}
    for each in dataset.findings:
        worst[each.code] = min(worst.get(each.code, each.severity), each.severity, key=rank)
    made = []
    for kind, (title, thing, note) in _KINDS.items():
        found = [each for each in dataset.stacked if each.kind == kind]
        if found:
            severities = worst if kind == "finding" else {}
            bars = [_bar(each, severities.get(each.name)) for each in found]
            bars.sort(key=lambda bar: (bar.images, rank(bar.severity or "info"), bar.name, bar.place))
            made.append(Chart(kind, title, thing, note, tuple(bars[:_MOST]), max(0, len(bars) - _MOST)))
    return tuple(made)


def _bar(each: Stacked, severity: str | None) -> Bar:
    count = len(each.images)
    return Bar(
        each.name,
        "" if each.module is None or each.rva is None else f"{each.module}+{each.rva:#x}",
        severity,
        count,
        round(1000 * count / max(1, each.of), 1),
        each.image_names[:_NAMED],
    )
