"""Virtual to physical addresses, against vol's own layer, on page tables with every kind of entry."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from volatility3.framework import exceptions
from volatility3.plugins.windows.apcaudit.image import Memory

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import OWN, load_kernel
from apcaudit.synthetic.scenes import healthy
from tests.volatility import CACHE, construct

PAGE = 0x1000

# Bits of entries (Intel SDM volume 3, 4.3 to 4.5); of entries that are not present (Windows Internals, 6th edition,
# part 2, "Page table entries"): transition is bit 11, prototype bit 10. Vol takes bit 7 of such an entry for that of a
# page in a page file.
PRESENT, LARGE, IN_FILE, PROTOTYPE, TRANSITION = 1, 1 << 7, 1 << 7, 1 << 10, 1 << 11
FRAME = 0x201000


def table(*entries: int, size: int, rest: int = 0) -> bytes:
    """Make a page table of some entries and as many others as fit."""
    count = PAGE // size
    return struct.pack(f"<{count}{'I' if size == 4 else 'Q'}", *entries, *[rest] * (count - len(entries)))


def tables(size: int) -> dict[str, bytes]:
    """Give page tables by what they hold, for entries of so many bytes."""
    kinds = (FRAME | PRESENT, FRAME | TRANSITION, FRAME | PROTOTYPE, FRAME | TRANSITION | PROTOTYPE, FRAME | IN_FILE, 0)
    return {
        "every kind of entry": table(*kinds, size=size),
        "zeros": table(size=size),
        "one entry again and again": table(size=size, rest=FRAME | PRESENT),
        "one entry in transition again and again": table(size=size, rest=FRAME | TRANSITION),
    }


def directory_of(raw: bytearray, image: Image) -> tuple[int, int]:
    """Return the physical address of the page directory that maps the kernel, and the virtual address of its first."""
    mode = image.memory.space.mode
    size = struct.calcsize(mode.entry)
    address, at = image.kernel.base, mode.root
    for shift, bits in list(zip(mode.shifts, mode.bits, strict=True))[:-2]:
        index = (address >> shift) & ((1 << bits) - 1)
        at = int.from_bytes(raw[at + index * size : at + (index + 1) * size], "little") & 0x000FFFFFFFFFF000
    span = mode.shifts[-2] + mode.bits[-2]
    return at, address >> span << span


def damaged(image: Image) -> tuple[bytes, list[int]]:
    """Write each kind of table and entry into free places of a page directory; return memory and what they map."""
    raw = bytearray(image.raw())
    mode = image.memory.space.mode
    size, shift, bits = struct.calcsize(mode.entry), mode.shifts[-2], mode.bits[-2]
    directory, first = directory_of(raw, image)
    free = [
        index for index in range(1 << bits) if not any(raw[directory + index * size : directory + (index + 1) * size])
    ]
    entries = [FRAME & -(1 << 22) | PRESENT | LARGE, FRAME | IN_FILE, PROTOTYPE, 0]
    # A table that is beyond the end of the memory.
    entries.append(len(raw) + 0x100000 | PRESENT)
    for content in tables(size).values():
        entries += [len(raw) | PRESENT, len(raw) | TRANSITION]
        raw += content
    for index, entry in zip(free, entries, strict=False):
        raw[directory + index * size : directory + (index + 1) * size] = entry.to_bytes(size, "little")
    return bytes(raw), [first + (index << shift) for index in free[: len(entries)]]


def asked(image: Image, starts: list[int]) -> Iterator[int]:
    """Yield the first pages and the last of what each directory entry maps, and places all over the address space."""
    span = 1 << image.memory.space.mode.shifts[-2]
    for start in starts:
        yield from (start + page * PAGE + 0x123 for page in range(8))
        yield start + span - 1
    chance = random.Random(7)
    top = 1 << image.memory.pointer_size * 8
    yield from (chance.randrange(image.kernel.base & -(1 << 30), top) for _ in range(200))
    yield from (chance.randrange(1 << (47 if top >> 32 > 1 else 31)) for _ in range(50))
    yield from image.address_of.values()


@pytest.mark.parametrize("name", sorted(OWN))
def test_translation(name: str, tmp_path: Path) -> None:
    """Every address is mapped to what vol maps it to, or to nothing where vol maps it to nothing."""
    kernel = load_kernel(name)
    image = build(healthy.scene(name), kernel)
    content, starts = damaged(image)
    path = tmp_path / "memory.raw"
    path.write_bytes(content)
    root = image.memory.space.mode.root
    plugin = construct(path, "windows.pslist.PsList", cache=CACHE, kernel=kernel, page_tables=root)
    layer = plugin.context.layers[plugin.context.modules[plugin.config["kernel"]].layer_name]
    memory = Memory(plugin.context, layer.name)
    found = {}
    for address in asked(image, starts):
        try:
            expected, where = layer.translate(address & layer.address_mask)
            found[address] = (expected if where == layer.config["memory_layer"] else None, memory.physical(address))
        except exceptions.InvalidAddressException:
            found[address] = (None, memory.physical(address))
    assert {hex(address): pair for address, pair in found.items() if pair[0] != pair[1]} == {}
    mapped = [pair for pair in found.values() if pair[0] is not None]
    assert 40 < len(mapped) < len(found) - 40
