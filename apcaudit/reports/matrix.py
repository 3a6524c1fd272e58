"""The matrix of findings and images: one row per image, or with many images one per set of findings."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from apcaudit.reports.dataset import Dataset, rank

_APART = 30
"""Up to this number, images with findings have a row each; with more, images with the same findings share one."""


@dataclass(frozen=True, slots=True)
class Column:
    """The code of a finding: its highest severity, and how many images have it."""

    code: str
    severity: str
    images: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A row's findings of one code: the severity, and the fewest and most findings in one of its images."""

    code: str
    severity: str
    fewest: int
    most: int


@dataclass(frozen=True, slots=True)
class Row:
    """An image, or images with the same findings; one cell per column, None where they lack the finding."""

    images: tuple[str, ...]
    severity: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """The columns and rows, the most severe first, then the rarest.

    `clean` is the number of images without findings, `shared` whether images with the same findings share a row.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    clean: int
    shared: bool


def lay_out(dataset: Dataset) -> Matrix:
    """Make the matrix of a dataset."""
    names = dataset.names
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
