"""Which YARA rules are asked for, and the error of rules that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass


class RuleError(Exception):
    """Rules that cannot be used: the message has file, line and reason; `option` is the option they came by."""

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """Where rules come from: locations as vol gives them (URLs), a string, the rules that ship.

    `insensitive` and `wide` are about the string, as in vol's yarascan. `every_driver` scans all drivers, not only
    those of suspect threads.
    """

    file: str | None = None
    string: str | None = None
    compiled_file: str | None = None
    insensitive: bool = False
    wide: bool = False
    defaults: bool = True
    every_driver: bool = False

    @property
    def own(self) -> bool:
        """Whether the user gave rules."""
        return any(given is not None for given in (self.file, self.string, self.compiled_file))
