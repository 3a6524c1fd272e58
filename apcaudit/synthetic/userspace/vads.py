"""Virtual address descriptors: _MMVAD nodes in pool, and the tree of a process that holds them.

The tree's root has three layouts: XP has a pointer to the first node; 2003 to 8 have a table whose own node leads to
it by its right child; 8.1 and later have _RTL_AVL_TREE (public PDBs).
"""

from __future__ import annotations

from dataclasses import dataclass

from apcaudit.synthetic.memory import Memory
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.pool import Pool
from apcaudit.synthetic.user import PROTECTIONS

#: MI_VAD_TYPE VadNone and VadImageMap (public PDBs since Vista).
_VAD_NONE, _VAD_IMAGE_MAP = 0, 2
#: Pool tags of short and of other VADs (pooltag.txt).
_SHORT, _LONG = b"VadS", b"Vad "


@dataclass(frozen=True, slots=True)
class Section:
    """What a mapped VAD maps: its control area, the first subsection, the prototype PTEs and the file, 0 if none."""

    control_area: int
    subsection: int
    first_prototype: int
    last_prototype: int
    file_object: int = 0


@dataclass(frozen=True, slots=True)
class Vad:
    """One descriptor, of [start, start + size). `commit` are the pages charged for it, `file` what it maps."""

    start: int
    size: int
    protection: str
    private: bool = True
    image: bool = False
    commit: int = 0
    section: Section | None = None
    file: str | None = None

    @property
    def end(self) -> int:
        """Address of the last byte."""
        return self.start + self.size - 1


def place(memory: Memory, pool: Pool, process: int, vads: list[Vad]) -> dict[int, int]:
    """Make the tree of a process (the address of its _EPROCESS) in a pool.

    Returns:
        Each node's address, by where its VAD starts.
    """
    ordered = sorted(vads, key=lambda vad: vad.start)
    nodes = [place_node(memory, pool, process, vad) for vad in ordered]
    top, _ = balance(memory, nodes)
    _hang(memory, process, top, len(nodes))
    return {vad.start: node for vad, node in zip(ordered, nodes, strict=True)}


def place_node(memory: Memory, pool: Pool, process: int, vad: Vad) -> int:
    """Make one node in a pool, not linked yet; give its address."""
    kind = "_MMVAD_SHORT" if vad.section is None else "_MMVAD"
    node = pool.allocate(memory.size(kind), _SHORT if vad.section is None else _LONG)
    first, last = vad.start // PAGE, vad.end // PAGE
    high = memory.has("_MMVAD_SHORT", "StartingVpnHigh")
    values: list[tuple[str, int]] = [
        ("StartingVpn", first & 0xFFFFFFFF if high else first),
        ("EndingVpn", last & 0xFFFFFFFF if high else last),
        ("StartingVpnHigh", first >> 32),
        ("EndingVpnHigh", last >> 32),
        ("u.VadFlags.PrivateMemory", int(vad.private)),
        ("u.VadFlags.Protection", PROTECTIONS.index(vad.protection)),
        ("u.VadFlags.VadType", _VAD_IMAGE_MAP if vad.image else _VAD_NONE),
        # Before Vista.
        ("u.VadFlags.ImageMap", int(vad.image)),
    ]
    charge = ("u1.VadFlags1.CommitCharge", "u.VadFlags.CommitCharge", "CommitCharge")
    values.append((next(path for path in charge if memory.has("_MMVAD_SHORT", path)), vad.commit))
    committed = ("u1.VadFlags1.MemCommit", "u.VadFlags.MemCommit")
    values += [(path, 1) for path in committed if vad.commit and memory.has("_MMVAD_SHORT", path)]
    for path, value in values:
        # Pool is zeroed.
        if value:
            memory.write(node, "_MMVAD_SHORT", path, value, optional=True)
    if vad.section is not None:
        for path, value in (
            ("ControlArea", vad.section.control_area),
            ("Subsection", vad.section.subsection),
            ("FirstPrototypePte", vad.section.first_prototype),
            ("LastContiguousPte", vad.section.last_prototype),
            ("FileObject", vad.section.file_object),
            ("VadsProcess", process),
        ):
            memory.write(node, "_MMVAD", path, value, optional=True)
        if memory.has("_MMVAD", "ViewLinks"):
            memory.link(node + memory.offset("_MMVAD", "ViewLinks"), [])
    return node


def balance(memory: Memory, nodes: list[int]) -> tuple[int, int]:
    """Link sorted nodes as a balanced tree; give its top, 0 if there is none, and its depth."""
    if not nodes:
        return 0, 0
    middle = len(nodes) // 2
    top = nodes[middle]
    left, left_depth = balance(memory, nodes[:middle])
    right, right_depth = balance(memory, nodes[middle + 1 :])
    link(memory, top, left or None, right or None)
    for child in filter(None, (left, right)):
        set_parent(memory, child, top)
    for path in ("u1.Balance", "VadNode.Balance") if left_depth != right_depth else ():
        memory.write(top, "_MMVAD_SHORT", path, right_depth - left_depth, optional=True)
    return top, 1 + max(left_depth, right_depth)


def link(memory: Memory, node: int, left: int | None = None, right: int | None = None) -> None:
    """Write a node's children; one that is None stays as it is."""
    names = ("LeftChild", "RightChild")
    if not memory.has("_MMVAD_SHORT", names[0]):
        names = ("VadNode.Left", "VadNode.Right")
    for name, child in zip(names, (left, right), strict=True):
        if child is not None:
            memory.write(node, "_MMVAD_SHORT", name, child)


def set_parent(memory: Memory, node: int, parent: int) -> None:
    """Write a node's parent, whose lowest two bits are the node's balance in most versions."""
    path = next(path for path in ("Parent", "u1.Parent", "VadNode.ParentValue") if memory.has("_MMVAD_SHORT", path))
    balance = memory.read(node, "_MMVAD_SHORT", path) & 3 if path != "Parent" else 0
    memory.write(node, "_MMVAD_SHORT", path, parent | balance)


def _hang(memory: Memory, process: int, top: int, count: int) -> None:
    root = process + memory.offset("_EPROCESS", "VadRoot")
    if not memory.has("_EPROCESS", "VadRoot.BalancedRoot"):
        memory.write_pointer(root, top)
        memory.write(process, "_EPROCESS", "VadCount", count, optional=True)
        return
    # The table's own node is its own parent.
    for path, value in (
        ("BalancedRoot.RightChild", top),
        ("BalancedRoot.u1.Parent", root),
        ("NumberGenericTableElements", count),
        ("DepthOfTree", count.bit_length()),
    ):
        memory.write(root, "_MM_AVL_TABLE", path, value, optional=True)
    if top:
        set_parent(memory, top, root)
