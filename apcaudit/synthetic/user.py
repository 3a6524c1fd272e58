"""What a process has in user space, declared as values.

Addresses in it have names, as in the rest of a scene: `ntdll!NtContinue` and `payload+0x1000` are of mapped images by
their labels, `memory:LABEL+0x10` of other memory, `peb:PID` of a process's PEB. A name stands for one address in the
whole scene: an image lies at the same place in all processes that map it, as Windows does it from start to start.
`wow64:NAME` is the address of NAME as the kernel keeps it for a 32-bit program's APC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: The protections of winnt.h, PAGE_*, in the order of the numbers that VADs and invalid PTEs keep: MM_NOACCESS 0,
#: MM_READONLY 1 and so on (ReactOS, mm.h).
PROTECTIONS = (
    "NOACCESS",
    "READONLY",
    "EXECUTE",
    "EXECUTE_READ",
    "READWRITE",
    "WRITECOPY",
    "EXECUTE_READWRITE",
    "EXECUTE_WRITECOPY",
)

#: Where memory is: in the working set, on the way out of it, in a page file, nowhere yet; or in large pages.
PAGE_STATES = ("valid", "transition", "paged-out", "demand-zero", "large")

#: What the PTE is of a page of a section outside of the working set: the address of the prototype PTE, the order to
#: look the VAD up (MI_PTE_LOOKUP_NEEDED, ReactOS, ARM3/miarm.h), or nothing, since the process has never used it.
TRIMMED = ("prototype", "lookup", "unused")


@dataclass(frozen=True, slots=True)
class UserImage:
    r"""An image file that processes map: exports by relative address, forwarded ones by where they lead.

    `functions` are those that are not exported by name, `ordinals` their names by the ordinals of those exported so.
    `label` is its name in addresses (default: the file's stem). `bits` are its own: 64 or 32, by default the kernel's.
    Of its pages the first holds the headers; code goes from 0x1000 to the last three, which are constants, data and
    relocations. `absent` are addresses whose pages nobody has read from the file yet. `path` is the folder, as a file
    object has it, without the volume.
    """

    name: str
    exports: Mapping[str, int] = field(default_factory=dict)
    forwards: Mapping[str, str] = field(default_factory=dict)
    functions: Mapping[str, int] = field(default_factory=dict)
    ordinals: Mapping[int, str] = field(default_factory=dict)
    code: Mapping[int, bytes] = field(default_factory=dict)
    absent: tuple[int, ...] = ()
    size: int = 0x8000
    base: int | None = None
    bits: int | None = None
    label: str | None = None
    path: str = "\\Windows\\System32"

    @property
    def key(self) -> str:
        """The label, or the name without its extension."""
        return self.label or self.name.rpartition(".")[0] or self.name


@dataclass(frozen=True, slots=True)
class Region:
    """Memory that is no image: private, or with `private` False a section backed by the page file.

    `protection` is the VAD's; `page_protection` that of the pages where VirtualProtect changed it. `pages` is how many
    of them were touched (default: all), `state` where those are, of PAGE_STATES. `content` are bytes by offset,
    `contexts` CONTEXTs by offset with registers by their names, `strings` UNICODE_STRINGs by offset, their text behind
    them.
    """

    label: str
    size: int = 0x1000
    protection: str = "EXECUTE_READWRITE"
    page_protection: str | None = None
    base: int | None = None
    private: bool = True
    pages: int | None = None
    state: str = "valid"
    content: Mapping[int, bytes] = field(default_factory=dict)
    contexts: Mapping[int, Mapping[str, int | str]] = field(default_factory=dict)
    strings: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UserSpace:
    """A process's own half of its address space.

    The program is its first image; where `images` has no file of the process's name, one is added. `unlisted` are the
    labels of images that the loader's lists do not have. `patches` are bytes written over images, which gives the
    process pages of its own. `trimmed` are addresses in images whose pages are not in the process's working set, with
    what its PTE is then (TRIMMED). With `has_run` False nothing has run in user mode: the PEB has no loader data.
    """

    images: tuple[UserImage, ...] = ()
    regions: tuple[Region, ...] = ()
    unlisted: frozenset[str] = frozenset()
    patches: Mapping[int | str, bytes] = field(default_factory=dict)
    trimmed: Mapping[int | str, str] = field(default_factory=dict)
    has_run: bool = True
