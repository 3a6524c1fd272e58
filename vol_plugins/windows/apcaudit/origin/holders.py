"""What holds a KAPC: a kernel structure that it is a member of, a reserve object, or a pool block with a tag."""

from __future__ import annotations

from dataclasses import dataclass

from ..image.structures import read_member
from ..kernel import Kernel
from ..model import Apc, Origin, Process, Thread
from ..threads.kernel_views import Objects, read_handle_table
from ..windows import PAGE_SIZE

# Tags of allocations that hold KAPCs (pooltag.txt of the Windows Debugging Tools; DRAKVUF's poolmon table).
KNOWN_TAGS: dict[str, str] = {
    "KAPC": "an I/O hard error, and many drivers",
    "CMpa": "a registry change notification",
    "EtwA": "an ETW stack walk",
    "PsAp": "NtQueueApcThread",
    "Psap": "NtQueueApcThread",
    "PsCa": "thread creation",
    "PsEx": "thread termination",
    "Irp ": "an IRP",
    "Irps": "an IRP (small lookaside list)",
    "Irpl": "an IRP (large lookaside list)",
    "Irp+": "an IRP (driver verifier)",
}

IRP_TAGS = frozenset({"Irp ", "Irps", "Irpl", "Irp+"})

# fltmgr allocates under tags that begin with FM (pooltag.txt).
_FILTER_MANAGER = "FM"

# Set in the tag's last byte of a protected allocation, to 7 (WDK, ExAllocatePoolWithTag: PROTECTED_POOL).
_PROTECTED = 0x80


@dataclass(frozen=True, slots=True)
class PoolTag:
    """A pool tag as text, and the size in bytes of its block, the header included."""

    text: str
    block_size: int

    @property
    def meaning(self) -> str | None:
        """What allocates under the tag, None for an unknown tag."""
        if self.text.startswith(_FILTER_MANAGER):
            return "fltmgr"
        return KNOWN_TAGS.get(self.text)

    def __str__(self) -> str:
        return f"'{self.text}'" + (f" ({self.meaning})" if self.meaning else "")


def read_pool_tag(kernel: Kernel, block: int, size: int) -> PoolTag | None:
    """Read the tag of the pool block of an allocation, None if unknown.

    It is unknown for a large allocation, which has no header, on pages of the segment heap (1903 and later) where the
    header is missing, and for an address inside an allocation.

    Args:
        kernel: the image's.
        block: virtual address of the allocation, behind the header.
        size: the least size of the allocation in bytes.
    """
    memory, symbols = kernel.memory, kernel.symbols
    header = symbols.size_of("_POOL_HEADER")
    if not header or (block - header) // PAGE_SIZE != block // PAGE_SIZE:
        return None
    at = block - header
    tag = read_member(memory, symbols, "_POOL_HEADER", "PoolTag", at)
    units = read_member(memory, symbols, "_POOL_HEADER", "BlockSize", at)
    kind = read_member(memory, symbols, "_POOL_HEADER", "PoolType", at)
    # BlockSize counts in sizes of a header, and a block never crosses its page; type 0 is a free block.
    if not tag or tag >> 32 or not units or not kind:
        return None
    length = units * header
    if length < header + size or at % PAGE_SIZE + length > PAGE_SIZE:
        return None
    letters = tag.to_bytes(4, "little")
    letters = letters[:3] + bytes([letters[3] & ~_PROTECTED])
    text = letters.decode("latin-1")
    return PoolTag(text, length) if letters.isascii() and text.isprintable() else None


_QUOTA = 8
"""Bit of _POOL_HEADER.PoolType of an allocation that is charged to a process (ReactOS, mm/ARM3/expool.c)."""


def read_billed(kernel: Kernel, block: int) -> Process | None:
    """Read the process that an allocation is charged to: the one that ran when it was made; None if unknown.

    x64 has it in the pool header, since 8 combined with the header's address and nt!ExpPoolQuotaCookie
    (decompilations of 8.1 to 11); on x86 it is behind the allocation, and not read.
    """
    memory, symbols = kernel.memory, kernel.symbols
    size = symbols.size_of("_POOL_HEADER")
    billed = symbols.member("_POOL_HEADER", "ProcessBilled")
    if memory.bits != 64 or not size or billed is None or read_pool_tag(kernel, block, 0) is None:
        return None
    header = block - size
    kind = read_member(memory, symbols, "_POOL_HEADER", "PoolType", header)
    value = memory.pointer(header + billed.offset)
    if not kind or not kind & _QUOTA or not value:
        return None
    symbol = symbols.address("ExpPoolQuotaCookie")
    cookie = None if symbol is None else memory.pointer(symbol)
    process = value if cookie is None else value ^ cookie ^ header
    # A wrong cookie, or none, gives what is no process.
    return kernel.processes.read(process) if process and kernel.processes.is_object(process) else None


# What the KAPCs in _KTHREAD and _ETHREAD are for: SuspendApc to 7, SchedulerApc since 8 (its NormalRoutine is
# KiSchedulerApc), UpdateTebApc since 24H2 (public PDBs of these builds).
_PURPOSES = {
    "SuspendApc": "suspension",
    "SchedulerApc": "suspension, freezing, preemption or termination",
    "UpdateTebApc": "update of the TEB",
}

# KOBJECTS TimerNotificationObject and TimerSynchronizationObject (ReactOS sdk/include/ndk/ketypes.h).
_TIMER_TYPES = (8, 9)

# KernelRoutine, structure and member that holds its KAPC (public PDBs; _ETW_APC_ENTRY.Apc in 16299 to 19045 only).
_HOLDERS = (
    ("ExpTimerApcRoutine", "_ETIMER", "TimerApc"),
    ("EtwpStackWalkApc", "_ETW_APC_ENTRY", "Apc"),
    ("EtwpCrimsonStackWalkApc", "_ETW_APC_ENTRY", "Apc"),
    ("MiStoreWriteModifiedCompleteApc", "_MMMOD_WRITER_MDL_ENTRY", "StoreWriteCompletionApc"),
)


class Embedded:
    """Names the KAPCs that the symbol table shows as members of threads, timers and the like."""

    def __init__(self, kernel: Kernel) -> None:
        symbols = kernel.symbols
        self._memory, self._symbols = kernel.memory, symbols
        self._terminate = symbols.address("KiSchedulerApcTerminate")
        self._holders = {
            address: (structure, name)
            for routine, structure, name in _HOLDERS
            if (address := symbols.address(routine)) is not None
        }

    def attribute_member(self, apc: Apc, thread: Thread) -> Origin | None:
        """Return the origin of a KAPC that is a member of its thread."""
        name = apc.member
        if name is None:
            return None
        evidence = [f"the KAPC is {name} of the thread itself"]
        members = thread.members
        if name in ("SuspendApc", "SchedulerApc"):
            evidence += [
                f"{label} is {count}"
                for label, count in (("SuspendCount", members.suspend_count), ("FreezeCount", members.freeze_count))
                if count is not None
            ]
        if self._is_terminating(apc):
            evidence.append(f"KernelRoutine is {apc.kernel_routine}")
            return Origin(f"{name} of this thread: termination", tuple(evidence), ("KiSchedulerApc has turned it so",))
        purpose = _PURPOSES.get(name)
        if purpose is None:
            return Origin(f"{name} of this thread", tuple(evidence))
        return Origin(f"{name} of this thread: {purpose}?", tuple(evidence), (f"{name} serves {purpose}",))

    def _is_terminating(self, apc: Apc) -> bool:
        """Tell by the KernelRoutine whether SchedulerApc is in the user phase of a termination."""
        return (
            self._terminate is not None
            and apc.kernel_routine is not None
            and (apc.kernel_routine.address == self._terminate)
        )

    def attribute_holder(self, apc: Apc) -> Origin | None:
        """Return the origin of a KAPC whose KernelRoutine belongs to a structure that holds it."""
        held = self._holders.get(apc.kernel_routine.address) if apc.kernel_routine is not None else None
        member = self._symbols.member(*held) if held is not None else None
        if held is None or member is None:
            return None
        structure, name = held
        address = apc.address - member.offset
        evidence = [f"KernelRoutine is {apc.kernel_routine}, whose KAPC is a member {structure}.{name}: {address:#x}"]
        if structure != "_ETIMER":
            return Origin(f"{structure} {address:#x}?", tuple(evidence))
        kind = read_member(self._memory, self._symbols, structure, "KeTimer.Header.Type", address)
        if kind not in _TIMER_TYPES:
            shown = "unreadable" if kind is None else f"{kind}, no timer's"
            return Origin(f"timer {address:#x}? (KeTimer.Header.Type is {shown})", tuple(evidence))
        evidence.append(f"its KeTimer.Header.Type is {kind}, a timer's")
        routine = f" with the completion routine {apc.normal_routine}" if apc.normal_routine is not None else ""
        return Origin(
            f"timer {address:#x} expired", tuple(evidence), (f"the thread set the timer{routine} (NtSetTimer)",)
        )


HOLDERS_BOUND = 64
"""For how many reserve objects all handle tables are searched."""

PROCESSES_BOUND = 4096
"""In how many processes' handle tables."""


@dataclass(frozen=True, slots=True)
class Reserve:
    """A reserve object by the virtual address of its body, its first member, and who has a handle to it.

    `holders` is None where they were not looked for, `complete` whether every handle table could be read.
    """

    body: int
    in_use: int | None
    holders: tuple[Process, ...] | None
    complete: bool


class Reserves:
    """Reads reserve objects; handle tables are read once, for the first of them."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._tables: list[tuple[Process, Objects]] | None = None
        self._complete = True
        self._asked: dict[int, Reserve] = {}
        header = kernel.symbols.member("_OBJECT_HEADER", "Body")
        self._header = 0 if header is None else header.offset

    def around(self, kapc: int) -> Reserve:
        """Return the reserve object whose KAPC this is.

        Its body is { LONG InUse; KAPC }, with the KAPC at the alignment of a pointer (decompilations of
        PspUserApcReserveKernelRoutine, 7 to 11).
        """
        body = kapc - self._kernel.memory.pointer_size
        found = self._asked.get(body)
        if found is None:
            data = self._kernel.memory.read(body, 4)
            in_use = None if data is None else int.from_bytes(data, "little")
            holders = self._holders(body) if len(self._asked) < HOLDERS_BOUND and self._header else None
            found = self._asked[body] = Reserve(body, in_use, holders, self._complete)
        return found

    def _holders(self, body: int) -> tuple[Process, ...]:
        if self._tables is None:
            self._tables = self._read_tables()
        header = body - self._header
        return tuple(process for process, objects in self._tables if objects.has(header))

    def _read_tables(self) -> list[tuple[Process, Objects]]:
        kernel = self._kernel
        found: list[tuple[Process, Objects]] = []
        for process in kernel.processes.listed():
            if len(found) >= PROCESSES_BOUND:
                self._complete = False
                break
            table = read_member(kernel.memory, kernel.symbols, "_EPROCESS", "ObjectTable", process.address)
            objects, complete = read_handle_table(kernel, table) if table else (Objects(), table is not None)
            self._complete = self._complete and complete
            found.append((process, objects))
        return found
