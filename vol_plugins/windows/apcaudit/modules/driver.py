"""A driver: address range, name, and the source that names it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

_KERNEL_NAMES = frozenset({"ntoskrnl", "ntkrnlmp", "ntkrnlpa", "ntkrpamp"})


class Source(Enum):
    """Where a driver was found."""

    MODULE = "PsLoadedModuleList"
    OBJECT = "a driver object"
    HEADER = "an image's header"


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver: base address, size in bytes, file name and path.

    `hidden` is whether PsLoadedModuleList lacks it; None is unknown, since the list was not read completely. `claimed`
    is the SizeOfImage of a list entry if no driver can have that size (0 is one such size), else None. `size` is then
    the SizeOfImage of the image's own header, or the largest size that a driver can have.
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
        """The end of the range that the entry claims."""
        return self.base + max(self.size, self.claimed or 0)

    @property
    def label(self) -> str:
        """The module's name as a debugger prints it before the exclamation mark; `nt` for the kernel."""
        stem = self.name.rpartition(".")[0] if self.name.lower().endswith((".sys", ".exe", ".dll")) else self.name
        return "nt" if stem.lower() in _KERNEL_NAMES else stem or f"{self.base:x}"
