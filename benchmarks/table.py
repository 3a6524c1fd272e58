"""The benchmark's output: Markdown tables for people, a dictionary for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.processes import Series
from benchmarks.verdict import Verdict


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Make a Markdown table, padded so that it reads as it stands; `right` are the columns of numbers."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def padded(line: Sequence[str]) -> str:
        cells = [
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = "|".join("-" * (width + 1) + (":" if column in right else "-") for column, width in enumerate(widths))
    return "\n".join([padded(header), f"|{rule}|", *map(padded, lines[1:])])


def of_runs(series: Iterable[Series]) -> str:
    """Make the table of whole processes."""
    rows = [
        (
            each.label,
            each.image,
            str(len(each.runs)),
            f"{each.seconds:.2f}",
            f"{min(run.seconds for run in each.runs):.2f} to {max(run.seconds for run in each.runs):.2f}",
            f"{each.processor_seconds:.2f}",
            f"{each.peak / 2**20:.0f}",
        )
        for each in series
    ]
    header = ("process", "image", "rounds", "median s", "range s", "CPU s", "peak MiB")
    return markdown(header, rows, right=frozenset({2, 3, 4, 5, 6}))


def of_targets(verdicts: Iterable[Verdict]) -> str:
    """Make the table of targets."""
    rows = [(each.what, each.target, each.measured, each.status) for each in verdicts]
    return markdown(("what", "target", "measured", ""), rows)


def document(
    machine: Mapping[str, str], settings: Mapping[str, object], series: Iterable[Series], verdicts: Iterable[Verdict]
) -> dict[str, Any]:
    """Make the JSON document: times in seconds, memory in bytes."""
    return {
        "machine": dict(machine),
        "settings": dict(settings),
        "processes": [
            {
                "process": each.label,
                "image": each.image,
                "median_seconds": each.seconds,
                "median_processor_seconds": each.processor_seconds,
                "median_peak_bytes": each.peak,
                "runs": [asdict(run) for run in each.runs],
            }
            for each in series
        ],
        "targets": [{**asdict(each), "status": each.status} for each in verdicts],
    }
