"""Results that are left out because a file of theirs is not what a scan wrote: the value, and how a user is told."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from apcaudit.text import one_line

EXIT_LEFT_OUT = 2
"""The exit code of a command that did its work without some results: that of a scan of which some images failed."""

AGAIN = "scan its image again, or remove its folder"
UPGRADE = "upgrade apcaudit, or use another folder of results"


@dataclass(frozen=True, slots=True)
class Damage:
    """A file for which an image's results are left out: what is wrong with it, and what to do.

    `schema` is the version of another schema that it was written in, None where that is not what is wrong. `newer` ones
    are a later release's: their results are not replaced either.
    """

    path: Path
    wrong: str
    remedy: str = AGAIN
    schema: int | None = None
    newer: bool = False

    @property
    def image(self) -> str:
        """The image, as its folder is named."""
        return self.path.parent.name

    def __str__(self) -> str:
        return f"{self.path}: {self.wrong}: {self.remedy}"


def lines(damages: Iterable[Damage]) -> list[str]:
    """Say each in a line, safe to print; results of another schema, of which there are many or none, in one."""
    alike: dict[object, list[Damage]] = defaultdict(list)
    for each in damages:
        alike[each.path if each.schema is None else each.schema].append(each)
    told = []
    for first, *others in alike.values():
        images = len({each.image for each in others} - {first.image})
        told.append(one_line(f"{first}; so it is with {images} more" if images else str(first)))
    return told


def tell(damages: Iterable[Damage]) -> int:
    """Print what is left out on stderr; give the exit code of a command that goes on without it, 0 without any."""
    told = lines(damages)
    for each in told:
        print(each, file=sys.stderr)
    return EXIT_LEFT_OUT if told else 0
