"""What Windows guarantees about threads and APCs: numbers, names and rules, each with its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

# KWAIT_REASON (WDK, wdm.h), for a symbol file without that enumeration. XP's ends at WrKernel, 26; the numbers past 36
# came with Windows 8, 10 and 11, and from 19041 on 14 is WrSpare0 (public PDBs).
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

PAGE_IN, DELAY_EXECUTION, USER_REQUEST, WR_PAGE_IN = 2, 4, 6, 9
WR_USER_REQUEST, WR_QUEUE, WR_LPC_RECEIVE = 13, 15, 16

PAGE_FAULT_REASONS = frozenset({PAGE_IN, WR_PAGE_IN})
"""Wait reasons of a thread whose page is read in; before 8.1 all that shows a page fault within a special APC."""

USER_WAIT_REASONS = frozenset({DELAY_EXECUTION, USER_REQUEST, WR_USER_REQUEST, WR_QUEUE, WR_LPC_RECEIVE})
"""Wait reasons of a thread that a program let wait, and that returns to user mode afterwards."""

PREEMPTED_REASONS = frozenset({30, 31, 32, 33, 38})
"""WrQuantumEnd, WrDispatchInt, WrPreempted, WrYieldExecution, WrDeferredPreempt: the thread did not wait, its processor
was taken from it. WaitIrql is then APC_LEVEL whatever it held (ReactOS ke/dpc.c KiQuantumEnd, ke/thrdschd.c
NtYieldExecution). XP's enumeration ends before them."""

FIRST_SUSPEND_STATE, LAST_SUSPEND_STATE = 3, 6
"""_KTHREAD.WaitRegister.State of a thread suspended in place: WaitFirstSuspendState to WaitLastSuspendState
(KWAIT_STATE in the public PDBs from 8.1 Update, 9600.17415, to 11; that of 7 and of the first 8.1 ends at 2)."""

SUSPEND_STATES = {3: "WaitSuspendInProgress", 4: "WaitSuspended", 5: "WaitResumeInProgress", 6: "WaitResumeAborted"}

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

# What the IRQL is that a crash saves where the code that calls KeBugCheck has raised it itself: that IRQL says nothing
# of a lock that the thread held before.
BUGCHECK_IRQLS = {
    # ReactOS ke/procobj.c, KeUnstackDetachProcess: it holds the thread's APC queue lock.
    INVALID_PROCESS_DETACH_ATTEMPT: "KeUnstackDetachProcess has raised it for the lock of the APC queue",
    # ReactOS ke/apc.c, end of KiDeliverApc: APC_LEVEL is its own.
    INVALID_PROCESS_ATTACH_ATTEMPT: "KiDeliverApc runs at APC_LEVEL",
    # ReactOS ke/apc.c, KiDeliverApc: it is the one that an APC routine returned at.
    IRQL_UNEXPECTED_VALUE: "an APC routine has left it",
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


# Routines of the kernel whose KAPC is a local variable of a caller that waits for it. Where the KernelRoutine is an
# empty function, which the linker folds with dozens of others, the NormalRoutine tells.
STACK_APC_ROUTINES = frozenset(
    {
        # ReactOS ps/debug.c: PsGetContextThread, PsSetContextThread.
        "PspGetSetContextSpecialApc",
        # ReactOS ex/work.c: ExSwapinWorkerThreads.
        "ExpSetSwappingKernelApc",
        # Public PDBs from 7, 8, 11 on; that their callers wait: decompilations of 10 and 11.
        "EtwpThreadRundownApc",
        "IopCancelIrpsInCurrentThreadListSpecialApc",
        "IopCancelIrpsInCurrentThreadListApcRoutine",
        "PspCriticalProcessDeathInfoCollectApc",
        "MiAttemptPageFileReductionApc",
        "MiTrimUnusedPageFileRegionsApc",
        "MiStoreRundownWritesApc",
    }
)

SPECIAL_USER_APC_ROUTINE = "KeSpecialUserApcKernelRoutine"
"""KernelRoutine of a special user APC, 17763 and later. In its first phase ApcMode is KernelMode and NormalRoutine that
of the user: the KernelRoutine clears it before anything calls it, and queues the KAPC again as UserMode."""


@dataclass(frozen=True, slots=True)
class EmbeddedApc:
    """A KAPC that is a member of _KTHREAD or _ETHREAD, and the routines that the kernel gives it.

    A routine is named by its symbol; "" stands for a null pointer. `own` is the NormalRoutine by which the KAPC is one
    that may stay in a list for hours, None where none may. `prefix` begins the names of its members in ThreadMembers.
    """

    member: str
    prefix: str
    kernel: tuple[str, ...]
    rundown: tuple[str, ...]
    normal: tuple[str, ...]
    own: str | None = None
    may_be_zero: bool = False


EMBEDDED_APCS = (
    # ReactOS ke/thrdobj.c, KeInitThread: XP to 7.
    EmbeddedApc("SuspendApc", "suspend_apc", ("KiSuspendNop",), ("KiSuspendRundown",), ("KiSuspendThread",)),
    # Public PDBs from 8 on. KiSchedulerApc itself puts KiSchedulerApcTerminate in when the thread is to end.
    EmbeddedApc(
        "SchedulerApc",
        "suspend_apc",
        ("KiSchedulerApcNop", "KiSchedulerApcTerminate"),
        ("KiSchedulerApcRundown",),
        ("KiSchedulerApc",),
        own="KiSchedulerApc",
    ),
    # Public PDBs of 24H2: KiQueueTebUpdateApc fills it in when it is first needed. Its KernelRoutine is the empty
    # function that KiSchedulerApcNop is folded with.
    EmbeddedApc(
        "UpdateTebApc",
        "teb_apc",
        ("KiSchedulerApcNop",),
        ("",),
        ("KiUpdateTebApc",),
        own="KiUpdateTebApc",
        may_be_zero=True,
    ),
)

# (KernelRoutine, NormalRoutine) of the KAPC that ends a thread when it next returns to user mode: a user-mode APC whose
# NormalRoutine is the kernel's. XP to 7: ReactOS ps/kill.c, PspExitNormalApc. Since 8 KiSchedulerApc makes one of
# SchedulerApc (public PDBs, decompilations of 22H2).
TERMINATION_APCS = (("PsExitSpecialApc", "PspExitNormalApc"), ("KiSchedulerApcTerminate", "KiSchedulerApc"))

ROUTINES = frozenset(
    {
        SPECIAL_USER_APC_ROUTINE,
        *STACK_APC_ROUTINES,
        *(name for pair in TERMINATION_APCS for name in pair),
        *(name for row in EMBEDDED_APCS for name in (*row.kernel, *row.rundown, *row.normal) if name),
    }
)
"""The kernel's routines that rules ask for, by symbol. They are compared by address: of folded code the symbol that an
address is printed with is one of many."""


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


def wait_reason_name(reason: int, reasons: Sequence[str] = WAIT_REASONS) -> str:
    """Name a _KTHREAD.WaitReason, by the kernel's own enumeration where it is at hand."""
    return reasons[reason] if 0 <= reason < len(reasons) else f"Reason{reason}"


def bugcheck_name(code: int) -> str:
    """Name a stop code as `0x6 (INVALID_PROCESS_DETACH_ATTEMPT)`, the number alone where APCs play no part."""
    name = BUGCHECK_NAMES.get(code)
    return f"{code:#x} ({name})" if name else f"{code:#x}"
