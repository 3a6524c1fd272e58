"""A driver image: where it lies, how it is called, and who told of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

_KERNEL_NAMES = frozenset({"ntoskrnl", "ntkrnlmp", "ntkrnlpa", "ntkrpamp"})


class Source(Enum):
    """What told of a driver."""

    MODULE = "PsLoadedModuleList"
    OBJECT = "a driver object"
    HEADER = "an image's header"


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver: base address, size in bytes, file name and path.

    `hidden` is whether the module list lacks it; None, unknown, where a list does that was not read whole.
    `claimed` is SizeOfImage of an entry of the list that no image of a driver has, 0 among them; None of any other.
    Then `size` is what the image's own header says, or as much as a driver may have.
    """

    base: int
    size: int
    name: str
    path: str = ""
    source: Source = Source.MODULE
    hidden: bool | None = False
    claimed: int | None = None

    @property
    def end(self) -> int:
        """Where what its entry claims ends."""
        return self.base + max(self.size, self.claimed or 0)

    @property
    def label(self) -> str:
        """The name as a debugger prints it before the exclamation mark."""
        stem = self.name.rpartition(".")[0] if self.name.lower().endswith((".sys", ".exe", ".dll")) else self.name
        return "nt" if stem.lower() in _KERNEL_NAMES else stem or f"{self.base:x}"
