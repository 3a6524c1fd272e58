"""What a mutation is, and what it is made from: the structures of an image, and room that nothing else uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fuzz.targets import EVERYBODY, Target

PAGE = 0x1000


@dataclass(slots=True)
class Mutation:
    """What is done to physical memory: bytes written, pages taken out, the size cut; `owners` is who is touched.

    `told` says it in words. `scan` asks for an audit with --scan, which alone sees this damage. `keeps_rows` is whether
    every thread must still have its row, though more than one of them depends on what is damaged; `backing_stays`
    whether what was told of code in no module, or in one that is doubted, may not be gone, whatever a note says.
    """

    kind: str
    told: list[str] = field(default_factory=list)
    patches: list[tuple[int, bytes]] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    end: int | None = None
    owners: set[int] = field(default_factory=set)
    scan: bool = False
    keeps_rows: bool = False
    backing_stays: bool = False


@dataclass(frozen=True, slots=True)
class Ground:
    """What mutations choose from.

    `targets` are the structures, `content` is physical memory, `pointer` and `table_entry` are the bytes of a pointer
    and of an entry of a page table, `spare` is mapped memory that nothing uses.
    """

    targets: Sequence[Target]
    content: bytes
    pointer: int
    table_entry: int
    spare: Target

    def owners_of_page(self, page: int) -> set[int]:
        """Return whose structures lie on a physical page."""
        owners = {
            owner
            for each in self.targets
            if any(start < page + PAGE and page < start + length for _, start, length in each.pieces)
            for owner in each.owners
        }
        # What is no known structure, a name or a pool header, may matter to anybody.
        return owners | {EVERYBODY}

    def read(self, target: Target, offset: int, size: int) -> bytes:
        """Return bytes of a structure as they are before any damage, zeros where nothing is mapped."""
        places = [target.physical(at) for at in range(offset, offset + size)]
        return bytes(0 if place is None else self.content[place] for place in places)

    def pointer_at(self, target: Target, offset: int) -> int:
        """Return a pointer of a structure."""
        return int.from_bytes(self.read(target, offset, self.pointer), "little")

    def packed(self, value: int) -> bytes:
        """Make the bytes of a pointer."""
        return (value & ((1 << 8 * self.pointer) - 1)).to_bytes(self.pointer, "little")


def lay(mutation: Mutation, target: Target, offset: int, data: bytes) -> None:
    """Write into a structure, where it is mapped, without a word."""
    done = 0
    while done < len(data):
        physical = target.physical(offset + done)
        left = PAGE - (target.address + offset + done) % PAGE
        if physical is not None:
            mutation.patches.append((physical, data[done : done + left]))
        done += left
    mutation.owners |= target.owners


def write(mutation: Mutation, target: Target, offset: int, data: bytes) -> None:
    """Write into a structure, and tell it."""
    lay(mutation, target, offset, data)
    mutation.told.append(f"{target.name}+{offset:#x} = {data[:16].hex()}" + ("..." if len(data) > 16 else ""))
