"""The VADs of a process: their members by name, the one that holds an address, and how many hold private code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..formats.layout import Decoder, Member, is_number
from ..image import Memory
from ..image.symbols import KernelSymbols
from .pages import protection_text

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
class VadLayout:
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


def read_vad_layout(symbols: KernelSymbols, pointer_size: int) -> VadLayout:
    """Find the members in the kernel's symbols."""
    find = symbols.member
    root = _first(find, "_EPROCESS", _ROOTS)
    top = _first(find, "_EPROCESS", ("Pcb.DirectoryTableBase", "Pcb.DirectoryTableBase[0]"))
    short, long = symbols.size_of("_MMVAD_SHORT"), symbols.size_of("_MMVAD")
    structure = "_MMVAD_SHORT" if short else "_MMVAD"
    nodes = {name: _first(find, structure, paths) for name, paths in _NODE.items()}
    missing = [name for name in _NEEDED if nodes[name] is None]
    if root is None or top is None or missing:
        return VadLayout(f"the symbols do not describe {'VADs' if missing or root is None else 'address spaces'}")
    file = _first(find, "_CONTROL_AREA", ("FilePointer.Object", "FilePointer.Value", "FilePointer"))
    counted = find("_CONTROL_AREA", "FilePointer.Object") is not None
    return VadLayout(
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


DEPTH_BOUND = 64
"""How deep a tree is descended; a balanced one of four billion nodes has 46 levels."""

NODES_BOUND = 1 << 14
"""How many nodes of one process are counted; a browser has some thousands."""

TOTAL_BOUND = 1 << 17
"""How many nodes of all processes together are counted."""

_PAGES = 1 << 52
_IMAGE_MAP = 2  # VadImageMap of MI_VAD_TYPE (public PDBs since Vista)
_UNALLOCATED = ("VadRoot is null: the process has no VADs", "VadRoot cannot be read")


@dataclass(frozen=True, slots=True)
class Vad:
    """A VAD: virtual address of the node, first and last user address, protection as letters, and what it is of.

    `fixed_up` is whether the process has relocated the image for itself.
    """

    node: int
    start: int
    end: int
    protection: str | None
    private: bool
    image: bool
    fixed_up: bool = False


@dataclass(frozen=True, slots=True)
class VadSearch:
    """What a search found: the VAD, None for none; `why` says why it is not known whether there is one."""

    vad: Vad | None = None
    why: str | None = None


_NOWHERE = VadSearch()


class VadTree:
    """The VADs of one process, by the virtual address of its _EPROCESS.

    `budget` is how many nodes may still be counted, in a list that the trees of all processes share. Below `lowest`
    programs write what they like: no node lies there.
    """

    def __init__(self, memory: Memory, layout: VadLayout, process: int, budget: list[int], lowest: int) -> None:
        self._memory = memory
        self._lowest = lowest
        self._layout = layout
        self._budget = budget
        self._root: int | None = None
        if layout.root is not None and layout.node is not None:
            data = memory.read(process + layout.root.offset, layout.root.size)
            self._root = None if data is None else int.from_bytes(data, "little")
        self._private_code: frozenset[tuple[int, int, str]] | None = None
        self._counted = False

    def find(self, address: int) -> VadSearch:
        """Find the VAD that holds a user address."""
        page = address >> 12
        low, high, node = 0, _PAGES, self._root
        if not node:
            return VadSearch(why=_UNALLOCATED[node is None])
        for _ in range(DEPTH_BOUND):
            if node < self._lowest:
                return VadSearch(why=f"the VAD tree leads to user space at {node:#x}")
            read = self._read(node)
            if read is None:
                return VadSearch(why=f"the VAD at {node:#x} cannot be read")
            start, end = _range(read)
            if not low <= start <= end < high:
                return VadSearch(why=f"the VAD tree contradicts itself at {node:#x}")
            if page < start:
                high, node = start, read[2] or 0
            elif page > end:
                low, node = end + 1, read[3] or 0
            else:
                return VadSearch(_vad(node, read))
            if not node:
                return _NOWHERE
        return VadSearch(why=f"the VAD tree is more than {DEPTH_BOUND} levels deep")

    def count_private_code(self, vad: Vad) -> tuple[int, int] | None:
        """Count the VADs of private executable memory beside one, and those that are of its size and protection.

        The protection is the VADs' own. None where the tree could not be read whole.
        """
        if not self._counted:
            self._counted, self._private_code = True, self._find_private_code()
        if self._private_code is None:
            return None
        others = [each for each in self._private_code if each[0] != vad.start]
        kind = vad.end - vad.start, vad.protection
        return len(others), sum((end - start, protection) == kind for start, end, protection in others)

    def _find_private_code(self) -> frozenset[tuple[int, int, str]] | None:
        found: set[tuple[int, int, str]] = set()
        met: set[int] = set()
        pending = [(self._root or 0, 0, _PAGES)]
        while pending:
            node, low, high = pending.pop()
            if not node:
                continue
            self._budget[0] -= 1
            bounded = node not in met and len(met) < NODES_BOUND and self._budget[0] >= 0
            read = self._read(node) if bounded else None
            if read is None:
                return None
            start, end = _range(read)
            if not low <= start <= end < high:
                return None
            met.add(node)
            letters = protection_text(read[4]) if read[5] else None
            if letters is not None and "x" in letters:
                found.add((start << 12, (end << 12) + 0xFFF, letters))
            pending += ((read[2] or 0, low, start), (read[3] or 0, end + 1, high))
        return frozenset(found)

    def _read(self, node: int) -> Node | None:
        decoder = self._layout.node
        if decoder is None or node < self._lowest:
            return None
        data = self._memory.read(node, decoder.size)
        return None if data is None else decoder(data)


Node = tuple[int | None, ...]
"""The members of a node, in the order of layout's table: first and last page, children, protection, and so on."""


def _range(node: Node) -> tuple[int, int]:
    """Return the first and the last page of a node."""
    return (node[0] or 0) | (node[6] or 0) << 32, (node[1] or 0) | (node[7] or 0) << 32


def _vad(address: int, node: Node) -> Vad:
    start, end = _range(node)
    *_, protection, private, _, _, kind, image, fixed_up = node
    is_image = kind == _IMAGE_MAP if kind is not None else bool(image)
    letters = protection_text(protection)
    return Vad(address, start << 12, (end << 12) + 0xFFF, letters, bool(private), is_image, bool(fixed_up))
