"""What user APCs would run: places in a process's user space, and the values that describe a target."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Lies(str, Enum):
    """What holds a user-space address."""

    IMAGE = "an image"
    PRIVATE = "private memory"
    MAPPED = "a section that is no image"
    NOWHERE = "no VAD"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Place:
    """A user-space address and what holds it; `text` is `module!export+off`, `private rwx`, `no VAD` or `unknown`.

    `start` and `end` are the first and the last address of its VAD. `module` and `path` are those of the mapped file,
    `names` the exports at exactly this address, `bits` those of the image. `protection` has the letters r, w, x, and c
    for copy-on-write, empty for no access: of the page where its entry could be read, else of the VAD; None is unknown.
    `executable` is whether code can run there, None also where the VAD does not allow it and the processor would not
    stop it. `page` says where the page is. `own_page` is whether an image's page is the process's own copy and no
    relocation explains that. `why` says why something is unknown.
    """

    address: int
    lies: Lies
    text: str
    start: int | None = None
    end: int | None = None
    module: str | None = None
    path: str | None = None
    names: tuple[str, ...] = ()
    bits: int | None = None
    protection: str | None = None
    executable: bool | None = None
    page: str | None = None
    own_page: bool | None = None
    why: str | None = None

    @property
    def writable(self) -> bool | None:
        """Whether it can be written to without a copy, None if unknown."""
        return None if self.protection is None else "w" in self.protection

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Registers:
    """The CONTEXT that a function would continue with: its address, its instruction pointer and its first argument."""

    address: int
    instruction: Place
    argument: int


@dataclass(frozen=True, slots=True)
class Target:
    """What a user APC would run: NormalRoutine, or what the dispatcher there hands on.

    `via` names the dispatcher; a `?` follows one that was recognised by its place only. `encoded` is whether
    NormalRoutine is a 32-bit address in the encoding of WoW64, `narrow` whether the target runs as 32-bit code.
    `process` is the virtual address of the _EPROCESS whose user space it is. `argument` is what the target is called
    with, `string` the text there if the target loads a DLL, `registers` the CONTEXT there if it continues with one.
    `others` is how many other regions of private executable memory the process has, `alike` how many of those have the
    size and protection of this one; None if not known or not asked. `elsewhere` is whether other processes have the
    same bytes there: in memory of their own that cannot be written to or, of an image's page, all that map the file in
    copies of their own; None if not known or not asked.
    """

    place: Place
    process: int
    via: str | None = None
    encoded: bool = False
    narrow: bool = False
    argument: int | None = None
    string: str | None = None
    registers: Registers | None = None
    others: int | None = None
    alike: int | None = None
    elsewhere: bool | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """The target, and what it would continue with."""
        return (self.place,) if self.registers is None else (self.place, self.registers.instruction)

    @property
    def text(self) -> str:
        """The place, with the address where that does not name it."""
        if self.place.lies is Lies.IMAGE:
            return self.place.text
        return f"{self.place.address:#x} ({self.place.text})"
