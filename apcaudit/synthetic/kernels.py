"""The kernels that scenes can be built for: our own, and any that a symbol file describes."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from apcaudit.errors import ApcAuditError
from apcaudit.synthetic import intermediate, ntsymbols, table
from apcaudit.synthetic.intermediate import Pdb
from apcaudit.synthetic.layout import Layout


class KernelError(ApcAuditError):
    """A kernel that is not known or a symbol file that cannot serve as one."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: what its memory looks like and where its names are.

    `addresses` are relative to `base`. `version` is (major, minor, build). `own` tells our kernels, whose code and
    addresses are made up, from real ones.
    """

    name: str
    layout: Layout
    addresses: dict[str, int] = field(repr=False)
    pdb: Pdb
    version: tuple[int, int, int]
    base: int
    build_lab: str
    own: bool

    @property
    def is_64bit(self) -> bool:
        """Tell x64 from x86."""
        return self.layout.pointer_size == 8

    @property
    def is_pae(self) -> bool:
        """Tell whether a 32-bit kernel's page table entries have 8 bytes."""
        return not self.is_64bit and self.layout.has_type("_MMPTE") and self.layout.size("_MMPTE") == 8

    @property
    def image_size(self) -> int:
        """Size of the loaded image in bytes: its last symbol and something behind it."""
        return (max(self.addresses.values()) + 0x10000) & ~0xFFF

    def address(self, symbol: str) -> int:
        """Give the virtual address of a symbol of the kernel."""
        if symbol not in self.addresses:
            raise KernelError(f"kernel {self.name} has no symbol {symbol}")
        return self.base + self.addresses[symbol]

    def has(self, symbol: str) -> bool:
        """Tell whether the kernel has the symbol."""
        return symbol in self.addresses


@dataclass(frozen=True, slots=True)
class OwnKernel:
    """What one of our kernels is made from. GUIDs are invented, so that none is mistaken for a real kernel's."""

    pdb: Pdb
    version: tuple[int, int, int]
    base: int
    build_lab: str


OWN: dict[str, OwnKernel] = {
    name: OwnKernel(Pdb(f"{database}.pdb", guid, 1), version, base, lab)
    for name, database, guid, version, base, lab in (
        ("xp-sp3-x86", "ntkrnlpa", "A9C0DE00051026005512860AA0000001", (5, 1, 2600), 0x804D7000, "2600.xpsp"),
        ("7-sp1-x86", "ntkrpamp", "A9C0DE00061076017514860AA0000002", (6, 1, 7601), 0x82A05000, "7601.win7sp1"),
        ("7-sp1-x64", "ntkrnlmp", "A9C0DE00061076017514640AA0000003", (6, 1, 7601), 0xFFFFF80002A0D000, "7601.win7sp1"),
        ("8.1-x64", "ntkrnlmp", "A9C0DE00063096007415640AA0000004", (6, 3, 9600), 0xFFFFF8015A27F000, "9600.winblue"),
        (
            "10-19041-x64",
            "ntkrnlmp",
            "A9C0DE0010019041000804640AA00005",
            (10, 0, 19041),
            0xFFFFF80312000000,
            "19041.vb",
        ),
        ("10-19041-x86", "ntkrpamp", "A9C0DE0010019041000264860AA00006", (10, 0, 19041), 0x81C0D000, "19041.vb"),
        (
            "11-22000-x64",
            "ntkrnlmp",
            "A9C0DE0010022000000194640AA00007",
            (10, 0, 22000),
            0xFFFFF8047A200000,
            "22000.co",
        ),
        (
            "11-26100-x64",
            "ntkrnlmp",
            "A9C0DE0010026100001742640AA00008",
            (10, 0, 26100),
            0xFFFFF8061E400000,
            "26100.ge",
        ),
    )
}

#: Kernels of which only the types ship: Microsoft's PDBs of these builds lack `_ETHREAD` now and then, and no kernel of
#: OWN has the same layout.
TYPES_ONLY: dict[str, OwnKernel] = {
    name: OwnKernel(Pdb("ntkrnlmp.pdb", guid, 1), version, 0xFFFFF80312000000, lab)
    for name, guid, version, lab in (
        ("10-14393-x64", "A9C0DE0010014393000000640AA00009", (10, 0, 14393), "14393.rs1"),
        ("10-17134-x64", "A9C0DE0010017134000001640AA0000A", (10, 0, 17134), "17134.rs4"),
    )
}

#: (type, member, version): the newest row whose member a layout has tells a kernel's age well enough for the numbers
#: that an image carries. Used for symbol files that do not state their version.
AGES: tuple[tuple[str, str, tuple[int, int, int]], ...] = (
    ("_ETHREAD", "UpdateTebApc", (10, 0, 26100)),
    ("_KTHREAD", "HgsFeedbackStartTime", (10, 0, 22000)),
    ("_EPROCESS", "TimerResolutionIgnore", (10, 0, 19041)),
    ("_KAPC_STATE", "UserApcPendingAll", (10, 0, 17763)),
    ("_OBJECT_HEADER_HANDLE_REVOCATION_INFO", "RevocationBlock", (10, 0, 14393)),
    ("_KAPC_STATE", "InProgressFlags", (6, 3, 9600)),
    ("_KTHREAD", "SchedulerApc", (6, 2, 9200)),
    ("_OBJECT_HEADER", "TypeIndex", (6, 1, 7601)),
    ("_ETHREAD", "RateControlApc", (6, 0, 6002)),
    ("_KTHREAD", "SpecialApcDisable", (5, 2, 3790)),
)


def own_layout(name: str) -> tuple[Layout, str]:
    """Read the facts table of one of our kernels; also give its source line."""
    text = (resources.files("apcaudit.synthetic") / "layouts" / f"{name}.txt").read_text(encoding="ascii")
    return table.read_table(text), text.partition("\n")[0].removeprefix("source ")


def load_kernel(name: str | Path) -> Kernel:
    """Load one of our kernels by name, or a kernel from a symbol file.

    A symbol file with symbols gives its own addresses and PDB identity. One with types only (no symbols) is given our
    symbols and an invented GUID derived from its name; `isf.write_derived` makes the file that reads its images.

    Raises:
        KernelError: no such kernel, or the file lacks the types that an image needs.
    """
    if str(name) in OWN or str(name) in TYPES_ONLY:
        return _own(str(name))
    path = Path(name)
    if not path.is_file():
        raise KernelError(f"no kernel {name}: give one of {', '.join(OWN)}, or a symbol file")
    try:
        symbols = intermediate.read(path)
    except intermediate.IntermediateError as error:
        raise KernelError(str(error)) from error
    missing = [each for each in ("_ETHREAD", "_KTHREAD", "_EPROCESS") if not symbols.layout.has_type(each)]
    if missing:
        raise KernelError(f"{path}: lacks {', '.join(missing)}")
    return _foreign(path, symbols)


@functools.cache
def _own(name: str) -> Kernel:
    spec = OWN.get(name) or TYPES_ONLY[name]
    layout, _ = own_layout(name)
    addresses = ntsymbols.addresses(spec.version, layout.pointer_size)
    return Kernel(name, layout, addresses, spec.pdb, spec.version, spec.base, spec.build_lab, own=True)


def _foreign(path: Path, symbols: intermediate.Symbols) -> Kernel:
    layout = symbols.layout
    name = path.name.partition(".json")[0]
    stated = re.match(r"(\d+)\.(\d+)\.(\d+)\.\d+-", path.name)
    version = (int(stated[1]), int(stated[2]), int(stated[3])) if stated else _age(symbols)
    base = 0xFFFFF80312000000 if layout.pointer_size == 8 else 0x81C0D000
    lab = str(version[2])
    if symbols.pdb is not None and symbols.addresses:
        return Kernel(name, layout, symbols.addresses, symbols.pdb, version, base, lab, own=False)
    # The first digits mark the GUID as ours; the rest keeps two layouts apart.
    guid = "A9C0DEFF" + hashlib.sha256(path.name.encode()).hexdigest()[:24].upper()
    pae = layout.has_type("_MMPTE") and layout.size("_MMPTE") == 8
    database = "ntkrnlmp.pdb" if layout.pointer_size == 8 else "ntkrpamp.pdb" if pae else "ntoskrnl.pdb"
    return Kernel(
        name,
        layout,
        ntsymbols.addresses(version, layout.pointer_size),
        Pdb(database, guid, 1),
        version,
        base,
        lab,
        own=True,
    )


def _age(symbols: intermediate.Symbols) -> tuple[int, int, int]:
    for type_name, member, version in AGES:
        if symbols.layout.has(type_name, member):
            return version
    return (5, 1, 2600)
