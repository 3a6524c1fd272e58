"""What a kernel routine says about who queued an APC: the kernel's own producers, one row each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .. import facts as windows


@dataclass(frozen=True, slots=True)
class Producer:
    """What queues APCs with a routine.

    `routine` is the KernelRoutine, or the NormalRoutine of a kernel APC, by symbol. `mode` narrows a row to APCs of
    that ApcMode. `original` is whether the APC is queued to the environment of the thread's own process, whatever
    the thread is attached to.
    """

    routine: str
    meaning: str
    mode: int | None = None
    original: bool = False


_KERNEL, _USER = windows.KERNEL_MODE, windows.USER_MODE

# Every name is in Microsoft's public PDBs of the versions given; what it is for, where that is published, is said
# beside it. IopDeallocateApc shares its address with PspQueueApcSpecialApc (XP SP3, 7 x86, 8.1, 14393) and with
# PspUserApcKernelRoutine (17763 to 22000): ApcMode and NormalRoutine tell them apart.
PRODUCERS: tuple[Producer, ...] = (
    # ReactOS ntoskrnl/ke/thrdobj.c (KeSuspendThread, KeInitThread): XP to 7, the name of the embedded KAPC since 8.
    Producer("KiSuspendThread", "suspension of the thread", original=True),
    Producer("KiSchedulerApc", "suspension or freezing of the thread", original=True),
    Producer("KiSchedulerApcTerminate", "termination of the thread", original=True),
    # ReactOS ntoskrnl/ps/debug.c (PsGetContextThread, PsSetContextThread): OriginalApcEnvironment.
    Producer("PspGetSetContextSpecialApc", "get or set context of the thread", original=True),
    # ReactOS ntoskrnl/ps/state.c (NtQueueApcThread): OriginalApcEnvironment, the routine frees the KAPC.
    Producer("PspQueueApcSpecialApc", "NtQueueApcThread", _USER, original=True),
    Producer("PspUserApcKernelRoutine", "NtQueueApcThread", _USER, original=True),  # 17763 and later
    Producer("IopDeallocateApc", "NtQueueApcThread", _USER, original=True),  # folded with the two above
    Producer(
        "PspUserApcReserveKernelRoutine", "NtQueueApcThreadEx with a reserve object", original=True
    ),  # 7 and later
    Producer("KeSpecialUserApcKernelRoutine", "NtQueueApcThreadEx, special user APC", original=True),  # 17763 and later
    # ReactOS ntoskrnl/io/iomgr/error.c (IoRaiseHardError): the NormalRoutine. The other two run on a thread of their
    # own where APCs are disabled.
    Producer("IopRaiseHardError", "I/O hard error", _KERNEL),
    Producer("IopApcHardError", "I/O hard error", _KERNEL),
    Producer("IopStartApcHardError", "I/O hard error", _KERNEL),
    Producer("IopDropIrp", "an IRP that is dropped"),
    # IoCancelThreadIo and NtCancelSynchronousIoFile (WDK and SDK): cancelling another thread's requests.
    Producer("IopCancelIrpsInCurrentThreadListSpecialApc", "cancellation of the thread's I/O"),
    # ReactOS ntoskrnl/ex/timer.c (NtSetTimer, ExpTimerDpcRoutine).
    Producer("ExpTimerApcRoutine", "an expired timer"),
    # ReactOS ntoskrnl/ex/work.c (ExSwapinWorkerThreads).
    Producer("ExpSetSwappingKernelApc", "stack swapping switched on or off for a worker thread"),
    # ReactOS ntoskrnl/ps/kill.c (PspTerminateThreadByPointer, PspTerminateProcess): XP to 7.
    Producer("PsExitSpecialApc", "termination of the thread", original=True),
    Producer("PspExitNormalApc", "termination of the thread", original=True),
    # NtNotifyChangeMultipleKeys (WDK, ZwNotifyChangeKey): a registry notification is posted to its waiter.
    Producer("CmpPostApc", "registry change notification"),
    # Event Tracing for Windows (EVENT_ENABLE_PROPERTY_STACK_TRACE of the SDK): 7 and later.
    Producer("EtwpStackWalkApc", "ETW stack walk"),
    Producer("EtwpQueueStackWalkApc", "ETW stack walk"),
    Producer("EtwpThreadRundownApc", "ETW thread rundown with stack"),
    Producer("EtwpCovSampCaptureApc", "ETW coverage sampling"),
    Producer("EtwpTraceImageUnloadApc", "ETW trace of an image unload"),
    # WMI of XP and 2003: an event queue wakes the pump thread of its provider.
    Producer("WmipPumpThreadApc", "WMI event pump"),
    # Interrupts of a virtual DOS machine: x86 only (ReactOS ntoskrnl/ke/i386/v86vdm.c).
    Producer("VdmpQueueIntApcRoutine", "interrupt for a virtual DOS machine"),
    # .dump /ma /m of a live kernel: stacks of the threads are captured in their own context (7 and later).
    Producer("DbgkpLkmdSnapThreadApc", "live kernel dump of the thread"),
    # The memory manager's modified page writer and page file upkeep: 8 and later.
    Producer("MiStoreWriteModifiedCompleteApc", "completion of a write to the memory store"),
    Producer("MiAttemptPageFileReductionApc", "page file reduction"),
    Producer("MiTrimUnusedPageFileRegionsApc", "page file trim"),
    Producer("MiIrpCompletionApcRoutine", "completion of the memory manager's own I/O"),
    # Lazily enabled register state (Intel SDM volume 1, 13.14, XFD): 22000 and later.
    Producer("KeEnableOptionalXStateFeaturesApc", "optional processor state enabled for the thread"),
)

_BY_ROUTINE: dict[str, list[Producer]] = {}
for _row in PRODUCERS:
    _BY_ROUTINE.setdefault(_row.routine, []).append(_row)


def producers(kernel: Collection[str], normal: Collection[str], mode: int | None) -> tuple[Producer, ...]:
    """Return what may have queued an APC with these routines; the NormalRoutine, where known, decides.

    Args:
        kernel: every symbol at the KernelRoutine's address.
        normal: every symbol at the NormalRoutine's address; none for a user APC.
        mode: KAPC.ApcMode, None when unknown.
    """
    for names in (normal, kernel):
        rows = [row for name in names for row in _BY_ROUTINE.get(name, ()) if mode is None or row.mode in (None, mode)]
        if rows:
            # Folded rows that mean the same are one answer.
            return tuple({row.meaning: row for row in rows}.values())
    return ()
