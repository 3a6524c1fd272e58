"""PspCidTable, the handle table of thread and process IDs, read page by page and distrusted entry by entry."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from struct import Struct

from ..facts import ID_STEP
from ..layout import Member
from ..memory import PAGE, Memory
from ..queues import walk
from ..structures import read_member
from ..symbols import KernelSymbols

LEVEL_MASK = 7
"""Low bits of TableCode: the number of levels above the pages of entries, at most 2 (WRK, ex/handle.c)."""

PAGE_BOUND = 1 << 16
"""How many pages of entries are read: sixteen million IDs, as many as a table of three levels has on x64."""

_THREADS_ASKED = 8
"""How many threads of System are asked whether the table has them; a rootkit takes out its own, never all."""


class Objects:
    """Object addresses by ID. An array as the table itself is one: a dictionary of 200,000 takes 36 MB."""

    __slots__ = ("_addresses",)

    def __init__(self, ids: int = 0) -> None:
        self._addresses = array("Q", bytes(8 * (ids // ID_STEP)))

    def put(self, first_id: int, addresses: Sequence[int]) -> None:
        """Take the object addresses of consecutive IDs, 0 where there is none."""
        start = first_id // ID_STEP
        self._addresses[start : start + len(addresses)] = array("Q", addresses)

    def get(self, identifier: int) -> int:
        """Return the address under an ID, 0 where there is none."""
        index = identifier // ID_STEP
        return self._addresses[index] if index < len(self._addresses) and identifier % ID_STEP == 0 else 0

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield (ID, object address), the IDs ascending."""
        return ((index * ID_STEP, address) for index, address in enumerate(self._addresses) if address)

    @property
    def ids(self) -> int:
        """One more than the highest ID there is room for."""
        return len(self._addresses) * ID_STEP

    def __bool__(self) -> bool:
        return any(self._addresses)


@dataclass(frozen=True, slots=True)
class CidTable:
    """Object addresses by ID, as the table has them.

    `complete` is whether every page of the table was read, `confirmed` whether the decoding is proven by the
    System process and a thread of it standing under their own IDs: only then is an ID that is missing evidence of
    anything.
    """

    objects: Objects = field(default_factory=Objects)
    complete: bool = False
    confirmed: bool = False

    @property
    def evidence(self) -> bool:
        """Whether what is not in the table can be said to be missing from it."""
        return self.complete and self.confirmed


class EntryDecoder:
    """Turns pages of _HANDLE_TABLE_ENTRY into object addresses."""

    def __init__(self, member: Member, entry_size: int, pointer_size: int) -> None:
        self._words = Struct("<" + ("I" if pointer_size == 4 else "Q") * (PAGE // pointer_size))
        self._first = member.offset // pointer_size
        self._step = entry_size // pointer_size
        self._shift = member.shift
        self._bits = member.bits
        # ObjectPointerBits leaves out the zeros that alignment guarantees and, on x64, the copies of bit 47.
        width = 32 if pointer_size == 4 else 48
        self._low = width - member.bits if member.bits is not None else 0
        self._sign = (1 << 64) - (1 << 48) if pointer_size == 8 else 0
        self.entries_of_page = PAGE // entry_size

    def __call__(self, page: bytes) -> list[int]:
        """Give the object address of each entry of a page, 0 for one that holds nothing."""
        words = self._words.unpack(page)[self._first :: self._step][: self.entries_of_page]
        if self._bits is None:
            # To Windows 7 the object's address itself, the lowest bit being the entry's lock.
            return [word & ~LEVEL_MASK for word in words]
        shift, mask, low, sign = self._shift, (1 << self._bits) - 1, self._low, self._sign
        addresses = [(word >> shift & mask) << low for word in words]
        return [address | sign if address >> 47 else address for address in addresses]


def read_cid_table(memory: Memory, symbols: KernelSymbols) -> CidTable:
    """Read the table; an empty one, not complete, where the image does not have it."""
    symbol = symbols.address("PspCidTable")
    table = None if symbol is None else memory.pointer(symbol)
    code = read_member(memory, symbols, "_HANDLE_TABLE", "TableCode", table) if table else None
    member = symbols.member("_HANDLE_TABLE_ENTRY", "ObjectPointerBits") or symbols.member(
        "_HANDLE_TABLE_ENTRY", "Object"
    )
    size = symbols.size_of("_HANDLE_TABLE_ENTRY")
    if not code or member is None or not size or code & LEVEL_MASK > 2:
        return CidTable()
    if size % memory.pointer_size or not member.offset < size <= PAGE:
        return CidTable()
    decode = EntryDecoder(member, size, memory.pointer_size)
    pages = [code & ~LEVEL_MASK]
    complete = True
    for _ in range(code & LEVEL_MASK):
        pages, readable = _lower(memory, pages)
        complete = complete and readable
    objects = Objects(len(pages) * decode.entries_of_page * ID_STEP)
    for number, page in enumerate(pages):
        data = memory.read(page, PAGE) if page else None
        if data is not None:
            objects.put(number * decode.entries_of_page * ID_STEP, decode(data))
        elif page:
            complete = False
    return CidTable(objects, complete, _system_is_in(objects, memory, symbols))


def _lower(memory: Memory, pages: list[int]) -> tuple[list[int], bool]:
    """Read the pages of pointers of one level: the pages below them in order, 0 for those that there are not.

    A page that comes up again is damage: its entries are those of the IDs that it came up for first.
    """
    pointers = Struct("<" + ("I" if memory.pointer_size == 4 else "Q") * (PAGE // memory.pointer_size))
    lower: list[int] = []
    complete = True
    for page in pages:
        data = memory.read(page, PAGE) if page else None
        complete = complete and (data is not None or not page)
        lower.extend(pointers.unpack(data) if data is not None else [0] * (PAGE // memory.pointer_size))
        if len(lower) > PAGE_BOUND:
            complete = complete and not any(lower[PAGE_BOUND:])
            del lower[PAGE_BOUND:]
            break
    met: set[int] = set()
    for number, page in enumerate(lower):
        if page in met:
            lower[number], complete = 0, False
        elif page:
            met.add(page)
    while lower and not lower[-1]:
        lower.pop()
    return lower, complete


def _system_is_in(objects: Objects, memory: Memory, symbols: KernelSymbols) -> bool:
    """Tell whether the System process and one of its first threads stand under their own IDs.

    The thread too: a table that holds processes only, whatever made it so, tells of no thread that it is missing.
    """
    symbol = symbols.address("PsInitialSystemProcess")
    system = None if symbol is None else memory.pointer(symbol)
    head = symbols.member("_EPROCESS", "ThreadListHead.Flink")
    entry = symbols.member("_ETHREAD", "ThreadListEntry.Flink")
    if not system or head is None or entry is None:
        return False
    pid = read_member(memory, symbols, "_EPROCESS", "UniqueProcessId", system)
    if pid is None or objects.get(pid) != system:
        return False
    ring = walk(memory.links, system + head.offset, pointer_size=memory.pointer_size, bound=_THREADS_ASKED)
    threads = [each - entry.offset for each in ring.entries]
    tids = (read_member(memory, symbols, "_ETHREAD", "Cid.UniqueThread", thread) for thread in threads)
    return any(tid and objects.get(tid) == thread for thread, tid in zip(threads, tids, strict=True))
