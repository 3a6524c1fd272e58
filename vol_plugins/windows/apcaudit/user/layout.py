"""The structures that describe user space: VADs, page table entries, processes; members by name, newest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..formats.layout import Decoder, Member, is_number
from ..image.symbols import KernelSymbols

# A node of the VAD tree, by paths below _MMVAD_SHORT or, where that lacks them, _MMVAD. XP and 2003: LeftChild; Vista
# to 7: the same, from an _MM_AVL_TABLE; 8: VadNode.LeftChild or Core; since 8.1 VadNode.Left (public PDBs).
_NODE = {
    "start": ("StartingVpn",),
    "end": ("EndingVpn",),
    "left": ("VadNode.Left", "VadNode.LeftChild", "LeftChild"),
    "right": ("VadNode.Right", "VadNode.RightChild", "RightChild"),
    "protection": ("u.VadFlags.Protection",),
    "private": ("u.VadFlags.PrivateMemory", "u1.VadFlags1.PrivateMemory"),
    "start_high": ("StartingVpnHigh",),  # since 8.1
    "end_high": ("EndingVpnHigh",),
    "type": ("u.VadFlags.VadType",),  # since Vista
    "image": ("u.VadFlags.ImageMap",),  # XP and 2003
    "fixed_up": ("u.VadFlags.PrivateFixup",),
}
_NEEDED = ("start", "end", "left", "right", "protection", "private")

# The root: a pointer on XP, an _MM_AVL_TABLE from Server 2003 to 8, an _RTL_AVL_TREE since 8.1 (public PDBs).
_ROOTS = ("VadRoot.Root", "VadRoot.BalancedRoot.RightChild", "VadRoot")

# What only the VADs of sections have. XP's _MMVAD leads to the control area itself.
_SECTION = {
    "subsection": ("Subsection",),
    "control_area": ("ControlArea",),
    "first_pte": ("FirstPrototypePte",),
    "last_pte": ("LastContiguousPte",),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the members lie; `lacks` says what this symbol file lacks without which nothing is known of user space.

    `root` is the pointer to the tree's root in _EPROCESS. `node` decodes the members of _NODE in their order, `section`
    those of _SECTION. `reference` is the mask of _EX_FAST_REF's count, 0 where FilePointer is a pointer.
    """

    lacks: str | None
    root: Member | None = None
    top: Member | None = None
    peb: Member | None = None
    node: Decoder | None = None
    section: Decoder | None = None
    subsection_area: Member | None = None
    file: Member | None = None
    reference: int = 0


def read_layout(symbols: KernelSymbols, pointer_size: int) -> Layout:
    """Find the members in the kernel's symbols."""
    find = symbols.member
    root = _first(find, "_EPROCESS", _ROOTS)
    top = _first(find, "_EPROCESS", ("Pcb.DirectoryTableBase", "Pcb.DirectoryTableBase[0]"))
    short, long = symbols.size_of("_MMVAD_SHORT"), symbols.size_of("_MMVAD")
    structure = "_MMVAD_SHORT" if short else "_MMVAD"
    nodes = {name: _first(find, structure, paths) for name, paths in _NODE.items()}
    missing = [name for name in _NEEDED if nodes[name] is None]
    if root is None or top is None or missing:
        return Layout(f"the symbols do not describe {'VADs' if missing or root is None else 'address spaces'}")
    file = _first(find, "_CONTROL_AREA", ("FilePointer.Object", "FilePointer.Value", "FilePointer"))
    counted = find("_CONTROL_AREA", "FilePointer.Object") is not None
    return Layout(
        None,
        root,
        top,
        find("_EPROCESS", "Peb"),
        _decoder(list(nodes.values()), short or long or 0),
        _decoder([_first(find, "_MMVAD", paths) for paths in _SECTION.values()], long or 0),
        find("_SUBSECTION", "ControlArea"),
        file,
        (2 * pointer_size - 1) if counted else 0,
    )


def _decoder(members: list[Member | None], size: int) -> Decoder | None:
    fits = all(each is None or (is_number(each) and each.offset + each.size <= size) for each in members)
    return Decoder(members, size) if fits and size else None


def _first(find: Callable[[str, str], Member | None], structure: str, paths: tuple[str, ...]) -> Member | None:
    found = (find(structure, path) for path in paths)
    return next((each for each in found if each is not None and is_number(each)), None)


@dataclass(frozen=True, slots=True)
class PteLayout:
    """Members of _MMPTE; None where the symbols lack them. What is valid is as the processor has it."""

    write: Member | None
    copy_on_write: Member | None
    transition: Member | None
    prototype: Member | None
    protection: Member | None
    page_file: Member | None
    prototype_protection: Member | None


def read_pte_layout(symbols: KernelSymbols) -> PteLayout:
    """Find the members of page table entries that Windows keeps in bits of its own."""
    find = symbols.member
    return PteLayout(
        find("_MMPTE", "u.Hard.Write"),
        find("_MMPTE", "u.Hard.CopyOnWrite"),
        find("_MMPTE", "u.Trans.Transition"),
        find("_MMPTE", "u.Trans.Prototype"),
        find("_MMPTE", "u.Soft.Protection"),
        find("_MMPTE", "u.Soft.PageFileHigh"),
        find("_MMPTE", "u.Proto.Protection"),
    )


def bits(value: int, member: Member | None) -> int | None:
    """Extract a bit field from an entry; None where the member is unknown."""
    if member is None or member.offset:
        return None
    return value >> member.shift & ((1 << member.bits) - 1) if member.bits is not None else value
