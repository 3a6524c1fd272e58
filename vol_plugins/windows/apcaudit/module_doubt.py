"""Why an entry of the module list is not believed about an address that it claims."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModuleDoubt:
    """What contradicts the entry.

    `overlapping` is whether it claims memory that other modules lie in, which no loader makes; otherwise the image
    itself contradicts it, which drivers that erase their headers make too.
    """

    text: str
    overlapping: bool = False

    def __str__(self) -> str:
        return self.text
