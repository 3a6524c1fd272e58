"""The user's options for YARA rules, and the errors of rules that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..formats.text import LONGEST, printable

NAMED_BOUND = 200
"""How many broken rule files a message names; the others are counted."""


class RuleError(Exception):
    """Rules that cannot be used: the message has file, line and reason; `option` is the option that gave them."""

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule file or other source of rules that cannot be used: its name, why, in which line, given by which option."""

    name: str
    reason: str
    line: int | None = None
    option: str | None = None

    def __str__(self) -> str:
        """Describe it in one line without control characters."""
        # The end of a long path identifies it best.
        name = printable(self.name if len(self.name) <= LONGEST else f"...{self.name[3 - LONGEST :]}")
        return f"{name if self.line is None else f'{name}:{self.line}'}: {printable(self.reason)}"


class BrokenRulesError(RuleError):
    """All sources of rules that cannot be used; `at` has their indexes among the sources that were given."""

    def __init__(self, broken: Sequence[Broken], *, of: int = 0, at: Sequence[int] = ()) -> None:
        options = {each.option for each in broken}
        message = (
            str(broken[0])
            if len(broken) == 1
            else f"{count_files(len(broken), of)} cannot be used: {name_broken(broken)}"
        )
        super().__init__(message, options.pop() if len(options) == 1 else None)
        self.broken = tuple(broken)
        self.at = frozenset(at)


def count_files(number: int, of: int) -> str:
    """Say how many rule files there are, and out of how many if that is known."""
    return f"{number} of {of} rule files" if of >= number else f"{number} rule files"


def name_broken(broken: Sequence[Broken]) -> str:
    """Name the first NAMED_BOUND broken rule files, and count the others."""
    more = len(broken) - NAMED_BOUND
    return "; ".join(map(str, broken[:NAMED_BOUND])) + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """Where rules come from: locations as vol gives them (URLs), a string, the rules that ship.

    `insensitive` and `wide` apply to the string, as in vol's yarascan. `every_driver` scans all drivers, not only those
    of suspect threads. `skip_broken` goes on without those rule files at `file` that cannot be used.
    """

    file: str | None = None
    string: str | None = None
    compiled_file: str | None = None
    insensitive: bool = False
    wide: bool = False
    defaults: bool = True
    every_driver: bool = False
    skip_broken: bool = False

    @property
    def own(self) -> bool:
        """Whether the user gave rules."""
        return any(given is not None for given in (self.file, self.string, self.compiled_file))
