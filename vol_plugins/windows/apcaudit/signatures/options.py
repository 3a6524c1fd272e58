"""Which YARA rules are asked for, and the errors of rules that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..text import LONGEST, printable

NAMED_BOUND = 200
"""How many broken rule files a message names; how many more there are it says."""


class RuleError(Exception):
    """Rules that cannot be used: the message has file, line and reason; `option` is the option they came by."""

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule file, or another source of rules, that cannot be used: its name, why, where in it, and by which option."""

    name: str
    reason: str
    line: int | None = None
    option: str | None = None

    def __str__(self) -> str:
        """Say it in one line, without what a terminal could act on."""
        # Of a long path the end tells most.
        name = printable(self.name if len(self.name) <= LONGEST else f"...{self.name[3 - LONGEST :]}")
        return f"{name if self.line is None else f'{name}:{self.line}'}: {printable(self.reason)}"


class BrokenRulesError(RuleError):
    """Every source of rules that cannot be used, at once; `at` says which of those that were given they are."""

    def __init__(self, broken: Sequence[Broken], *, of: int = 0, at: Sequence[int] = ()) -> None:
        options = {each.option for each in broken}
        message = str(broken[0]) if len(broken) == 1 else f"{counted(len(broken), of)} cannot be used: {named(broken)}"
        super().__init__(message, options.pop() if len(options) == 1 else None)
        self.broken = tuple(broken)
        self.at = frozenset(at)


def counted(number: int, of: int) -> str:
    """Say how many rule files there are, and of how many."""
    return f"{number} of {of} rule files" if of >= number else f"{number} rule files"


def named(broken: Sequence[Broken]) -> str:
    """Name broken rule files, as many as are named."""
    more = len(broken) - NAMED_BOUND
    return "; ".join(map(str, broken[:NAMED_BOUND])) + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """Where rules come from: locations as vol gives them (URLs), a string, the rules that ship.

    `insensitive` and `wide` are about the string, as in vol's yarascan. `every_driver` scans all drivers, not only
    those of suspect threads. `skip_broken` passes by what cannot be used of the rule files at `file`.
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
