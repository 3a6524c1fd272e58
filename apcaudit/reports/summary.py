"""The summary at the top of the report: images, findings by severity, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from apcaudit.bulk import times
from apcaudit.reports.dataset import WORST_FIRST, Dataset


@dataclass(frozen=True, slots=True)
class Level:
    """A severity: its findings, the images with them, and start and length of its part of the bar, in 1/1,000."""

    severity: str
    findings: int
    images: int
    start: float
    length: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of the summary; `stages` counts failures by stage, times are texts in UTC."""

    images: int
    scanned: int
    failed: int
    with_findings: int
    findings: int
    suspects: int
    levels: tuple[Level, ...]
    stages: tuple[tuple[str, int], ...]
    begun: str
    ended: str


def summarize(dataset: Dataset) -> Summary:
    """Count images, findings and failures."""
    scanned = dataset.scanned
    stages = Counter(each.stage or "unknown" for each in dataset.failed)
    scans = [each.scanned_at for each in dataset.images]
    return Summary(
        images=len(dataset.images),
        scanned=len(scanned),
        failed=len(dataset.failed),
        with_findings=len({each.image for each in dataset.findings}),
        findings=len(dataset.findings),
        suspects=len(dataset.threads),
        levels=tuple(_levels(dataset)),
        stages=tuple(sorted(stages.items(), key=lambda item: (-item[1], item[0]))),
        begun=moment(min(scans)),
        ended=moment(max(scans)),
    )


def _levels(dataset: Dataset) -> Iterable[Level]:
    counts = Counter(each.severity for each in dataset.findings)
    total = sum(counts.values()) or 1
    start = 0.0
    for severity in WORST_FIRST:
        images = {each.image for each in dataset.findings if each.severity == severity}
        length = 1000 * counts[severity] / total
        yield Level(severity, counts[severity], len(images), round(start, 1), round(length, 1))
        start += length


def moment(seconds: float | None) -> str:
    """Format seconds since 1970 as date and time in UTC; empty for None, a message for times outside of SPAN."""
    if seconds is None:
        return ""
    time = times.moment(seconds)
    return f"not from {times.SPAN}" if time is None else time.strftime("%Y-%m-%d %H:%M:%S")
