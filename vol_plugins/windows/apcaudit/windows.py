"""Facts about Windows that the checks need: constants and names, each with its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PAGE_SIZE = 0x1000
"""In bytes, on x86 and x64 (WDK, wdm.h)."""

SHARED_USER_DATA = {4: 0xFFDF0000, 8: 0xFFFFF78000000000}
"""The kernel's address of KUSER_SHARED_DATA, by the size of a pointer in bytes (KI_USER_SHARED_DATA: WDK, wdm.h)."""

APC_OBJECT = 18
"""_KAPC.Type (KOBJECTS.ApcObject): ReactOS sdk/include/ndk/ketypes.h; SchedulerApc has it in 51 genuine dumps."""

PROCESS_OBJECT = 3
THREAD_OBJECT = 6
"""Header.Type of _KPROCESS and _KTHREAD (KOBJECTS.ProcessObject, ThreadObject): same sources."""

APC_LEVEL = 1
"""IRQL at and above which no APC is delivered (WDK, wdm.h)."""

ID_STEP = 4
"""Process and thread IDs are multiples of four (Windows Internals, "Object handles"); callers may use bits 0 and 1."""

SYSTEM_PID = 4
SYSTEM_NAME = "System"
"""ID and name of the System process since XP (Windows Internals, "System process")."""

LAST_ENVIRONMENT = 3
"""Highest KAPC.ApcStateIndex: InsertApcEnvironment (KAPC_ENVIRONMENT: ReactOS sdk/include/ndk/ketypes.h)."""

KERNEL_MODE = 0
USER_MODE = 1
"""KAPC.ApcMode as KPROCESSOR_MODE (WDK, wdm.h)."""

INITIALIZED, READY, RUNNING, STANDBY, TERMINATED, WAITING, TRANSITION, DEFERRED_READY, GATE_WAIT, IN_SWAP = range(10)

# KTHREAD_STATE, in the public PDBs since Server 2003. GateWait (8) was used to Windows 7 and is obsolete since 8;
# WaitingForProcessInSwap (9) came with 10.
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
"""States in which _KTHREAD.WaitIrql is the IRQL at which the wait began, and from which a kernel APC wakes the thread.

WaitingForProcessInSwap is not one of them: the wait is over and only the process has to be swapped in.
"""

# KWAIT_REASON (WDK, wdm.h), for symbol files without that enumeration. XP's ends at WrKernel (26); the values above 36
# came with Windows 8, 10 and 11; since 19041 the value 14 is WrSpare0 (public PDBs).
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
"""Wait reasons during a page fault; before 8.1 the only sign of a page fault within a special kernel APC."""

USER_WAIT_REASONS = frozenset({DELAY_EXECUTION, USER_REQUEST, WR_USER_REQUEST, WR_QUEUE, WR_LPC_RECEIVE})
"""Wait reasons of waits that user mode requested; the thread returns to user mode afterwards."""

PREEMPTED_REASONS = frozenset({30, 31, 32, 33, 38})
"""WrQuantumEnd, WrDispatchInt, WrPreempted, WrYieldExecution, WrDeferredPreempt: the thread was preempted and did not
wait. WaitIrql is then always APC_LEVEL (ReactOS ke/dpc.c KiQuantumEnd, ke/thrdschd.c NtYieldExecution). XP's
enumeration ends before them."""

FIRST_SUSPEND_STATE, LAST_SUSPEND_STATE = 3, 6
"""_KTHREAD.WaitRegister.State of a thread that is suspended during a wait: WaitFirstSuspendState to
WaitLastSuspendState (KWAIT_STATE in the public PDBs from 8.1 Update, 9600.17415, to 11; in 7 and the first 8.1 the
enumeration ends at 2)."""

SUSPEND_STATES = {3: "WaitSuspendInProgress", 4: "WaitSuspended", 5: "WaitResumeInProgress", 6: "WaitResumeAborted"}

# Members whose absence means 0, because the Windows that lacks the member lacks the mechanism too: guarded regions came
# with Server 2003 (WDK, "Critical Regions and Guarded Regions"); before 8.1 KiDeliverApc set no flag while it runs a
# special kernel APC, which shows in WaitIrql instead, since it runs at APC_LEVEL.
ZERO_WHERE_LACKING = frozenset({"special_apc_disable", "special_apc_in_progress"})

# The first build of each version: major, minor (Microsoft, "Operating System Version" and "Windows 10 release
# information"). Windows 11 is 10.0, too.
_VERSIONS = (
    (2195, 5, 0),
    (2600, 5, 1),
    (3790, 5, 2),
    (6000, 6, 0),
    (7600, 6, 1),
    (9200, 6, 2),
    (9600, 6, 3),
    (10240, 10, 0),
)


def version_of_build(build: int) -> tuple[int, int, int] | None:
    """Return the version of a build as (major, minor, build), None for a build before Windows 2000."""
    known = [(major, minor, build) for first, major, minor in _VERSIONS if first <= build]
    return known[-1] if known else None


# Bugcheck codes that concern APCs (WDK, "Bug Check Code Reference").
APC_INDEX_MISMATCH = 0x1
INVALID_PROCESS_ATTACH_ATTEMPT = 0x5
INVALID_PROCESS_DETACH_ATTEMPT = 0x6
KERNEL_APC_PENDING_DURING_EXIT = 0x20
IRQL_UNEXPECTED_VALUE = 0xC8
KERNEL_SECURITY_CHECK_FAILURE = 0x139

# Bugchecks whose caller had raised the IRQL itself, and why. The IRQL that the crash saved then says nothing about
# locks that the thread held before.
BUGCHECK_IRQLS = {
    # ReactOS ke/procobj.c, KeUnstackDetachProcess: it holds the thread's APC queue lock.
    INVALID_PROCESS_DETACH_ATTEMPT: "KeUnstackDetachProcess has raised it for the lock of the APC queue",
    # ReactOS ke/apc.c, end of KiDeliverApc: it is called at APC_LEVEL.
    INVALID_PROCESS_ATTACH_ATTEMPT: "KiDeliverApc runs at APC_LEVEL",
    # ReactOS ke/apc.c, KiDeliverApc: the IRQL at which an APC routine returned.
    IRQL_UNEXPECTED_VALUE: "an APC routine has left it",
}

FAST_FAIL_CORRUPT_LIST_ENTRY = 3
"""Parameter 1 of KERNEL_SECURITY_CHECK_FAILURE for a corrupt LIST_ENTRY (WDK, wdm.h)."""

# The names of APC routines contain one of these. The linker folds identical functions, so that one address has dozens
# of names, and only these can be an APC routine's (public PDBs since 8: KiSchedulerApcNop and KiSchedulerApcRundown are
# two of the 83 names of one empty function).
APC_NAME_PARTS = (
    "Apc",
    "IopCompleteRequest",
    "IopCompletePageWrite",
    "IopUserCompletion",
    "IopUserRundown",
    "KiSuspend",
)


# Routines of KAPCs that are local variables of a kernel function, which waits for the APC. Where the KernelRoutine is
# an empty function, which the linker folds with dozens of others, the NormalRoutine is listed.
STACK_APC_ROUTINES = frozenset(
    {
        # ReactOS ps/debug.c: PsGetContextThread, PsSetContextThread.
        "PspGetSetContextSpecialApc",
        # ReactOS ex/work.c: ExSwapinWorkerThreads.
        "ExpSetSwappingKernelApc",
        # Public PDBs since 7, 8, 11. Decompilations of 10 and 11 show that the callers wait.
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
"""KernelRoutine of a special user APC since 17763. At first ApcMode is KernelMode although NormalRoutine is a user-mode
address: the KernelRoutine clears it before the kernel calls it, and queues the KAPC again with UserMode."""


@dataclass(frozen=True, slots=True)
class EmbeddedApc:
    """A KAPC that is a member of _KTHREAD or _ETHREAD, and the routines that the kernel gives it.

    Routines are symbols; "" stands for a null pointer. `own` is the NormalRoutine with which the KAPC may stay queued
    for hours, None where no such wait is legitimate. `prefix` begins the names of its fields in ThreadMembers.
    `may_be_zero` is whether the kernel initializes the KAPC only when it first needs it.
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
    # Public PDBs since 8. KiSchedulerApc itself sets KiSchedulerApcTerminate when the thread is to terminate.
    EmbeddedApc(
        "SchedulerApc",
        "suspend_apc",
        ("KiSchedulerApcNop", "KiSchedulerApcTerminate"),
        ("KiSchedulerApcRundown",),
        ("KiSchedulerApc",),
        own="KiSchedulerApc",
    ),
    # Public PDBs of 24H2: KiQueueTebUpdateApc initializes it on first use. Its KernelRoutine is an empty function,
    # which the linker folds with KiSchedulerApcNop.
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

# (KernelRoutine, NormalRoutine) of the KAPC that terminates a thread on its next return to user mode: a user-mode APC
# whose NormalRoutine is a kernel function. XP to 7: ReactOS ps/kill.c, PspExitNormalApc. Since 8 KiSchedulerApc uses
# SchedulerApc for it (public PDBs, decompilations of 22H2).
TERMINATION_APCS = (("PsExitSpecialApc", "PspExitNormalApc"), ("KiSchedulerApcTerminate", "KiSchedulerApc"))

ROUTINES = frozenset(
    {
        SPECIAL_USER_APC_ROUTINE,
        *STACK_APC_ROUTINES,
        *(name for pair in TERMINATION_APCS for name in pair),
        *(name for row in EMBEDDED_APCS for name in (*row.kernel, *row.rundown, *row.normal) if name),
    }
)
"""The symbols of the kernel routines that the checks need. Compare their addresses, not printed names: of folded code
only one of many names is printed."""

# Prefixes of the names that Microsoft's compiler gives to data: string literals, virtual function and base tables,
# RTTI, floating-point and vector constants, pointers to imports (undname prints `string', `vftable' and so on of them).
# In old kernels they lie between functions.
DATA_NAMES = ("??_C@", "??_7", "??_8", "??_R", "__real@", "__xmm@", "__ymm@", "__imp_")

FUNCTION_BOUND = 1 << 16
"""The assumed largest size in bytes of a function where nothing shows its end."""

STACK_BOUND = 1 << 20
"""The largest plausible kernel stack, in bytes. One on x64 has up to 72 KiB; callouts to user mode may add others."""


def is_wow64_encoded(address: int) -> bool:
    """Return whether a NormalRoutine is a 32-bit address in the encoding of WoW64.

    wow64.dll shifts it left by two and negates it (Wow64ApcRoutine; ReactOS and phnt document RtlQueueApcWow64Thread),
    so that it looks like a kernel address. Values in the HAL's region (0xffffffffffc00000 and above) are not encoded
    addresses: they would decode to less than 0x100000.
    """
    decoded = -address & 0xFFFFFFFFFFFFFFFF
    return decoded % 4 == 0 and 0x100000 <= decoded >> 2 < 1 << 32


def state_name(state: int) -> str:
    """Return the name of a _KTHREAD.State, `State12` for an unknown one."""
    return THREAD_STATES[state] if 0 <= state < len(THREAD_STATES) else f"State{state}"


def wait_reason_name(reason: int, reasons: Sequence[str] = WAIT_REASONS) -> str:
    """Return the name of a _KTHREAD.WaitReason, from `reasons` (the kernel's own enumeration, where known)."""
    return reasons[reason] if 0 <= reason < len(reasons) else f"Reason{reason}"
