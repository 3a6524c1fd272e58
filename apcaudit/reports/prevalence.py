"""How many images have the same finding, routine, driver or rule: the rarest first, a bar each."""

from __future__ import annotations

from dataclasses import dataclass

from apcaudit.bulk.stack import Stacked
from apcaudit.reports.dataset import Dataset, rank
from apcaudit.reports.visible import name_of

_MOST = 300
"""So many of a kind are in the report; those left out are the commonest."""

_NAMED = 3
"""So many of a thing's images are named; the others are counted."""

#: What `apcaudit stack` counts, as the report calls it: the heading, one of them, and what a reader makes of it.
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
    """A thing, where its code is, the worst severity of a finding, how many images have it, and of 1,000 how many."""

    name: str
    place: str
    severity: str | None
    images: int
    share: float
    named: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """The bars of one kind: `key` names it in the page, `left_out` bars are not in it."""

    key: str
    title: str
    thing: str
    note: str
    bars: tuple[Bar, ...]
    left_out: int


def charts(dataset: Dataset) -> tuple[Chart, ...]:
    """Make the charts of a dataset; of a kind that no image has there is none."""
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
        tuple(name_of(source) for source in each.sources[:_NAMED]),
    )
