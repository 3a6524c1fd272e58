"""Damage by kind: each mutation is made from a seed and a number alone, so that it can be made again."""

from __future__ import annotations

import random
from collections.abc import Callable

from fuzz import tangles
from fuzz.ground import PAGE, Ground, Mutation, write
from fuzz.targets import EVERYBODY, Target


def _flip(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    target = chance.choice(ground.targets)
    for _ in range(chance.choice((1, 1, 2, 8))):
        offset, size = _slot(target, chance)
        write(mutation, target, offset + chance.randrange(size), bytes([chance.randrange(256)]))


def _slot(target: Target, chance: random.Random) -> tuple[int, int]:
    if target.members and chance.random() < 0.8:
        return chance.choice(target.members)
    return chance.randrange(target.size), 1


def _pointer_slot(target: Target, pointer: int, chance: random.Random) -> int:
    offsets = [offset for offset, size in target.members if size == pointer]
    if target.links and chance.random() < 0.6:
        return chance.choice(target.links) + chance.choice((0, pointer))
    if offsets and chance.random() < 0.8:
        return chance.choice(offsets)
    return chance.randrange(max(1, target.size // pointer)) * pointer


def _places(ground: Ground, target: Target, offset: int, chance: random.Random) -> dict[str, int]:
    """Give where a pointer may be sent, by name."""
    other = chance.choice([each for each in ground.targets if each.address])
    inside = chance.choice((0, *other.links)) if other.links else chance.randrange(other.size)
    top = (1 << 8 * ground.pointer) - 1
    return {
        "self": target.address + offset,
        "own structure": target.address,
        "null": 0,
        "user": chance.choice((0x7FF10000, 0x10000, 0x1000)),
        "other": other.address + inside,
        "misaligned": (other.address + inside + chance.randrange(1, ground.pointer)) & top,
        "non-canonical": 0x4141414141414141 & top,
        "unmapped": (target.address ^ 0x5A5A000) & top,
        "top of memory": top - chance.choice((0, 7, 15, 0xFFF)),
        "page end": (other.address | 0xFFF) - chance.choice((0, 3, 7)),
    }


def _redirect(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    target = chance.choice([each for each in ground.targets if each.members or each.address])
    offset = _pointer_slot(target, ground.pointer, chance)
    places = _places(ground, target, offset, chance)
    name = chance.choice(sorted(places))
    write(mutation, target, offset, places[name].to_bytes(8, "little")[: ground.pointer])
    mutation.told[-1] += f" ({name})"


def _remove(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 5))):
        target = chance.choice(ground.targets)
        page = chance.choice(target.pieces)[1] & -PAGE
        mutation.dropped.append(page)
        mutation.owners |= ground.owners_of_page(page)
        mutation.told.append(f"page {page:#x} of {target.name} is missing")


def _knot(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    linked = [each for each in ground.targets if each.links]
    for _ in range(chance.choice((1, 1, 2, 4))):
        one = chance.choice(linked)
        # Mostly the same kind of list: those are the knots that look genuine.
        alike = [each for each in linked if each.links == one.links] if chance.random() < 0.7 else linked
        two = chance.choice(alike)
        at, to = chance.choice(one.links), chance.choice(two.links)
        if chance.random() < 0.7 and at in two.links:
            to = at
        write(mutation, one, at, (two.address + to).to_bytes(8, "little")[: ground.pointer])
        if chance.random() < 0.5:
            back = (one.address + at).to_bytes(8, "little")[: ground.pointer]
            write(mutation, two, to + ground.pointer, back)


def _extreme(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    target = chance.choice(ground.targets)
    offset, size = _slot(target, chance)
    if size == 1 and not target.members:
        size = chance.choice((1, 2, 4, 8))
        offset &= -size
    top = (1 << 8 * size) - 1
    value = chance.choice((0, 1, 2, top, top >> 1, (top >> 1) + 1, top - 1, 0xFFF & top, 0x10000 & top))
    write(mutation, target, offset, value.to_bytes(size, "little"))


def _truncate(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    # Where the structures lie: behind them is nothing that could be lost.
    last = max(start + length for each in ground.targets for _, start, length in each.pieces)
    mutation.end = chance.randrange(1, last)
    mutation.owners = {owner for each in ground.targets for owner in each.owners} | {EVERYBODY}
    mutation.told.append(f"cut to {mutation.end:#x} bytes")


def _garbage(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    target = chance.choice(ground.targets)
    size = min(target.size, PAGE)
    kind = chance.choice(("random", "zeros", "ones", "itself"))
    data = {
        "random": chance.randbytes(size),
        "zeros": bytes(size),
        "ones": b"\xff" * size,
        "itself": (target.address.to_bytes(8, "little")[: ground.pointer] * (size // ground.pointer + 1))[:size],
    }[kind]
    write(mutation, target, 0, data)


def _several(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    for _ in range(chance.randrange(2, 12)):
        chance.choice((_flip, _redirect, _knot, _extreme, _redirect))(mutation, ground, chance)


KINDS: dict[str, Callable[[Mutation, Ground, random.Random], None]] = {
    "bytes flipped": _flip,
    "pointer redirected": _redirect,
    "pages removed": _remove,
    "lists knotted": _knot,
    "extreme numbers": _extreme,
    "file truncated": _truncate,
    "structure overwritten": _garbage,
    "several at once": _several,
    "module sizes": tangles.module_sizes,
    "chains shared": tangles.shared_chains,
    "rings off the lists": tangles.rings_off_lists,
    "tables of themselves": tangles.tables_of_themselves,
    "processes overlap": tangles.overlapping_processes,
}


def mutation(ground: Ground, seed: int, index: int) -> Mutation:
    """Make the mutation of a seed with a number; the kinds take turns."""
    chance = random.Random(f"{seed}:{index}")  # noqa: S311 - the same damage each time is wanted
    kind = list(KINDS)[index % len(KINDS)]
    made = Mutation(kind)
    KINDS[kind](made, ground, chance)
    return made
