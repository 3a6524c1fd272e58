"""What the parameters of bugchecks mean, a row for each code or kind: Microsoft's "Bug Check Code Reference".

The rows are in short words of ours. Each code has a page in that reference ("Bug Check 0xA: IRQL_NOT_LESS_OR_EQUAL"),
whose table of parameters the rows follow, from the edition of 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto


class Kind(Enum):
    """How a parameter's value is explained further."""

    PLAIN = auto()
    CODE = auto()
    """An address of code, which is named."""
    STATUS = auto()
    """An NTSTATUS, which is named."""
    IRQLS = auto()
    """The IRQLs that 0xC8 packs into one value."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: what it is, and what its values mean where they are numbered."""

    text: str
    kind: Kind = Kind.PLAIN
    values: Mapping[int, str] = field(default_factory=dict)


RESERVED = Parameter("")
_IRQL = Parameter("IRQL")
_REFERENCED = Parameter("memory referenced")
_EXCEPTION = Parameter("exception", Kind.STATUS)
_RAISED = Parameter("address of the exception", Kind.CODE)
_RECORD, _CONTEXT = Parameter("exception record"), Parameter("context record")
_ROUTINE = Parameter("routine", Kind.CODE)

# 0xA: bit 0 is a write, bit 3 an execution. 0xD1 documents 2 as an execution, too.
_ACCESS = {0: "read", 1: "write", 8: "execute"}
_ACCESS_D1 = {**_ACCESS, 2: "execute"}
# 0x50: 1 is a write before Windows 10 (1507); since then the bits are those of the processor's error code, where bit 1
# is a write and bit 4 an execution, beside bit 0 for a page that is present (Intel SDM, "Page-Fault Exception").
_ACCESS_50 = {0: "read", 1: "write", 2: "write", 3: "write", 8: "execute", 0x10: "execute", 0x11: "execute"}

PARAMETERS: dict[int, tuple[Parameter, ...]] = {
    0x1: (
        _ROUTINE,
        Parameter("ApcStateIndex"),
        Parameter("CombinedApcDisable"),
        Parameter("call", values={0: "system call", 1: "worker routine"}),
    ),
    0x5: (
        Parameter("process to attach to"),
        Parameter("process attached to"),
        Parameter("ApcStateIndex"),
        Parameter("a DPC runs", values={0: "no"}),
    ),
    0x6: (),
    0xA: (
        _REFERENCED,
        _IRQL,
        Parameter("access", values=_ACCESS),
        Parameter("instruction", Kind.CODE),
    ),
    0x1E: (_EXCEPTION, _RAISED, Parameter("parameter 0 of the exception"), Parameter("parameter 1 of the exception")),
    0x20: (Parameter("LIST_ENTRY of the APC"), Parameter("CombinedApcDisable"), _IRQL, RESERVED),
    0x3B: (_EXCEPTION, Parameter("instruction", Kind.CODE), _CONTEXT, RESERVED),
    0x50: (
        _REFERENCED,
        Parameter("access", values=_ACCESS_50),
        Parameter("instruction", Kind.CODE),
        Parameter(
            "page fault",
            values={
                0x0: "freed page table entry",
                0x2: "no page table",
                0x3: "memory of another session",
                0x4: "address not canonical",
            },
        ),
    ),
    0x7E: (_EXCEPTION, _RAISED, _RECORD, _CONTEXT),
    0xC8: (
        Parameter("IRQLs", Kind.IRQLS),
        Parameter("KernelRoutine", Kind.CODE),
        Parameter("KAPC"),
        Parameter("NormalRoutine", Kind.CODE),
    ),
    0xD1: (
        _REFERENCED,
        _IRQL,
        Parameter("access", values=_ACCESS_D1),
        Parameter("instruction", Kind.CODE),
    ),
    0x139: (
        Parameter(
            "corruption",
            values={
                0: "stack buffer overrun, old /GS",
                1: "illegal virtual function table",
                2: "stack buffer overrun, /GS cookie",
                3: "LIST_ENTRY",
                5: "invalid parameter that is fatal",
                6: "stack cookie not initialized",
                7: "fatal exit requested",
                8: "array bounds",
                9: "unsafe registry query",
                10: "invalid target of an indirect call",
                11: "invalid memory write",
                12: "invalid fiber context",
                13: "invalid register context",
                14: "invalid reference count",
                18: "invalid jmp_buf",
                19: "read-only data modified",
                20: "cryptographic self-test failed",
                21: "invalid exception chain",
                22: "cryptographic library error",
                23: "invalid call within DllMain",
                24: "invalid image base",
                25: "delay load import not protected",
                26: "unsafe extension called",
                27: "deprecated service invoked",
                28: "buffer access out of bounds",
                29: "RTL_BALANCED_NODE",
                37: "switch jump table out of range",
                38: "invalid target of longjmp",
                39: "export-suppressed call target",
            },
        ),
        Parameter("trap frame"),
        _RECORD,
        RESERVED,
    ),
}
"""The parameters of a code in their order; an empty tuple for a code whose parameters are all 0."""

_ACCESSED = {0: "read", 1: "write", 8: "execute"}  # EXCEPTION_RECORD.ExceptionInformation[0] (winnt.h)

_POWER_BLOCK = Parameter("nt!_TRIAGE_9F_POWER; the FDO before 7")
_DEVICE = Parameter("device object")
_TICKS = Parameter("nt!DPC_WATCHDOG_GLOBAL_TRIAGE_BLOCK")
_PTE = Parameter("PTE")

KINDS: dict[tuple[int, int], tuple[Parameter, ...]] = {
    (0x1E, 0xC0000005): (
        _EXCEPTION,
        _RAISED,
        Parameter("access", values=_ACCESSED),
        Parameter("memory referenced"),
    ),
    (0x9F, 0x1): (Parameter("a device object is freed with a power request outstanding"), _DEVICE),
    (0x9F, 0x2): (
        Parameter("a system power IRP was completed without PoStartNextPowerIrp"),
        Parameter("target's device object"),
        _DEVICE,
        Parameter("driver object"),
    ),
    (0x9F, 0x3): (
        Parameter("a device object has blocked an IRP for too long"),
        Parameter("PDO of the stack"),
        _POWER_BLOCK,
        Parameter("IRP"),
    ),
    (0x9F, 0x4): (
        Parameter("the power transition timed out waiting for Plug and Play"),
        Parameter("timeout in seconds"),
        Parameter("thread that holds the PnP lock"),
        Parameter("nt!_TRIAGE_9F_PNP"),
    ),
    (0x9F, 0x5): (
        Parameter("a device did not complete a directed power transition in time"),
        Parameter("PDO of the stack"),
        Parameter("POP_FX_DEVICE"),
    ),
    (0x9F, 0x6): (
        Parameter("a device did not complete its callback for a directed power transition"),
        Parameter("POP_FX_DEVICE"),
        Parameter("transition", values={0: "power up", 1: "power down"}),
    ),
    (0x9F, 0x500): (
        Parameter("a system power IRP was completed without PoStartNextPowerIrp"),
        RESERVED,
        Parameter("target's device object"),
        _DEVICE,
    ),
    (0x133, 0): (
        Parameter("a single DPC or ISR ran for too long"),
        Parameter("ticks that it ran"),
        Parameter("ticks that it may run"),
        _TICKS,
    ),
    (0x133, 1): (
        Parameter("too long at DISPATCH_LEVEL or above, all in all"),
        Parameter("watchdog period in ticks"),
        _TICKS,
    ),
    (0x1A, 0x1): (Parameter("reference count of a fork clone block corrupt"),),
    (0x1A, 0x31): (Parameter("relocations or code of an image corrupt"),),
    (0x1A, 0x403): (Parameter("page table and PFN out of step"), _PTE),
    (0x1A, 0x411): (Parameter("PTE corrupt"), _PTE),
    (0x1A, 0x777): (Parameter("system cache address unlocked that is not locked"),),
    (0x1A, 0x778): (Parameter("last system cache view used"),),
    (0x1A, 0x780): (Parameter("PTEs of a system cache view corrupt"),),
    (0x1A, 0x781): (Parameter("PTEs of a system cache view corrupt"),),
    (0x1A, 0x1000): (Parameter("cached page mapped as not cached"),),
    (0x1A, 0x1010): (Parameter("pageable section unlocked that is not locked"),),
    (0x1A, 0x1233): (Parameter("page mapped that is not locked"), Parameter("page frame number")),
    (0x1A, 0x1234): (Parameter("pageable section locked that does not exist"),),
    (0x1A, 0x1235): (Parameter("MDL with an invalid mapping protected"),),
    (0x1A, 0x3451): (Parameter("PTEs of a swapped kernel stack corrupt"),),
    (0x1A, 0x4477): (Parameter("unallocated user address of System written"), Parameter("address")),
    (0x1A, 0x5003): (Parameter("free list of the working set corrupt"),),
    (0x1A, 0x5100): (Parameter("allocation bitmap corrupt"),),
    (0x1A, 0x5200): (
        Parameter("page on a free pool list corrupt"),
        Parameter("free pool block"),
        Parameter("value found"),
        Parameter("value expected"),
    ),
    (0x1A, 0x8884): (Parameter("priorities of two standby pages differ"),),
    (0x1A, 0x8888): (Parameter("structures of the memory manager corrupt"),),
    (0x1A, 0x8889): (Parameter("structures of the memory manager corrupt"),),
    (0x1A, 0x888A): (Parameter("structures of the memory manager corrupt, likely a PTE or PFN"),),
    (0x1A, 0x41283): (Parameter("working set index in a PTE corrupt"),),
    (0x1A, 0x41284): (Parameter("PTE or working set list corrupt"),),
    (0x1A, 0x41286): (Parameter("invalid pool address freed"),),
    (0x1A, 0x41287): (Parameter("page fault with the working set lock held"), _REFERENCED),
    (0x1A, 0x41785): (Parameter("working set list corrupt"),),
    (0x1A, 0x41790): (Parameter("page table page corrupt"), Parameter("its PFN; x86: used PTEs")),
    (0x1A, 0x41792): (Parameter("PTE corrupt"), _PTE, Parameter("its low part"), Parameter("its high part")),
    (0x1A, 0x61940): (Parameter("PDE invalidated"),),
    (0x1A, 0x61941): (Parameter("paging hierarchy corrupt"), Parameter("address that faulted")),
    (0x1A, 0x61946): (Parameter("flawed MDL, most likely of MmProbeAndLockPages"),),
    (0x1A, 0x61949): (Parameter("IoPageFrameNode is null"), Parameter("page frame index")),
    (0x1A, 0x3030308): (Parameter("range to remove is in use by the loader"), Parameter("highest physical page")),
}
"""The parameters of a code whose first parameter says of which kind it is; the others of a row that is short are
reserved."""

# NTSTATUS of exceptions (ntstatus.h).
STATUS = {
    0x80000001: "STATUS_GUARD_PAGE_VIOLATION",
    0x80000002: "STATUS_DATATYPE_MISALIGNMENT",
    0x80000003: "STATUS_BREAKPOINT",
    0x80000004: "STATUS_SINGLE_STEP",
    0xC0000005: "STATUS_ACCESS_VIOLATION",
    0xC0000006: "STATUS_IN_PAGE_ERROR",
    0xC0000008: "STATUS_INVALID_HANDLE",
    0xC000001D: "STATUS_ILLEGAL_INSTRUCTION",
    0xC0000025: "STATUS_NONCONTINUABLE_EXCEPTION",
    0xC0000026: "STATUS_INVALID_DISPOSITION",
    0xC0000028: "STATUS_BAD_STACK",
    0xC0000029: "STATUS_INVALID_UNWIND_TARGET",
    0xC000008C: "STATUS_ARRAY_BOUNDS_EXCEEDED",
    0xC0000094: "STATUS_INTEGER_DIVIDE_BY_ZERO",
    0xC0000095: "STATUS_INTEGER_OVERFLOW",
    0xC0000096: "STATUS_PRIVILEGED_INSTRUCTION",
    0xC000009A: "STATUS_INSUFFICIENT_RESOURCES",
    0xC000009C: "STATUS_DEVICE_DATA_ERROR",
    0xC00000FD: "STATUS_STACK_OVERFLOW",
    0xC0000374: "STATUS_HEAP_CORRUPTION",
    0xC0000409: "STATUS_STACK_BUFFER_OVERRUN",
    0xC0000420: "STATUS_ASSERTION_FAILURE",
}
