"""The kernel's own records of threads: PspCidTable, and the threads that its processors run."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from struct import Struct

from ..formats.layout import Member
from ..formats.lists import walk
from ..image import Memory
from ..image.structures import read_member
from ..image.symbols import KernelSymbols
from ..kernel import Kernel
from ..windows import ID_STEP, PAGE_SIZE

PROCESSOR_BOUND = 2048
"""How many entries of KiProcessorBlock are looked at; Windows 11 runs on at most 2048 logical processors."""

_HIGHEST_IRQL = {4: 31, 8: 15}  # HIGH_LEVEL by size of a pointer (WDK, wdm.h)


@dataclass(frozen=True, slots=True)
class Processor:
    """One _KPRCB: its number, virtual address, and the virtual addresses of the _ETHREADs that it names.

    `current` is never 0; of `next` and `idle`, 0 is none and None is unreadable.
    `saved_irql` is DebuggerSavedIRQL, the IRQL before the crash or the debugger stopped the processor, None where it is
    unreadable or impossible. XP keeps none (WinDbg's help on `!irql`: Server 2003 and later), and _KPCR.Irql is no
    substitute, since KeBugCheck itself raises it.
    """

    number: int
    address: int
    current: int | None
    next: int | None
    idle: int | None
    saved_irql: int | None = None


def read_processors(kernel: Kernel, known: Iterable[int] = ()) -> tuple[Processor, ...]:
    """Read the _KPRCBs of KiProcessorBlock.

    Args:
        kernel: the image's.
        known: virtual addresses of _KPRCBs that something else in the image names, such as a minidump's header.
    """
    memory, symbols = kernel.memory, kernel.symbols
    processors: dict[int, Processor] = {}
    array = symbols.address("KiProcessorBlock")
    count = _count(memory, symbols) or 0
    for number in range(PROCESSOR_BOUND if array is not None else 0):
        address = memory.pointer((array or 0) + number * memory.pointer_size)
        processor = _read(memory, symbols, address) if address else None
        if processor is not None and processor.number == number:
            processors[processor.address] = processor
        elif number >= count:
            # A null or other data follows the last entry. `count` is not relied on alone, since it may be damaged.
            break
    for address in known:
        processor = _read(memory, symbols, address) if address not in processors else None
        if processor is not None:
            processors[address] = processor
    return tuple(processors.values())


def missing_processors(kernel: Kernel, processors: Iterable[Processor]) -> str | None:
    """Say how many of the processors that the kernel counts were not read; None where none is missing, or unknown.

    Always None for a minidump, which holds one processor only.
    """
    memory, symbols = kernel.memory, kernel.symbols
    count = None if memory.partial else _count(memory, symbols)
    if count is None:
        return None
    missing = len(set(range(count)) - {processor.number for processor in processors})
    if not missing:
        return None
    return (
        f"KiProcessorBlock leads to no _KPRCB for {missing} of {count} processors: threads that only they run may be"
        " missing"
    )


def _count(memory: Memory, symbols: KernelSymbols) -> int | None:
    """Read KeNumberProcessors: a byte, and a ULONG in kernels that number processors by one (since 7)."""
    symbol, number = symbols.address("KeNumberProcessors"), symbols.member("_KPRCB", "Number")
    if symbol is None or number is None:
        return None
    data = memory.read(symbol, 4 if number.size == 4 else 1)
    count = None if data is None else int.from_bytes(data, "little")
    return count if count is not None and count <= PROCESSOR_BOUND else None


def _read(memory: Memory, symbols: KernelSymbols, address: int) -> Processor | None:
    def member(name: str) -> int | None:
        return read_member(memory, symbols, "_KPRCB", name, address)

    number, current, idle = member("Number"), member("CurrentThread"), member("IdleThread")
    if number is None or not current or current % memory.pointer_size or not memory.is_canonical(current):
        return None
    irql = member("DebuggerSavedIRQL")
    if irql is not None and not 0 <= irql <= _HIGHEST_IRQL[memory.pointer_size]:
        irql = None
    return Processor(number, address, current, member("NextThread"), idle, irql)


LEVEL_MASK = 7
"""Low bits of TableCode: the number of levels above the pages of entries, at most 2 (WRK, ex/handle.c)."""

_OBJECT_FLAGS = 7
"""Low bits of _HANDLE_TABLE_ENTRY.Object: lock, inherit, audit (WRK, ex/handle.c)."""

PAGE_BOUND = 1 << 16
"""How many pages of entries are read: sixteen million IDs, as many as a table of three levels has on x64."""

_THREADS_ASKED = 8
"""How many threads of System are looked up in the table; a rootkit removes its own threads, never all."""


class Objects:
    """Object addresses by ID, in an array as in the table itself: a dictionary of 200,000 objects takes 36 MB."""

    __slots__ = ("_addresses",)

    def __init__(self, ids: int = 0) -> None:
        self._addresses = array("Q", bytes(8 * (ids // ID_STEP)))

    def put(self, first_id: int, addresses: Sequence[int]) -> None:
        """Store the object addresses of consecutive IDs, 0 where there is none."""
        start = first_id // ID_STEP
        self._addresses[start : start + len(addresses)] = array("Q", addresses)

    def get(self, identifier: int) -> int:
        """Return the address under an ID, 0 where there is none."""
        index = identifier // ID_STEP
        return self._addresses[index] if index < len(self._addresses) and identifier % ID_STEP == 0 else 0

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield (ID, object address), the IDs ascending."""
        return ((index * ID_STEP, address) for index, address in enumerate(self._addresses) if address)

    def without(self, met: bytearray) -> list[tuple[int, int]]:
        """Return (ID, object address) of the objects whose byte in `met`, one byte per possible ID, is 0."""
        # One pass over both arrays: an image has hundreds of thousands of IDs, nearly all of them met.
        pairs = zip(self._addresses, met, strict=True)
        return [(index * ID_STEP, address) for index, (address, seen) in enumerate(pairs) if address and not seen]

    @property
    def ids(self) -> int:
        """The lowest ID that does not fit, in steps of ID_STEP."""
        return len(self._addresses) * ID_STEP

    def has(self, address: int) -> bool:
        """Tell whether an object is in the table."""
        return address in self._addresses

    def __bool__(self) -> bool:
        return any(self._addresses)


@dataclass(frozen=True, slots=True)
class CidTable:
    """PspCidTable: object addresses by ID.

    `complete` is whether every page of the table was read. `confirmed` is whether the System process and one of its
    threads were found under their own IDs, which proves the decoding. Only with both is a missing ID evidence.
    """

    objects: Objects = field(default_factory=Objects)
    complete: bool = False
    confirmed: bool = False

    @property
    def evidence(self) -> bool:
        """Whether the absence of an ID proves that the table lacks the object."""
        return self.complete and self.confirmed


class EntryDecoder:
    """Turns pages of _HANDLE_TABLE_ENTRY into object addresses."""

    def __init__(self, member: Member, entry_size: int, pointer_size: int) -> None:
        self._words = Struct("<" + ("I" if pointer_size == 4 else "Q") * (PAGE_SIZE // pointer_size))
        self._first = member.offset // pointer_size
        self._step = entry_size // pointer_size
        self._shift = member.shift
        self._bits = member.bits
        # ObjectPointerBits leaves out the zeros that alignment guarantees and, on x64, the copies of bit 47.
        width = 32 if pointer_size == 4 else 48
        self._low = width - member.bits if member.bits is not None else 0
        self._sign = (1 << 64) - (1 << 48) if pointer_size == 8 else 0
        self.entries_of_page = PAGE_SIZE // entry_size

    def __call__(self, page: bytes) -> list[int]:
        """Return the object address of each entry of a page, 0 for an unused entry."""
        words = self._words.unpack(page)[self._first :: self._step][: self.entries_of_page]
        if self._bits is None:
            # Up to Windows 7 the entry is the object's address; its three lowest bits are flags.
            return [word & ~_OBJECT_FLAGS for word in words]
        shift, mask, low, sign = self._shift, (1 << self._bits) - 1, self._low, self._sign
        addresses = [(word >> shift & mask) << low for word in words]
        return [address | sign if address >> 47 else address for address in addresses]


def read_cid_table(kernel: Kernel) -> CidTable:
    """Read PspCidTable; where the image lacks it, return an empty table that is not complete."""
    memory, symbols = kernel.memory, kernel.symbols
    symbol = symbols.address("PspCidTable")
    table = None if symbol is None else memory.pointer(symbol)
    if not table:
        return CidTable()
    objects, complete = read_handle_table(kernel, table)
    return CidTable(objects, complete, _system_is_in(objects, memory, symbols))


def read_handle_table(kernel: Kernel, table: int) -> tuple[Objects, bool]:
    """Read the _HANDLE_TABLE at a virtual address: what its entries name, and whether every page could be read.

    The entries of PspCidTable name objects, those of a process the headers of objects.
    """
    memory, symbols = kernel.memory, kernel.symbols
    code = read_member(memory, symbols, "_HANDLE_TABLE", "TableCode", table)
    member = symbols.member("_HANDLE_TABLE_ENTRY", "ObjectPointerBits") or symbols.member(
        "_HANDLE_TABLE_ENTRY", "Object"
    )
    size = symbols.size_of("_HANDLE_TABLE_ENTRY")
    if not code or member is None or not size or code & LEVEL_MASK > 2:
        return Objects(), False
    if size % memory.pointer_size or not member.offset < size <= PAGE_SIZE:
        return Objects(), False
    decode = EntryDecoder(member, size, memory.pointer_size)
    pages = [code & ~LEVEL_MASK]
    complete = True
    for _ in range(code & LEVEL_MASK):
        pages, readable = _read_level(memory, pages)
        complete = complete and readable
    objects = Objects(len(pages) * decode.entries_of_page * ID_STEP)
    for number, page in enumerate(pages):
        data = memory.read(page, PAGE_SIZE) if page else None
        if data is not None:
            objects.put(number * decode.entries_of_page * ID_STEP, decode(data))
        elif page:
            complete = False
    return objects, complete


def _read_level(memory: Memory, pages: list[int]) -> tuple[list[int], bool]:
    """Read one level of pointer pages; return the pages below in order, 0 for missing ones, and whether all were read.

    A page that appears a second time is damage: its entries belong to the IDs that it appeared for first.
    """
    pointers = Struct("<" + ("I" if memory.pointer_size == 4 else "Q") * (PAGE_SIZE // memory.pointer_size))
    lower: list[int] = []
    complete = True
    for number, page in enumerate(pages, 1):
        data = memory.read(page, PAGE_SIZE) if page else None
        complete = complete and (data is not None or not page)
        lower.extend(pointers.unpack(data) if data is not None else [0] * (PAGE_SIZE // memory.pointer_size))
        if len(lower) > PAGE_BOUND:
            complete = complete and not any(lower[PAGE_BOUND:]) and not any(pages[number:])
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
    """Tell whether the table has the System process and one of its first threads under their own IDs.

    The thread is tested too: if the table holds only processes, the absence of a thread proves nothing.
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
