"""Names of the kernel's functions and variables, the versions that have them, and addresses of our own for them."""

from __future__ import annotations

XP, SERVER_2003, VISTA, WINDOWS_7, WINDOWS_8, WINDOWS_8_1, WINDOWS_10 = (
    (5, 1, 0),
    (5, 2, 0),
    (6, 0, 0),
    (6, 1, 0),
    (6, 2, 0),
    (6, 3, 0),
    (10, 0, 0),
)
BUILD_17763 = (10, 0, 17763)
BUILD_19041 = (10, 0, 19041)
BUILD_20348 = (10, 0, 20348)
BUILD_22000 = (10, 0, 22000)
BUILD_26100 = (10, 0, 26100)
EVER = (99, 0, 0)

Version = tuple[int, int, int]

#: (name, bytes reserved, first version, first version without): variables that Volatility, a scene or an audit reads.
#: Names as in Microsoft's public PDBs of XP SP3 to 11.
VARIABLES: tuple[tuple[str, int, Version, Version], ...] = (
    ("KdDebuggerDataBlock", 0x400, XP, EVER),
    ("KdVersionBlock", 0x40, XP, EVER),
    ("NtBuildLab", 0x80, XP, EVER),
    ("NtBuildNumber", 0x10, XP, EVER),
    ("CmNtCSDVersion", 0x10, XP, EVER),
    ("KeNumberProcessors", 0x10, XP, EVER),
    ("KiProcessorBlock", 0x200, XP, EVER),
    ("KiBugCheckData", 0x40, XP, EVER),
    ("KiBugCheckDriver", 0x10, XP, EVER),
    ("PsActiveProcessHead", 0x10, XP, EVER),
    ("PsLoadedModuleList", 0x10, XP, EVER),
    ("PspCidTable", 0x10, XP, EVER),
    ("PsInitialSystemProcess", 0x10, XP, EVER),
    ("PsIdleProcess", 0x10, XP, EVER),
    ("PsThreadType", 0x10, XP, EVER),
    ("PsProcessType", 0x10, XP, EVER),
    ("IoDriverObjectType", 0x10, XP, EVER),
    ("IoDeviceObjectType", 0x10, XP, EVER),
    ("IoFileObjectType", 0x10, XP, EVER),
    ("ObpTypeObjectType", 0x10, XP, EVER),
    ("ObpObjectTypes", 0x400, XP, EVER),
    ("ObTypeIndexTable", 0x800, WINDOWS_7, EVER),
    ("ObHeaderCookie", 0x10, WINDOWS_10, EVER),
    ("ObpInfoMaskToOffset", 0x100, WINDOWS_7, EVER),
    ("ObpRootDirectoryObject", 0x10, XP, EVER),
    ("MmUnloadedDrivers", 0x10, XP, EVER),
    ("MmLastUnloadedDriver", 0x10, XP, EVER),
    ("MmSystemRangeStart", 0x10, XP, EVER),
    ("MmHighestUserAddress", 0x10, XP, EVER),
    ("MmUserProbeAddress", 0x10, XP, EVER),
    ("KdCopyDataBlock", 0x10, VISTA, EVER),
    ("MmPfnDatabase", 0x10, XP, EVER),
    ("PoolBigPageTable", 0x10, XP, EVER),
    ("PoolBigPageTableSize", 0x10, XP, EVER),
    ("MmProtectToValue", 0x80, XP, EVER),
)

#: (name, first version, first version without): functions with an address of their own.
#: The APC routines and the versions that have them: Microsoft's public PDBs.
FUNCTIONS: tuple[tuple[str, Version, Version], ...] = (
    ("KeBugCheck", XP, EVER),
    ("KeBugCheckEx", XP, EVER),
    ("KeUnstackDetachProcess", XP, EVER),
    ("KeStackAttachProcess", XP, EVER),
    ("KeInitializeApc", XP, EVER),
    ("KeInsertQueueApc", XP, EVER),
    ("KiDeliverApc", XP, EVER),
    ("KeWaitForSingleObject", XP, EVER),
    ("KeWaitForMultipleObjects", XP, EVER),
    ("KeDelayExecutionThread", XP, EVER),
    ("KiSwapThread", XP, EVER),
    ("KiSwapContext", XP, EVER),
    ("KiIdleLoop", XP, EVER),
    ("KiThreadStartup", XP, VISTA),
    ("KiStartSystemThread", WINDOWS_8, EVER),
    ("PspSystemThreadStartup", XP, EVER),
    ("PspUserThreadStartup", XP, EVER),
    ("PsCreateSystemThread", XP, EVER),
    ("ExpWorkerThread", XP, EVER),
    ("ExpWorkerThreadBalanceManager", XP, BUILD_17763),
    ("KeBalanceSetManager", XP, EVER),
    ("KeSwapProcessOrStack", XP, EVER),
    ("MiModifiedPageWriter", XP, EVER),
    ("MiMappedPageWriter", XP, EVER),
    ("Phase1Initialization", XP, EVER),
    ("CcWorkerThread", XP, EVER),
    ("PopIrpWorker", VISTA, EVER),
    ("MmProbeAndLockProcessPages", XP, EVER),
    ("MmProbeAndLockPages", XP, EVER),
    ("ExAcquireFastMutex", VISTA, EVER),
    ("ExReleaseFastMutex", VISTA, EVER),
    ("ExAllocatePoolWithTag", XP, EVER),
    ("ExFreePoolWithTag", XP, EVER),
    ("IoBuildDeviceIoControlRequest", XP, EVER),
    ("IofCallDriver", XP, EVER),
    ("IofCompleteRequest", XP, EVER),
    ("IopfCompleteRequest", XP, EVER),
    ("IopCompleteRequest", XP, EVER),
    ("IopAbortRequest", XP, EVER),
    ("IopCompletePageWrite", XP, EVER),
    ("IopUserCompletion", XP, EVER),
    ("IopUserRundown", XP, EVER),
    ("IopDeallocateApc", VISTA, EVER),
    ("IopApcHardError", XP, EVER),
    ("IopStartApcHardError", XP, EVER),
    ("IopDropIrp", XP, EVER),
    ("IopCancelIrpsInCurrentThreadListSpecialApc", WINDOWS_7, EVER),
    ("ExpTimerApcRoutine", XP, EVER),
    ("ExpSetSwappingKernelApc", XP, EVER),
    ("CmpPostApc", XP, EVER),
    ("CmpPostApcRunDown", XP, EVER),
    ("DbgkpLkmdSnapThreadApc", WINDOWS_7, EVER),
    ("PspGetSetContextSpecialApc", XP, EVER),
    ("PspUserApcReserveKernelRoutine", WINDOWS_7, EVER),
    ("PspUserApcReserveRundownRoutine", WINDOWS_7, EVER),
    ("PspUserApcKernelRoutine", BUILD_17763, EVER),
    ("KeSpecialUserApcKernelRoutine", BUILD_17763, EVER),
    ("KeEnableOptionalXStateFeaturesApc", BUILD_20348, EVER),
    ("EtwpStackWalkApc", WINDOWS_7, EVER),
    ("EtwpQueueStackWalkApc", WINDOWS_7, EVER),
    ("EtwpThreadRundownApc", WINDOWS_7, EVER),
    ("EtwpCovSampCaptureApc", BUILD_17763, EVER),
    ("EtwpTraceImageUnloadApc", BUILD_17763, EVER),
    # Since 8 a function of another kind: it suspends.
    ("KiSuspendThread", XP, EVER),
    ("KiSuspendNop", XP, WINDOWS_8),
    ("KiSuspendRundown", XP, WINDOWS_8),
    ("PspExitNormalApc", XP, WINDOWS_8),
    ("PsExitSpecialApc", XP, WINDOWS_8),
    ("VdmpQueueIntApcRoutine", XP, SERVER_2003),
    ("WmipPumpThreadApc", XP, WINDOWS_7),
    ("KiSchedulerApc", WINDOWS_8, EVER),
    ("KiSchedulerApcTerminate", WINDOWS_8, EVER),
    ("MiStoreWriteModifiedCompleteApc", WINDOWS_8, EVER),
    ("MiAttemptPageFileReductionApc", WINDOWS_8, EVER),
    ("MiTrimUnusedPageFileRegionsApc", WINDOWS_8, EVER),
    ("MiIrpCompletionApcRoutine", WINDOWS_8, EVER),
    ("NtCreateFile", XP, EVER),
    ("NtReadFile", XP, EVER),
    ("ZwQueueApcThread", XP, EVER),
    ("ObReferenceObjectByHandle", XP, EVER),
    ("RtlInitUnicodeString", XP, EVER),
    ("KeEnterCriticalRegion", XP, EVER),
    ("KeLeaveCriticalRegion", XP, EVER),
    ("IopRaiseHardError", XP, EVER),
    ("IopCancelIrpsInCurrentThreadListApcRoutine", WINDOWS_7, EVER),
    ("EtwpTraceImageUnloadApcStub", BUILD_17763, EVER),
    ("EtwpCrimsonStackWalkApc", WINDOWS_7, BUILD_20348),
    ("PspRelinquishUmsThreadSpecialApc", WINDOWS_7, BUILD_20348),
    ("PspCpuQuotaApcNormalRoutine", WINDOWS_7, WINDOWS_8),
    ("TmpCompleteNotificationRequestApc", WINDOWS_7, WINDOWS_8),
    ("SmWdWritesApcRoutine", WINDOWS_7, WINDOWS_10),
    ("VdmpDelayIntApcRoutine", XP, WINDOWS_8),
    ("KiUpdateTebApc", BUILD_26100, EVER),
    ("MiStoreRundownWritesApc", BUILD_26100, EVER),
    ("PspCriticalProcessDeathInfoCollectApc", BUILD_26100, EVER),
    ("EtwpApcPoolThunk", BUILD_26100, EVER),
    ("ExSvmUpdateThreadPasidMsrApc", BUILD_26100, EVER),
)

#: The empty functions, which Windows 8 and later fold: two routines of the scheduler APC share an address with others.
_EMPTY = (
    "EmpCheckErrataList",
    "KeSetDmaIoCoherency",
    "KiProcessorCallbackNop",
    "KiSchedulerApcNop",
    "KiSchedulerApcRundown",
    "MiDummyApcRoutine",
    "PoStartNextPowerIrp",
    "PpmIdleDefaultComplete",
    "guard_check_icall_nop",
    "xHalClockTimerStop",
    "xKdUnmapVirtualAddress",
)

#: Functions whose identical code the linker folded into one address: (names, first version, first version without).
#: Each group is a cut of one found in a public PDB of that age.
FOLDED: tuple[tuple[tuple[str, ...], Version, Version], ...] = (
    (("ExFreeCallBack", "PspExitApcRundown", "RtlpSysVolFree", "SeFreePrivileges"), XP, WINDOWS_8),
    (("IopDeallocateApc", "PspNullSpecialApc", "PspQueueApcSpecialApc"), XP, VISTA),
    (("AlpcpFreeBuffer", "PspQueueApcSpecialApc"), VISTA, WINDOWS_8),
    (("CmpConfigureProcessors", "CmpDummyApc", "DbgkpDeleteObject"), XP, WINDOWS_8),
    (("CmpDummyApc", "IopCancelIrpsInCurrentThreadListDummyApc"), WINDOWS_8, EVER),
    (_EMPTY, WINDOWS_8, BUILD_19041),
    (("HalDisplayString", *_EMPTY), BUILD_19041, EVER),
)

#: Where variables and functions start, as relative addresses; our choice, clear of the addresses in `FIXED`.
VARIABLES_START = 0x7C000
FUNCTIONS_START = 0xB0000

#: The XP addresses that follow from the seed's stack with the kernel at 804d7000: PspSystemThreadStartup+0x34 is
#: 80576320, KiThreadStartup+0x16 is 804ec7b9, and so on. The post does not give KeBugCheck's: ours.
FIXED: dict[str, int] = {
    "KiThreadStartup": 0x804EC7B9 - 0x16 - 0x804D7000,
    "KeUnstackDetachProcess": 0x80508D2F - 0x118 - 0x804D7000,
    "MmProbeAndLockProcessPages": 0x8062CFD8 - 0x6A - 0x804D7000,
    "PspSystemThreadStartup": 0x80576320 - 0x34 - 0x804D7000,
    "KeBugCheck": 0x60386,
}


#: Functions of x86 or x64 alone, by size of a pointer: virtual DOS machines are of x86, user mode scheduling is of x64.
ONE_SIZE = {"VdmpDelayIntApcRoutine": 4, "PspRelinquishUmsThreadSpecialApc": 8}


def addresses(version: Version, pointer_size: int) -> dict[str, int]:
    """Give every name that the version has a relative address, the same whatever the size of a pointer."""
    placed: dict[str, int] = {}
    at = VARIABLES_START
    for name, size, first, last in VARIABLES:
        if first <= version < last:
            placed[name] = at
            at += size
    at = FUNCTIONS_START
    for name, first, last in FUNCTIONS:
        if first <= version < last:
            if version < SERVER_2003 and name in FIXED:
                placed[name] = FIXED[name]
                continue
            placed[name] = at
            # Room for a body: unequal, so that nobody can rely on a stride.
            at += 0x120 + 0x10 * (len(name) % 7)
    for names, first, last in FOLDED:
        if first <= version < last:
            placed |= dict.fromkeys(names, at)
            at += 0x20
    return {name: address for name, address in placed.items() if ONE_SIZE.get(name, pointer_size) == pointer_size}
