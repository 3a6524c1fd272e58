"""Findings over images: a row an image, or a row for all images with the same findings where there are many."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from apcaudit.reports.dataset import Dataset, rank
from apcaudit.reports.visible import name_of

_APART = 30
"""So many images with findings have a row each; more share one where their findings are the same."""


@dataclass(frozen=True, slots=True)
class Column:
    """A code of a finding: its worst severity, and how many images have it."""

    code: str
    severity: str
    images: int


@dataclass(frozen=True, slots=True)
class Cell:
    """What a row has of a code: the severity, and how many an image has: fewest and most."""

    code: str
    severity: str
    fewest: int
    most: int


@dataclass(frozen=True, slots=True)
class Row:
    """Images with the same findings; a cell for each column, None where they have none of it."""

    images: tuple[str, ...]
    severity: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """The columns, the worst first, and the rows, the worst first and then the rarest; `shared` when images share."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    clean: int
    shared: bool


def lay_out(dataset: Dataset) -> Matrix:
    """Make the matrix of a dataset."""
    names = {each.image: name_of(each.source) for each in dataset.images}
    worst: dict[str, dict[str, str]] = defaultdict(dict)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for each in dataset.findings:
        severity = worst[each.image].get(each.code, each.severity)
        worst[each.image][each.code] = min(severity, each.severity, key=rank)
        counts[each.image][each.code] += 1
    columns = _columns(worst)
    shared = len(worst) > _APART
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for image, codes in worst.items():
        key: tuple[object, ...] = tuple(sorted(codes.items())) if shared else (image,)
        groups[key].append(image)
    rows = []
    for images in groups.values():
        codes = worst[images[0]]
        cells = tuple(
            Cell(column.code, codes[column.code], min(numbers), max(numbers))
            if (numbers := [counts[image][column.code] for image in images if column.code in codes])
            else None
            for column in columns
        )
        rows.append(Row(tuple(sorted(names[each] for each in images)), min(codes.values(), key=rank), cells))
    rows.sort(key=lambda row: (rank(row.severity), len(row.images), row.images))
    return Matrix(columns, tuple(rows), len(dataset.scanned) - len(worst), shared)


def _columns(worst: dict[str, dict[str, str]]) -> tuple[Column, ...]:
    found: dict[str, list[str]] = defaultdict(list)
    for codes in worst.values():
        for code, severity in codes.items():
            found[code].append(severity)
    columns = [Column(code, min(severities, key=rank), len(severities)) for code, severities in found.items()]
    return tuple(sorted(columns, key=lambda column: (rank(column.severity), column.images, column.code)))
