"""What the parameters of bugchecks mean, a row per code, kind or violation: "Bug Check Code Reference"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

VERIFIER = 0xC4
"""DRIVER_VERIFIER_DETECTED_VIOLATION."""

_I = "IRQL"
_MDL, _FLAGS, _COUNT = "MDL", "MDL flags", "KernelApcDisable"

# Parameter 1, what happened, then parameters 2 to 4; "" for reserved ones, a leading @ for an address of code.
_ROWS: tuple[tuple[int, str, str, str, str], ...] = (
    (0x00, "allocation of no bytes", _I, "pool type", ""),
    (0x01, "paged pool allocated above APC_LEVEL", _I, "pool type", "bytes"),
    (0x02, "nonpaged pool allocated above DISPATCH_LEVEL", _I, "pool type", "bytes"),
    (0x10, "an address freed that was not allocated", "address", "", ""),
    (0x11, "paged pool freed above APC_LEVEL", _I, "pool type", "pool"),
    (0x12, "nonpaged pool freed above DISPATCH_LEVEL", _I, "pool type", "pool"),
    (0x13, "pool freed twice", "", "pool header", "contents of the header"),
    (0x14, "pool freed twice", "", "pool header", "contents of the header"),
    (0x16, "pool freed at a bad address", "", "pool", ""),
    (0x30, "KeRaiseIrql to a lower or impossible IRQL", _I, "requested IRQL", ""),
    (0x31, "KeLowerIrql to a higher or impossible IRQL", _I, "requested IRQL", "1: within a DPC"),
    (0x32, "KeReleaseSpinLock not at DISPATCH_LEVEL", _I, "spin lock", ""),
    (0x33, "fast mutex acquired above APC_LEVEL", _I, "fast mutex", ""),
    (0x34, "fast mutex released not at APC_LEVEL", _I, "fast mutex", ""),
    (0x35, "spin lock released not at DISPATCH_LEVEL", _I, "spin lock", "old IRQL"),
    (0x36, "queued spin lock released not at DISPATCH_LEVEL", _I, "lock's number", "old IRQL"),
    (0x37, "resource acquired with APCs enabled", _I, _COUNT, "resource"),
    (0x38, "resource released with APCs enabled", _I, _COUNT, "resource"),
    (0x39, "mutex acquired unsafely not at APC_LEVEL", _I, _COUNT, "mutex"),
    (0x3A, "mutex released unsafely not at APC_LEVEL", _I, _COUNT, "mutex"),
    (0x3C, "ObReferenceObjectByHandle with a bad handle", "handle", "object type", ""),
    (0x3D, "unaligned resource", "", "", "resource"),
    (0x3E, "KeLeaveCriticalRegion outside of a critical region", "", "", ""),
    (0x3F, "object without references referenced or dereferenced", "object", "new count", ""),
    (0x40, "KeAcquireSpinLockAtDpcLevel below DISPATCH_LEVEL", _I, "spin lock", ""),
    (0x41, "KeReleaseSpinLockFromDpcLevel below DISPATCH_LEVEL", _I, "spin lock", ""),
    (0x42, "KeAcquireSpinLock above DISPATCH_LEVEL", _I, "spin lock", ""),
    (0x51, "pool written past its end", "pool", "address written", "bytes charged"),
    (0x52, "pool written past its end", "pool", "", "bytes charged"),
    (0x53, "pool written past its end", "pool", "", ""),
    (0x54, "pool written past its end", "pool", "", ""),
    (0x59, "pool written past its end", "pool", "", ""),
    (0x60, "driver unloads with pool allocated", "paged bytes", "nonpaged bytes", "allocations"),
    (0x61, "pool allocated while the driver unloads", "paged bytes", "nonpaged bytes", "allocations"),
    (0x62, "driver unloads with pool allocated", "name of the driver", "", "allocations"),
    (0x70, "MmProbeAndLockPages above DISPATCH_LEVEL", _I, _MDL, "access mode"),
    (0x71, "MmProbeAndLockProcessPages above DISPATCH_LEVEL", _I, _MDL, "process"),
    (0x72, "MmProbeAndLockSelectedPages above DISPATCH_LEVEL", _I, _MDL, "process"),
    (0x73, "MmMapIoSpace above DISPATCH_LEVEL", _I, "physical address", "bytes"),
    (0x74, "MmMapLockedPages above DISPATCH_LEVEL", _I, _MDL, "access mode"),
    (0x75, "MmMapLockedPages for user mode above APC_LEVEL", _I, _MDL, "access mode"),
    (0x76, "MmMapLockedPagesSpecifyCache above DISPATCH_LEVEL", _I, _MDL, "access mode"),
    (0x77, "MmMapLockedPagesSpecifyCache for user mode above APC_LEVEL", _I, _MDL, "access mode"),
    (0x78, "MmUnlockPages above DISPATCH_LEVEL", _I, _MDL, ""),
    (0x79, "MmUnmapLockedPages above DISPATCH_LEVEL", _I, "address", _MDL),
    (0x7A, "MmUnmapLockedPages for user mode above APC_LEVEL", _I, "address", _MDL),
    (0x7B, "MmUnmapIoSpace above APC_LEVEL", _I, "address", "bytes"),
    (0x7C, "MmUnlockPages of pages never locked", _MDL, _FLAGS, ""),
    (0x7D, "MmUnlockPages of nonpaged pool", _MDL, _FLAGS, ""),
    (0x7E, "MDL pages allocated or freed above DISPATCH_LEVEL", _I, "DISPATCH_LEVEL", ""),
    (0x7F, "MmBuildMdlForNonPagedPool of paged pool", _I, _MDL, _FLAGS),
    (0x80, "KeSetEvent above DISPATCH_LEVEL", _I, "event", ""),
    (0x81, "MmMapLockedPages called", _MDL, _FLAGS, ""),
    (0x82, "MmMapLockedPagesSpecifyCache with BugCheckOnFailure", _MDL, _FLAGS, ""),
    (0x83, "MmMapIoSpace of pages not locked", "physical address", "bytes", "page frame number"),
    (0x85, "MmMapLockedPages of pages not locked", _MDL, "pages", "page frame number"),
    (0x89, "MDL with pages that are no memory", _MDL, "page in the MDL", "page number"),
    (0x91, "stack switched in an unsupported way", "", "", ""),
    (0xC0, "IoCallDriver with interrupts disabled", "IRP", "", ""),
    (0xC1, "dispatch routine returned with interrupts disabled", "@dispatch routine", "", ""),
    (0xC2, "fast I/O routine called with interrupts disabled", "", "", ""),
    (0xC3, "fast I/O routine returned with interrupts disabled", "@fast I/O routine", "", ""),
    (0xC5, "dispatch routine changed KernelApcDisable", "@dispatch routine", _COUNT, "before the call"),
    (0xC6, "fast I/O routine changed KernelApcDisable", "@fast I/O routine", _COUNT, "before the call"),
    (0xCA, "lookaside list initialized again", "lookaside list", "", ""),
    (0xCB, "lookaside list deleted that is not initialized", "lookaside list", "", ""),
    (0xCC, "pool with an active lookaside list freed", "lookaside list", "pool", "bytes"),
    (0xCD, "lookaside list of too small blocks", "lookaside list", "bytes of a block", "fewest bytes"),
    (0xD0, "ERESOURCE initialized again", "ERESOURCE", "", ""),
    (0xD1, "ERESOURCE deleted that is not initialized", "ERESOURCE", "", ""),
    (0xD2, "pool with an active ERESOURCE freed", "ERESOURCE", "pool", "bytes"),
    (0xD5, "remove lock released with another tag", "remove lock", "tag", ""),
    (0xD6, "remove lock released with another tag", "remove lock", "tag", "tag of the acquisition"),
    (0xDA, "driver unloads with a WMI callback", "driver", "@callback", ""),
    (0xDB, "device object deleted that WMI knows", "device object", "", ""),
    (0xDC, "EtwUnregister of an invalid handle", "", "", ""),
    (0xDD, "driver unloads without EtwUnregister", "@call of EtwRegister", "driver", "ETW handle"),
    (0xDF, "synchronization object in session space", "object", "", ""),
    (0xE0, "user-mode address passed to the kernel", "address", "bytes", ""),
    (0xE1, "synchronization object at an invalid or pageable address", "object", "", ""),
    (0xE2, "kernel-mode IRP with a user-mode address", "IRP", "address", ""),
    (0xE3, "user-mode address passed to a Zw routine", "@call", "address", ""),
    (0xE4, "malformed UNICODE_STRING passed to a Zw routine", "@call", "UNICODE_STRING", ""),
    (0xE5, "kernel routine called at the wrong IRQL", _I, "", ""),
    (0xE6, "Zw routine called above PASSIVE_LEVEL or with special APCs disabled", "@call", _I, "special APCs"),
    (0xEA, "push lock acquired with APCs enabled", _I, _COUNT, "push lock"),
    (0xEB, "push lock released with APCs enabled", _I, _COUNT, "push lock"),
    (0xF0, "memcpy of overlapping buffers", "destination", "source", "bytes"),
    (0xF5, "null handle referenced", "handle", "object type", ""),
    (0xF6, "user-mode handle referenced in kernel mode", "handle", "process", "@instruction"),
    (0xF7, "kernel handle referenced in user mode", "handle", "object type", "access mode"),
    (0xFA, "completion routine changed the IRQL", "@completion routine", "IRQL before", "IRQL after"),
    (0xFB, "completion routine changed KernelApcDisable", "@completion routine", _COUNT, "before the call"),
    (0x105, "IRP freed with ExFreePool", "IRP", "", ""),
    (0x10A, "pool quota charged to the idle process", "", "", ""),
    (0x10B, "pool quota charged in a DPC", "", "", ""),
    (0x110, "ISR changed the extended context", "@ISR", "context before", "context after"),
    (0x111, "ISR changed the IRQL", "@ISR", "IRQL before", "IRQL after"),
    (0x115, "shutdown takes longer than 20 minutes", "thread", "", ""),
    (0x11A, "KeEnterCriticalRegion above APC_LEVEL", _I, "", ""),
    (0x11B, "KeLeaveCriticalRegion above APC_LEVEL", _I, "", ""),
    (0x120, "wait above DISPATCH_LEVEL", "address of the IRQL", "object", "address of the timeout"),
    (0x121, "endless wait at DISPATCH_LEVEL", "address of the IRQL", "object", "address of the timeout"),
    (0x122, "wait with a timeout at DISPATCH_LEVEL", "address of the IRQL", "object", "address of the timeout"),
    (0x123, "user-mode wait for an object on the kernel stack", "object", "", ""),
    (0x130, "work item in session space", "work item", "", ""),
    (0x131, "work item in pageable memory", "work item", "", ""),
    (0x135, "cancelled IRP not completed in time", "IRP", "milliseconds", ""),
    (0x13A, "pool tracking damaged", "pool", "wrong value", "address of the value"),
    (0x13B, "pool tracking damaged", "pool", "address of the value", "page"),
    (0x13C, "pool tracking damaged", "pool", "wrong value", "address of the value"),
    (0x13D, "pool tracking damaged", "pool", "address of the value", "right value"),
    (0x13E, "pool freed at another address than was allocated", "pool", "tracked pool", ""),
    (0x13F, "pool freed with another size than was allocated", "pool", "bytes", ""),
    (0x140, "MDL of pageable memory that is not locked", _I, _MDL, "address"),
    (0x1000, "resource acquired twice by one thread", "resource", "", ""),
    (0x1001, "order of locks violated", "resource", "", ""),
    (0x1002, "resource acquired that is not initialized", "resource", "", ""),
    (0x1003, "resource released out of order", "resource", "resource to release first", ""),
    (0x1004, "resource released by another thread", "resource", "owner", "current thread"),
    (0x1005, "resource initialized twice", "resource", "", ""),
    (0x1007, "resource released that is not acquired", "resource", "", ""),
    (0x1008, "lock acquired with a routine of another kind", "lock", "", ""),
    (0x1009, "lock released with a routine of another kind", "lock", "", ""),
    (0x100A, "thread ended with a lock", "owner", "", ""),
    (0x100B, "lock deleted that a thread owns", "lock", "owner", ""),
)

_RULES = range(0x20002, 0x100000)
"""Parameter 1 of violations of a DDI compliance rule (since 8)."""

_RULE = ("a DDI compliance rule violated", "text of the rule", "state of the rule")


def violation(first: int) -> tuple[Parameter, ...] | None:
    """Return the parameters of 0xC4 by the first of them; None for a violation that is not in the table."""
    if first in _RULES:
        return tuple(map(Parameter, _RULE))
    row = next((row for row in _ROWS if row[0] == first), None)
    return None if row is None else tuple(map(_parameter, row[1:]))


def _parameter(text: str) -> Parameter:
    return Parameter(text[1:], Kind.CODE) if text.startswith("@") else Parameter(text)


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
