"""Damaged results, which are left out: the value that describes one, and how a user is told."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from apcaudit.text import one_line

EXIT_LEFT_OUT = 2
"""The exit code of a command that left out some results; the same as of a scan in which some images failed."""

AGAIN = "scan its image again, or remove its folder"
UPGRADE = "upgrade apcaudit, or use another folder of results"


@dataclass(frozen=True, slots=True)
class Damage:
    """A file because of which an image's results are left out: what is wrong with it, and what to do.

    `schema` is the file's schema version where that is what is wrong, else None. `newer` is whether a later release
    wrote it; then its results are not replaced either.
    """

    path: Path
    wrong: str
    remedy: str = AGAIN
    schema: int | None = None
    newer: bool = False

    @property
    def image(self) -> str:
        """The image, by the name of its folder."""
        return self.path.parent.name

    def __str__(self) -> str:
        return f"{self.path}: {self.wrong}: {self.remedy}"


def lines(damages: Iterable[Damage]) -> list[str]:
    """Return one printable line per damage; all results of one other schema share a line, since they are often many."""
    alike: dict[object, list[Damage]] = defaultdict(list)
    for each in damages:
        alike[each.path if each.schema is None else each.schema].append(each)
    told = []
    for first, *others in alike.values():
        images = len({each.image for each in others} - {first.image})
        told.append(one_line(f"{first}; so it is with {images} more" if images else str(first)))
    return told


def report(damages: Iterable[Damage]) -> int:
    """Print damages on stderr; return the exit code of a command that goes on without these results, 0 without any."""
    told = lines(damages)
    for each in told:
        print(each, file=sys.stderr)
    return EXIT_LEFT_OUT if told else 0
