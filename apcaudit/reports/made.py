"""What the results of a report were made with: programs, options, rules, symbol files, and what was not done."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from apcaudit.bulk.records import ImageRow
from apcaudit.reports.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Made:
    """What images have in common that were scanned in the same way; the last two are lines of text."""

    images: int
    versions: str
    options: str
    rules: tuple[str, ...]
    not_done: tuple[str, ...]


def ways(dataset: Dataset) -> tuple[Made, ...]:
    """Return the ways in which images were scanned, the commonest first: one, unless scans differed."""
    groups: dict[tuple[str, ...], list[ImageRow]] = defaultdict(list)
    for each in dataset.images:
        groups[each.versions, each.options, each.rules, each.not_done].append(each)
    found = [
        Made(len(images), versions, options, tuple(rules.splitlines()), tuple(lacking.splitlines()))
        for (versions, options, rules, lacking), images in groups.items()
    ]
    return tuple(sorted(found, key=lambda made: (-made.images, made.versions, made.options)))


def symbol_files(dataset: Dataset) -> tuple[tuple[str, int], ...]:
    """Return the symbol files with the number of images that were read with each, the commonest first."""
    counted = Counter(each.symbol_file for each in dataset.images if each.symbol_file)
    return tuple(sorted(counted.items(), key=lambda item: (-item[1], item[0])))
