"""Damage with a plan: sizes of modules, chains and rings of KAPCs, tables of themselves, processes that overlap.

Each is made as a genuine structure would be, since a random byte hardly ever makes one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from fuzz.ground import PAGE, Ground, Mutation, lay, write
from fuzz.targets import EVERYBODY, Target

_PROCESS = 3  # ProcessObject of KOBJECTS, the first byte of an _EPROCESS
_LENGTHS = (1, 2, 3, 7, 20, 60, 300)
_HEADS = ("Tcb.ApcState.ApcListHead[0]",) * 3 + ("Tcb.ApcState.ApcListHead[1]", "Tcb.SavedApcState.ApcListHead[0]")


def module_sizes(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    """Let entries of the module list claim sizes and bases that no driver has, or those of others."""
    mutation.backing_stays = True
    modules = [each for each in ground.targets if "SizeOfImage" in each.fields]
    sizes = (0, 1, PAGE - 1, PAGE, 0x20000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    for _ in range(chance.choice((1, 1, 2, 3))):
        entry, other = chance.choice(modules), chance.choice(modules)
        what = chance.choice(("size", "size", "base", "both"))
        if what != "base":
            size = chance.choice((*sizes, chance.randrange(1 << 32), chance.randrange(1, 0x400) * PAGE))
            write(mutation, entry, entry.fields["SizeOfImage"][0], size.to_bytes(4, "little"))
        if what != "size":
            base = ground.pointer_at(other, other.fields["DllBase"][0])
            bases = (0, 1, 0x10000, base, base + 1, base - PAGE, base + 0x10 * PAGE, base ^ 1 << 8 * ground.pointer - 1)
            write(mutation, entry, entry.fields["DllBase"][0], ground.packed(chance.choice((*bases, -PAGE, -1))))


def shared_chains(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    """Let lists of several threads lead into one chain of KAPCs, which loops, breaks or ends in some list's head."""
    threads = _threads(ground)
    chosen = chance.sample(threads, chance.choice((2, 2, 3, 5, 8)))
    entries = _kapcs(mutation, ground, chance, [chance.choice((*chosen, *threads)), *chosen])
    _chain(mutation, ground, chance, entries)
    end = _end(ground, chance, entries, chosen, threads)
    lay(mutation, ground.spare, entries[-1] - ground.spare.address, ground.packed(end))
    for thread in chosen:
        name = chance.choice(_HEADS)
        flink, _ = thread.fields[f"{name}.Flink"]
        write(mutation, thread, flink, ground.packed(chance.choice((entries[0], entries[0], chance.choice(entries)))))
        if chance.random() < 0.5:
            write(mutation, thread, flink + ground.pointer, ground.packed(entries[-1]))
    # One of the lists is rightly the chain's, in some.
    if chance.random() < 0.5:
        first = chance.choice(chosen)
        back = first.address + first.fields[f"{chance.choice(_HEADS)}.Flink"][0]
        lay(mutation, ground.spare, entries[0] + ground.pointer - ground.spare.address, ground.packed(back))
    mutation.told.append(f"a chain of {len(entries)} that ends at {end:#x}")


def rings_off_lists(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    """Lay KAPCs that say they are queued where only the scan finds them, in rings or leading into lists."""
    mutation.scan = True
    threads = _threads(ground)
    named = chance.sample(threads, chance.choice((1, 1, 2, 3)))
    mutation.owners |= {each.address for each in named}
    entries = _kapcs(mutation, ground, chance, named)
    rings = chance.choice((1, 1, 2, len(entries)))
    for first in range(rings):
        ring = entries[first::rings]
        if not ring:
            continue
        _chain(mutation, ground, chance, ring)
        end = ring[0] if chance.random() < 0.6 else _end(ground, chance, ring, named, threads)
        lay(mutation, ground.spare, ring[-1] - ground.spare.address, ground.packed(end))
        lay(mutation, ground.spare, ring[0] + ground.pointer - ground.spare.address, ground.packed(ring[-1]))
    for thread in named:
        if chance.random() < 0.3:
            # As after it was unlinked by a write of its head: what hung there hangs nowhere.
            at, _ = thread.fields[f"{_HEADS[0]}.Flink"]
            write(mutation, thread, at, ground.packed(thread.address + at) * 2)
    mutation.told.append(f"{rings} rings of {len(entries)} KAPCs off the lists of {[each.name for each in named]}")


def tables_of_themselves(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    """Let a table have itself for a page: PspCidTable's levels, page tables, variables."""
    chance.choice((_cid_table, _cid_table, _page_table, _variable))(mutation, ground, chance)
    mutation.owners.add(EVERYBODY)


def _cid_table(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    table = _named(ground, "PspCidTable's table")
    leaf, spare = _named(ground, "PspCidTable's top page").address, ground.spare.address
    count = chance.choice((1, 2, 3, 8))
    pages = [spare + PAGE * number for number in range(count)]
    entries = PAGE // ground.pointer
    for number in range(count):
        below = {
            "itself": [pages[number]],
            "the leaf": [leaf],
            "the next": [pages[(number + 1) % count]],
            "any": [*pages, leaf, 0, table.address & -PAGE],
        }
        name = chance.choice(sorted(below))
        filled = chance.choice((1, 2, entries // 2, entries))
        words = [chance.choice(below[name]) for _ in range(filled)]
        if chance.random() < 0.5:
            words[0] = leaf
        lay(mutation, ground.spare, PAGE * number, b"".join(map(ground.packed, words)))
        mutation.told.append(f"page {pages[number]:#x} leads {filled} times to {name}")
    top = chance.choice((*pages, *pages, leaf, table.address & -8))
    write(mutation, table, table.members[0][0], ground.packed(top | chance.choice((0, 1, 1, 2, 2, 2, 3, 7))))


def _page_table(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    tables = [each for each in ground.targets if each.name.startswith("page table")]
    size = ground.table_entry
    for _ in range(chance.choice((1, 1, 2, 4))):
        table = chance.choice(tables)
        used = [at for at in range(0, table.size, size) if ground.read(table, at, 1)[0] & 1]
        leads = chance.choice((table, table, chance.choice(tables))).pieces[0][1]
        for at in used if chance.random() < 0.2 else [chance.choice(used or [0])]:
            flags = ground.read(table, at, 1)[0] | 1
            lay(mutation, table, at, (leads | flags).to_bytes(size, "little"))
        mutation.told.append(f"{table.name} leads to the table {leads:#x}")


def _variable(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    names = ("PspCidTable", "KiProcessorBlock", "MmUnloadedDrivers", "PsLoadedModuleList", "PsInitialSystemProcess")
    target = chance.choice([each for each in ground.targets if each.name in names])
    end = min(target.size, chance.choice((ground.pointer, target.size)))
    write(mutation, target, 0, ground.packed(target.address) * (end // ground.pointer))


def overlapping_processes(mutation: Mutation, ground: Ground, chance: random.Random) -> None:
    """Put processes on the list that lie in one another's memory, or in that of a process that is there."""
    processes = [each for each in ground.targets if "ActiveProcessLinks.Flink" in each.fields]
    head = _named(ground, "PsActiveProcessHead")
    links, _ = processes[0].fields["ActiveProcessLinks.Flink"]
    stride = chance.choice((2, 2, 3, 8, 32, 100)) * ground.pointer
    room = (ground.spare.size - processes[0].size) // stride
    where, start = ground.spare, chance.randrange(4) * ground.pointer
    if chance.random() < 0.25:
        where, room = chance.choice(processes), 1
        start = chance.choice((-8, -4, -1, 1, 4, 8)) * ground.pointer
    else:
        # Nothing of the others is touched: they all keep their threads.
        mutation.keeps_rows = True
    count = min(room, chance.choice((1, 2, 5, 50, 400)))
    entries = [where.address + start + number * stride + links for number in range(count)]
    if chance.random() < 0.5:
        for number in range(0, count, chance.choice((1, 1, 5))):
            lay(mutation, where, start + number * stride, bytes([_PROCESS]))
    before = chance.choice((head, *processes))
    at = 0 if before is head else links
    behind = ground.pointer_at(before, at)
    ring = [before.address + at, *entries, behind]
    for previous, entry, following in zip(ring, entries, ring[2:], strict=False):
        lay(mutation, where, entry - where.address, ground.packed(following) + ground.packed(previous))
    write(mutation, before, at, ground.packed(entries[0]))
    if chance.random() < 0.7:
        owner = next((each for each in (head, *processes) if behind in (each.address, each.address + links)), head)
        write(mutation, owner, behind - owner.address + ground.pointer, ground.packed(entries[-1]))
    if chance.random() < 0.3:
        lay(mutation, where, entries[-1] - where.address, ground.packed(chance.choice(entries)))
    mutation.owners.add(EVERYBODY)
    mutation.told.append(f"{count} processes, {stride:#x} bytes apart, in {where.name} behind {before.name}")


def _threads(ground: Ground) -> list[Target]:
    return [each for each in ground.targets if f"{_HEADS[0]}.Flink" in each.fields]


def _named(ground: Ground, name: str) -> Target:
    return next(each for each in ground.targets if each.name == name)


def _kapcs(mutation: Mutation, ground: Ground, chance: random.Random, threads: Sequence[Target]) -> list[int]:
    """Lay copies of a KAPC in the spare memory, queued to one or several threads; give the addresses of their links."""
    original = chance.choice([each for each in ground.targets if "KernelRoutine" in each.fields])
    content = bytearray(ground.read(original, 0, original.size))
    links, thread = original.fields["ApcListEntry.Flink"][0], original.fields["Thread"][0]
    inserted, _ = original.fields["Inserted"]
    stride = -(-original.size // 16) * 16
    count = min(chance.choice(_LENGTHS), ground.spare.size // stride)
    content[inserted] = chance.choice((1, 1, 1, 0))
    one = chance.choice(threads) if chance.random() < 0.6 else None
    for number in range(count):
        named = one or chance.choice(threads)
        content[thread : thread + ground.pointer] = ground.packed(named.address)
        lay(mutation, ground.spare, number * stride, bytes(content))
    return [ground.spare.address + number * stride + links for number in range(count)]


def _chain(mutation: Mutation, ground: Ground, chance: random.Random, entries: Sequence[int]) -> None:
    """Let each entry lead to the next, and mostly back too."""
    back = chance.random() < 0.7
    for previous, entry in pairwise(entries):
        lay(mutation, ground.spare, previous - ground.spare.address, ground.packed(entry))
        wanted = previous if back or chance.random() < 0.7 else chance.choice(entries)
        lay(mutation, ground.spare, entry + ground.pointer - ground.spare.address, ground.packed(wanted))


def _end(
    ground: Ground, chance: random.Random, entries: Sequence[int], chosen: Sequence[Target], threads: Sequence[Target]
) -> int:
    """Choose where a chain leads: into itself, to a list's head, into somebody's list, nowhere."""
    one, other = chance.choice(chosen), chance.choice(threads)
    head = f"{chance.choice(_HEADS)}.Flink"
    ends = {
        "first": entries[0],
        "itself": entries[-1],
        "anywhere": chance.choice(entries),
        "a head": one.address + one.fields[head][0],
        "another's head": other.address + other.fields[head][0],
        "another's list": ground.pointer_at(other, other.fields[head][0]),
        "null": 0,
        "misaligned": entries[0] + 1,
        "unmapped": ground.spare.address ^ 0x5A5A000,
    }
    return ends[chance.choice(sorted(ends))]
