"""What the parameters of bugcheck 0xC4 mean, a row for each violation that Driver Verifier tells apart.

Source: Microsoft, "Bug Check 0xC4: DRIVER_VERIFIER_DETECTED_VIOLATION", in short words of ours. Violations of the
virtual switch (0xA001 to 0xA00D) and of miniport drivers are left out; their numbers are shown.
"""

from __future__ import annotations

from .bugcheck_reference import Kind, Parameter

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
