"""What was done to a process's user space by somebody who knows that it will be read, or by the machine itself.

Each function replays it on a built image; the process has a user space of its own.
"""

from __future__ import annotations

import struct

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.user import UserImage
from apcaudit.synthetic.userspace import vads

#: Where the VADs of `degenerate_vads` and `many_vads` begin; a VAD each page and a gap behind it.
CROWD = 0x60000000

#: Two DLLs each of which forwards the other's export: whoever follows a name never gets anywhere.
FORWARDED_IN_CIRCLES = (
    UserImage("circle1.dll", forwards={"LoadLibraryW": "CIRCLE2.LoadLibraryW", "Self": "CIRCLE1.Self"}),
    UserImage("circle2.dll", forwards={"LoadLibraryW": "CIRCLE1.LoadLibraryW"}),
)


def _nodes(image: Image, pid: int) -> list[int]:
    """Give the addresses of a process's VADs in the order of their ranges."""
    return [image.address_of[f"vad:{pid}:{vad.start:#x}"] for vad in image.vads(pid)]


def _top(image: Image, pid: int) -> int:
    """Give where the pointer to the tree's first node lies."""
    process = image.address_of[f"process:{pid}"]
    nested = "VadRoot.BalancedRoot.RightChild"
    return process + image.memory.offset("_EPROCESS", nested if image.memory.has("_EPROCESS", nested) else "VadRoot")


def cyclic_vads(image: Image, pid: int) -> None:
    """Let the node of the highest range lead back to the first one."""
    vads.link(image.memory, _nodes(image, pid)[-1], right=image.memory.read_pointer(_top(image, pid)))


def crossing_vads(image: Image, pid: int, other: int) -> None:
    """Let the node of the lowest range lead into another process's tree."""
    there = image.memory.read_pointer(_top(image, other))
    vads.link(image.memory, _nodes(image, pid)[0], left=there)


def vads_nowhere(image: Image, pid: int) -> None:
    """Let the node of the highest range lead to memory that is not mapped, as a freed page is."""
    vads.link(image.memory, _nodes(image, pid)[-1], right=image.kernel.base - 0x400000)


def vads_in_user_space(image: Image, pid: int, address: int) -> None:
    """Let the root of the tree be a user address, where the program has written what it likes."""
    image.memory.write_pointer(_top(image, pid), address)


def degenerate_vads(image: Image, pid: int, count: int) -> None:
    """Make the tree a list: so many private VADs more, each the right child of the one before."""
    above = _nodes(image, pid)[-1]
    for node in _crowd(image, pid, count):
        vads.link(image.memory, above, right=node)
        vads.set_parent(image.memory, node, above)
        above = node


def many_vads(image: Image, pid: int, count: int) -> None:
    """Add so many private VADs, balanced, below the node of the highest range."""
    above = _nodes(image, pid)[-1]
    top, _ = vads.balance(image.memory, _crowd(image, pid, count))
    vads.link(image.memory, above, right=top)
    vads.set_parent(image.memory, top, above)


def _crowd(image: Image, pid: int, count: int) -> list[int]:
    process = image.address_of[f"process:{pid}"]
    return [
        vads.place_node(
            image.memory, image.user_pool, process, vads.Vad(CROWD + 2 * number * PAGE, PAGE, "EXECUTE_READWRITE")
        )
        for number in range(count)
    ]


def lying_vads(image: Image, pid: int) -> None:
    """Let the nodes lie: the first one claims all of user space, the second ends before it starts.

    The third one's protection is a number that no Windows has given a meaning.
    """
    memory, nodes = image.memory, _nodes(image, pid)
    for node, values in zip(
        nodes,
        (
            {"StartingVpn": 0, "StartingVpnHigh": 0, "EndingVpn": 0xFFFFFFFF, "EndingVpnHigh": 7},
            {"StartingVpn": 0x7000, "EndingVpn": 0x10, "EndingVpnHigh": 0},
            {"u.VadFlags.Protection": 0x1F},
        ),
        strict=False,
    ):
        for path, value in values.items():
            memory.write(node, "_MMVAD_SHORT", path, value, optional=True)


def untagged_vads(image: Image, pid: int) -> None:
    """Give every node a pool tag that no VAD has: readers that go by tags see none of them."""
    memory = image.memory
    for node in _nodes(image, pid):
        header = node - memory.size("_POOL_HEADER")
        memory.write(header, "_POOL_HEADER", "PoolTag", int.from_bytes(b"None", "little"))


def nameless_file(image: Image, label: str) -> None:
    """Let the file of a mapped image have a name whose buffer is not mapped and whose length is the longest."""
    file = image.address_of[f"file:{label}"]
    image.memory.write(file, "_FILE_OBJECT", "FileName.Length", 0xFFFE)
    image.memory.write(file, "_FILE_OBJECT", "FileName.Buffer", image.kernel.base - 0x400000)


def page_out_table(image: Image, pid: int, address: int) -> None:
    """Page out the page table of an address: its directory entry says only that it is in the page file."""
    pages = image.user_pages(pid)
    entry = pages.entries.software("READWRITE", 0x1234)
    pages.set_table_entry(address, len(pages.mode.shifts) - 2, entry)


def table_in_circles(image: Image, pid: int, address: int) -> None:
    """Let the directory entry of an address lead to the top table, which is thus its own page table."""
    pages = image.user_pages(pid)
    pages.set_table_entry(address, len(pages.mode.shifts) - 2, pages.root | 0x67)


def unreadable_space(image: Image, pid: int) -> None:
    """Let DirectoryTableBase lead beyond physical memory: the page was not acquired."""
    process = image.address_of[f"process:{pid}"]
    # Below 4 GiB, as PAE demands it.
    image.memory.write(process, "_EPROCESS", "Pcb.DirectoryTableBase", 0xF0000000)


def no_space(image: Image, pid: int) -> None:
    """Clear DirectoryTableBase, as it is once a process's address space has been taken down."""
    image.memory.write(image.address_of[f"process:{pid}"], "_EPROCESS", "Pcb.DirectoryTableBase", b"")


def _export_directory(image: Image, pid: int, label: str) -> int:
    """Give the address of an image's export directory, read from its headers."""
    memory = image.user(pid)
    base = image.address_of[f"image:{label}"]
    headers = memory.space.read(base, PAGE)
    optional = int.from_bytes(headers[0x3C:0x40], "little") + 0x18
    is_64bit = headers[optional : optional + 2] == b"\x0b\x02"
    at = optional + (0x70 if is_64bit else 0x60)
    return base + int.from_bytes(headers[at : at + 4], "little")


#: IMAGE_EXPORT_DIRECTORY (Microsoft, "PE Format"): NumberOfFunctions and NumberOfNames, AddressOfNames.
_COUNTS, _NAMES = 0x14, 0x20


def endless_exports(image: Image, pid: int, label: str) -> None:
    """Let an image say that it exports four billion functions by name; all processes that map it see it."""
    directory = _export_directory(image, pid, label)
    image.user(pid).space.write(directory + _COUNTS, struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF))


def names_in_circles(image: Image, pid: int, label: str) -> None:
    """Let an image's table of names be the export directory itself, whose name begins where the table does."""
    directory = _export_directory(image, pid, label)
    relative = directory - image.address_of[f"image:{label}"]
    memory = image.user(pid).space
    memory.write(directory + _NAMES, struct.pack("<I", relative))
    memory.write(directory, struct.pack("<II", relative, relative))
