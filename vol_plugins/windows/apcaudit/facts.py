"""What Windows guarantees about threads and APCs: numbers, names and rules, each with its source."""

from __future__ import annotations

APC_OBJECT = 18
"""_KAPC.Type (KOBJECTS.ApcObject): ReactOS sdk/include/ndk/ketypes.h; 0x12 in SchedulerApc of 51 genuine dumps."""

PROCESS_OBJECT = 3
THREAD_OBJECT = 6
"""Header.Type of _KPROCESS and _KTHREAD (KOBJECTS.ProcessObject, ThreadObject): same sources."""

APC_LEVEL = 1
"""IRQL at and above which no APC is delivered (WDK, wdm.h)."""

ID_STEP = 4
"""Process and thread IDs count in steps of four (Windows Internals, "Object handles"): the rest is the caller's."""

SYSTEM_PID = 4
"""ID of the System process from XP on (Windows Internals, "System process")."""

LAST_ENVIRONMENT = 3
"""KAPC.ApcStateIndex at most: InsertApcEnvironment (KAPC_ENVIRONMENT: ReactOS sdk/include/ndk/ketypes.h)."""

KERNEL_MODE = 0
USER_MODE = 1
"""KAPC.ApcMode as KPROCESSOR_MODE (WDK, wdm.h)."""

INITIALIZED, READY, RUNNING, STANDBY, TERMINATED, WAITING, TRANSITION, DEFERRED_READY, GATE_WAIT, IN_SWAP = range(10)

# KTHREAD_STATE, enumerated in the public PDBs from Server 2003 on; 8 is GateWait from there to 7, obsolete since 8,
# 9 came with 10.
THREAD_STATES = (
    "Initialized",
    "Ready",
    "Running",
    "Standby",
    "Terminated",
    "Waiting",
    "Transition",
    "DeferredReady",
    "GateWait",
    "WaitingForProcessInSwap",
)

WAITING_STATES = frozenset({WAITING, GATE_WAIT})
"""States in which _KTHREAD.WaitIrql tells the IRQL that the wait began at, and which a kernel APC ends.

WaitingForProcessInSwap is none of them: there the wait has ended already, and only the process's pages are waited for.
"""

# KWAIT_REASON (WDK, wdm.h); the numbers past 36 came with Windows 8, 10 and 11.
WAIT_REASONS = (
    "Executive",
    "FreePage",
    "PageIn",
    "PoolAllocation",
    "DelayExecution",
    "Suspended",
    "UserRequest",
    "WrExecutive",
    "WrFreePage",
    "WrPageIn",
    "WrPoolAllocation",
    "WrDelayExecution",
    "WrSuspended",
    "WrUserRequest",
    "WrEventPair",
    "WrQueue",
    "WrLpcReceive",
    "WrLpcReply",
    "WrVirtualMemory",
    "WrPageOut",
    "WrRendezvous",
    "WrKeyedEvent",
    "WrTerminated",
    "WrProcessInSwap",
    "WrCpuRateControl",
    "WrCalloutStack",
    "WrKernel",
    "WrResource",
    "WrPushLock",
    "WrMutex",
    "WrQuantumEnd",
    "WrDispatchInt",
    "WrPreempted",
    "WrYieldExecution",
    "WrFastMutex",
    "WrGuardedMutex",
    "WrRundown",
    "WrAlertByThreadId",
    "WrDeferredPreempt",
    "WrPhysicalFault",
    "WrIoRing",
    "WrMdlCache",
    "WrRcu",
)

# Members that a Windows lacks because what they count does not exist there, so that 0 is the truth:
# guarded regions came with Server 2003 (WDK, "Critical Regions and Guarded Regions"), and before 8.1
# KiDeliverApc kept no flag of a special kernel APC, which then runs at APC_LEVEL and shows in WaitIrql.
ZERO_WHERE_LACKING = frozenset({"special_apc_disable", "special_apc_in_progress"})

# Stop codes that tell of APCs (WDK, "Bug Check Code Reference").
APC_INDEX_MISMATCH = 0x1
INVALID_PROCESS_ATTACH_ATTEMPT = 0x5
INVALID_PROCESS_DETACH_ATTEMPT = 0x6
KERNEL_APC_PENDING_DURING_EXIT = 0x20
IRQL_UNEXPECTED_VALUE = 0xC8
KERNEL_SECURITY_CHECK_FAILURE = 0x139

BUGCHECK_NAMES = {
    APC_INDEX_MISMATCH: "APC_INDEX_MISMATCH",
    INVALID_PROCESS_ATTACH_ATTEMPT: "INVALID_PROCESS_ATTACH_ATTEMPT",
    INVALID_PROCESS_DETACH_ATTEMPT: "INVALID_PROCESS_DETACH_ATTEMPT",
    KERNEL_APC_PENDING_DURING_EXIT: "KERNEL_APC_PENDING_DURING_EXIT",
    IRQL_UNEXPECTED_VALUE: "IRQL_UNEXPECTED_VALUE",
    KERNEL_SECURITY_CHECK_FAILURE: "KERNEL_SECURITY_CHECK_FAILURE",
}

FAST_FAIL_CORRUPT_LIST_ENTRY = 3
"""Parameter 1 of KERNEL_SECURITY_CHECK_FAILURE (WDK, wdm.h): a LIST_ENTRY was found corrupt."""

# Symbols that name APC routines contain one of these; identical code is folded by the linker, and then
# one address carries dozens of names of which these are the ones an APC can mean (seen in every public
# PDB since 8: 83 names for the empty routine that KiSchedulerApcNop and KiSchedulerApcRundown share).
APC_NAME_PARTS = (
    "Apc",
    "IopCompleteRequest",
    "IopCompletePageWrite",
    "IopUserCompletion",
    "IopUserRundown",
    "KiSuspend",
)


# KernelRoutines whose KAPC is a local variable of a caller that waits for it: ReactOS, ntoskrnl/ps/debug.c
# (PsGetContextThread, PsSetContextThread) and ntoskrnl/ex/work.c (ExSwapinWorkerThreads).
STACK_APC_ROUTINES = frozenset({"PspGetSetContextSpecialApc", "ExpSetSwappingKernelApc"})


def is_wow64_encoded(address: int) -> bool:
    """Tell whether a NormalRoutine is a 32-bit address as a WoW64 thread's APC carries it.

    wow64.dll negates and shifts it (Wow64ApcRoutine; ReactOS and phnt document RtlQueueApcWow64Thread), so that it
    looks like a kernel address. Above the HAL's region (0xffffffffffc00000) no user address is encoded: what
    is there would decode to less than 0x100000.
    """
    decoded = -address & 0xFFFFFFFFFFFFFFFF
    return decoded % 4 == 0 and 0x100000 <= decoded >> 2 < 1 << 32


def state_name(state: int) -> str:
    """Name a _KTHREAD.State."""
    return THREAD_STATES[state] if 0 <= state < len(THREAD_STATES) else f"State{state}"


def wait_reason_name(reason: int) -> str:
    """Name a _KTHREAD.WaitReason."""
    return WAIT_REASONS[reason] if 0 <= reason < len(WAIT_REASONS) else f"Reason{reason}"


def bugcheck_name(code: int) -> str:
    """Name a stop code as `0x6 (INVALID_PROCESS_DETACH_ATTEMPT)`, the number alone where APCs play no part."""
    name = BUGCHECK_NAMES.get(code)
    return f"{code:#x} ({name})" if name else f"{code:#x}"
