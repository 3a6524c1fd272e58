"""The kernel's own producers of APCs, one row each, by the routine of the APC."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .. import windows


@dataclass(frozen=True, slots=True)
class Producer:
    """A part of Windows that queues APCs with a certain routine.

    `routine` is the symbol of the KernelRoutine, or of a kernel APC's NormalRoutine. `checked` names the first and the
    last of SYMBOL_FILES that have the symbol, as do all between them; None where it is known from decompilations of
    newer builds (22621, 26100) only. `mode` limits a row to APCs of that ApcMode. `original` is whether the APC is
    queued to the environment of the thread's own process, whatever the thread is attached to.
    """

    routine: str
    meaning: str
    checked: tuple[str, str] | None
    mode: int | None = None
    original: bool = False


_KERNEL, _USER = windows.KERNEL_MODE, windows.USER_MODE

SYMBOL_FILES = ("XP", "7 x86", "7 x64", "8.1", "14393", "17763", "18362", "19041", "20348", "22000")
"""Symbol files of genuine kernels that the rows were checked against: XP SP3 and 7 SP1 x86, the others x64."""

_ALL, _TO_7, _ONLY_7, _X86_TO_7 = ("XP", "22000"), ("XP", "7 x64"), ("7 x86", "7 x64"), ("XP", "7 x86")
_SINCE_7, _SINCE_8_1, _SINCE_17763 = ("7 x86", "22000"), ("8.1", "22000"), ("17763", "22000")
_NEWER = None

# The comment above a row names the source of its meaning; without one, the meaning is taken from the routine's name in
# Microsoft's public PDBs. IopDeallocateApc shares its address with PspQueueApcSpecialApc (XP SP3, 7 x86, 8.1, 14393)
# and with PspUserApcKernelRoutine (17763 to 22000): ApcMode and NormalRoutine distinguish them.
PRODUCERS: tuple[Producer, ...] = (
    # ReactOS ke/thrdobj.c, KeSuspendThread. Since 8 KiSuspendThread is no APC routine.
    Producer("KiSuspendThread", "suspension of the thread", _TO_7, original=True),
    Producer(
        "KiSchedulerApc", "suspension, freezing, preemption or termination of the thread", _SINCE_8_1, original=True
    ),
    Producer("KiSchedulerApcTerminate", "termination of the thread", _SINCE_8_1, original=True),
    Producer("KiUpdateTebApc", "update of the thread's TEB", _NEWER, original=True),
    # ReactOS ps/debug.c, PsGetContextThread and PsSetContextThread: OriginalApcEnvironment.
    Producer("PspGetSetContextSpecialApc", "get or set context of the thread", _ALL, original=True),
    # ReactOS ps/state.c, NtQueueApcThread: OriginalApcEnvironment, the routine frees the KAPC.
    Producer("PspQueueApcSpecialApc", "NtQueueApcThread", ("XP", "14393"), _USER, original=True),
    Producer("PspUserApcKernelRoutine", "NtQueueApcThread", _SINCE_17763, _USER, original=True),
    Producer("IopDeallocateApc", "NtQueueApcThread", _ALL, _USER, original=True),  # folded with the two above
    Producer("PspNullSpecialApc", "start of a user thread", ("XP", "XP"), _USER, original=True),
    Producer("PspUserApcReserveKernelRoutine", "NtQueueApcThreadEx with a reserve object", _SINCE_7, original=True),
    Producer("KeSpecialUserApcKernelRoutine", "NtQueueApcThreadEx, special user APC", _SINCE_17763, original=True),
    # ReactOS io/iomgr/error.c, IoRaiseHardError: the NormalRoutine.
    Producer("IopRaiseHardError", "I/O hard error", _ALL, _KERNEL),
    # IoCancelThreadIo and NtCancelSynchronousIoFile (WDK and SDK): cancelling another thread's requests.
    Producer("IopCancelIrpsInCurrentThreadListSpecialApc", "cancellation of the thread's I/O", _SINCE_7),
    Producer("IopCancelIrpsInCurrentThreadListApcRoutine", "cancellation of the thread's I/O", _SINCE_7, _KERNEL),
    Producer("IopCancelIrpsInCurrentThreadListDummyApc", "cancellation of the thread's I/O", _SINCE_7, _KERNEL),
    # ReactOS ex/timer.c, NtSetTimer and ExpTimerDpcRoutine.
    Producer("ExpTimerApcRoutine", "an expired timer", _ALL),
    # ReactOS ex/work.c, ExSwapinWorkerThreads.
    Producer("ExpSetSwappingKernelApc", "stack swapping switched on or off for a worker thread", _ALL),
    # ReactOS ps/kill.c, PspTerminateThreadByPointer and PspExitNormalApc.
    Producer("PsExitSpecialApc", "termination of the thread", _TO_7, original=True),
    Producer("PspExitNormalApc", "termination of the thread", _TO_7, original=True),
    # NtNotifyChangeMultipleKeys (WDK, ZwNotifyChangeKey): a registry notification is posted to its waiter.
    Producer("CmpPostApc", "registry change notification", _ALL),
    Producer("CmpDummyApc", "registry change notification", _ALL, _KERNEL),
    # Kernel transactions (WDK, TmEnableCallbacks).
    Producer("TmpCompleteNotificationRequestApc", "notification of a resource manager", _ONLY_7),
    # Event Tracing for Windows (EVENT_ENABLE_PROPERTY_STACK_TRACE of the SDK).
    Producer("EtwpStackWalkApc", "ETW stack walk", _SINCE_7),
    Producer("EtwpCrimsonStackWalkApc", "ETW stack walk", ("7 x86", "19041")),
    Producer("EtwpApcPoolThunk", "ETW stack walk", _NEWER),
    Producer("EtwpThreadRundownApc", "ETW thread rundown with stack", _SINCE_7),
    Producer("EtwpCovSampCaptureApc", "ETW coverage sampling", _SINCE_17763),
    Producer("EtwpTraceImageUnloadApc", "ETW trace of an image unload", _SINCE_17763, _KERNEL),
    # WMI of XP and 2003: an event queue wakes the pump thread of its provider.
    Producer("WmipPumpThreadApc", "WMI event pump", ("XP", "XP")),
    # Interrupts of a virtual DOS machine: x86 only (ReactOS ke/i386/v86vdm.c).
    Producer("VdmpQueueIntApcRoutine", "interrupt for a virtual DOS machine", _X86_TO_7),
    Producer("VdmpDelayIntApcRoutine", "delayed interrupt for a virtual DOS machine", _X86_TO_7),
    # .dump /ma /m of a live kernel: stacks of the threads are captured in their own context.
    Producer("DbgkpLkmdSnapThreadApc", "live kernel dump of the thread", _SINCE_7),
    # Processor time rates of a job, and user mode scheduling.
    Producer("PspCpuQuotaApcNormalRoutine", "processor time quota of the thread", _ONLY_7, _KERNEL),
    Producer("PspRelinquishUmsThreadSpecialApc", "user mode scheduling", ("7 x64", "19041")),
    Producer("PspCriticalProcessDeathInfoCollectApc", "report on the death of a critical process", _NEWER),
    # The memory manager's modified page writer, page file upkeep and memory store.
    Producer("MiStoreWriteModifiedCompleteApc", "completion of a write to the memory store", _SINCE_8_1),
    Producer("MiStoreRundownWritesApc", "rundown of writes to the memory store", _NEWER, _KERNEL),
    Producer("SmWdWritesApcRoutine", "write of the memory store", ("7 x86", "8.1")),
    Producer("MiAttemptPageFileReductionApc", "page file reduction", _SINCE_8_1, _KERNEL),
    Producer("MiTrimUnusedPageFileRegionsApc", "page file trim", _SINCE_8_1, _KERNEL),
    # UserApcRoutine of a file system control (ReactOS io/iomgr/irp.c, IopCompleteRequest): the NormalRoutine.
    Producer("MiIrpCompletionApcRoutine", "completion of the memory manager's own I/O", _SINCE_8_1, _KERNEL),
    # Lazily enabled register state (Intel SDM volume 1, 13.14, XFD), and the address space ID of shared memory.
    Producer(
        "KeEnableOptionalXStateFeaturesApc", "optional processor state enabled for the thread", ("20348", "22000")
    ),
    Producer("ExSvmUpdateThreadPasidMsrApc", "shared virtual memory of the thread", _NEWER),
)

_BY_ROUTINE: dict[str, list[Producer]] = {}
for _row in PRODUCERS:
    _BY_ROUTINE.setdefault(_row.routine, []).append(_row)


@dataclass(frozen=True, slots=True)
class IrpRoutine:
    """A KernelRoutine whose KAPC is an IRP's Tail.Apc: what it means, and the state of the IRP while it is queued.

    `listed` is whether a threaded IRP is still on the thread's IrpList; `has_file` whether SystemArgument1 is the
    FileObject.
    """

    routine: str
    meaning: str
    listed: bool
    has_file: bool


# ReactOS ntoskrnl/io/iomgr/irp.c: IofCompleteRequest queues the first two. IopCompleteRequest removes the IRP from the
# thread's list, then queues the KAPC again for the user's completion routine, with UserIosb as argument.
IRP_ROUTINES = (
    IrpRoutine("IopCompleteRequest", "completion of IRP", listed=True, has_file=True),
    IrpRoutine("IopCompletePageWrite", "completion of paging write IRP", listed=False, has_file=False),
    IrpRoutine("IopUserCompletion", "user completion routine of IRP", listed=False, has_file=False),
)


def producers(kernel: Collection[str], normal: Collection[str], mode: int | None) -> tuple[Producer, ...]:
    """Return the producers that may have queued an APC with these routines; a known NormalRoutine decides.

    Args:
        kernel: every symbol at the KernelRoutine's address.
        normal: every symbol at the NormalRoutine's address; none for a user APC.
        mode: KAPC.ApcMode, None when unknown.
    """
    for names in (normal, kernel):
        rows = [row for name in names for row in _BY_ROUTINE.get(name, ()) if mode is None or row.mode in (None, mode)]
        if rows:
            # Routines that share an address and mean the same are one answer.
            return tuple({row.meaning: row for row in rows}.values())
    return ()
