"""The DLLs that programs map, with the functions that user APCs are known to run.

Which version exports a function, and how: the import libraries of the Windows SDKs, and M. Pietrek and others where
they are named. Relative addresses are ours.
"""

from __future__ import annotations

from collections.abc import Iterable

from apcaudit.synthetic.kernels import Kernel
from apcaudit.synthetic.ntsymbols import BUILD_22000, EVER, VISTA, WINDOWS_7, XP, Version
from apcaudit.synthetic.user import UserImage

#: (name, first version, first version without, bits): functions of ntdll.dll; 0 is of both sizes.
_NTDLL: tuple[tuple[str, Version, Version, int], ...] = (
    ("KiUserApcDispatcher", XP, EVER, 0),
    ("LdrInitializeThunk", XP, EVER, 0),
    ("LdrLoadDll", XP, EVER, 0),
    ("NtAllocateVirtualMemory", XP, EVER, 0),
    ("NtContinue", XP, EVER, 0),
    ("NtContinueEx", BUILD_22000, EVER, 0),
    ("NtDelayExecution", XP, EVER, 0),
    ("NtProtectVirtualMemory", XP, EVER, 0),
    ("NtQueueApcThread", XP, EVER, 0),
    ("NtSetContextThread", XP, EVER, 0),
    ("NtSignalAndWaitForSingleObject", XP, EVER, 0),
    ("NtTestAlert", XP, EVER, 0),
    ("NtWriteVirtualMemory", XP, EVER, 0),
    ("RtlCaptureContext", XP, EVER, 0),
    ("RtlExitUserThread", VISTA, EVER, 0),
    ("RtlFillMemory", XP, EVER, 0),
    ("RtlRestoreContext", XP, EVER, 64),
    ("RtlUserThreadStart", VISTA, EVER, 0),
    ("longjmp", XP, EVER, 64),
    ("memcpy", XP, EVER, 0),
    ("memset", XP, EVER, 0),
)
_KERNEL32: tuple[tuple[str, Version, Version, int], ...] = (
    ("BaseThreadInitThunk", VISTA, EVER, 0),
    ("GlobalGetAtomNameA", XP, EVER, 0),
    ("GlobalGetAtomNameW", XP, EVER, 0),
    ("LoadLibraryA", XP, EVER, 0),
    ("LoadLibraryExW", XP, EVER, 0),
    ("LoadLibraryW", XP, EVER, 0),
    ("QueueUserAPC", XP, EVER, 0),
    ("SetThreadContext", XP, EVER, 0),
    ("SleepEx", XP, EVER, 0),
)
_KERNELBASE: tuple[tuple[str, Version, Version, int], ...] = (
    ("LoadLibraryExW", WINDOWS_7, EVER, 0),
    ("QueueUserAPC", WINDOWS_7, EVER, 0),
    ("SleepEx", WINDOWS_7, EVER, 0),
)

#: The routine that QueueUserAPC queues, which calls what NormalContext is; of 32-bit programs too.
DISPATCHER = "ntdll!RtlDispatchAPC|kernel32!BaseDispatchAPC"
DISPATCHER_32 = "wow64:ntdll32!RtlDispatchAPC|wow64:kernel3232!BaseDispatchAPC"
#: The routines that ReadFileEx and SetWaitableTimer queue.
IO_COMPLETION = "kernelbase!BasepIoCompletionSimple|kernel32!BasepIoCompletionSimple"
TIMER = "kernelbase!BasepTimerAPCProc|kernel32!BasepTimerAPCProc"

#: What hands an APC on, and no import library names: QueueUserAPC's, since 7 ntdll's ordinal 8 (Check Point Research,
#: "Thread Name-Calling", 2024), and those of ReadFileEx and SetWaitableTimer, which nothing exports.
_DISPATCHER_ORDINAL = 8
_PRIVATE = ("BasepIoCompletion", "BasepIoCompletionSimple", "BasepTimerAPCProc")
_PRIVATE_XP = ("BaseDispatchAPC", *_PRIVATE)


def _placed(names: Iterable[str], start: int = 0x1100) -> dict[str, int]:
    """Give functions relative addresses: unequal strides, so that nobody can rely on one."""
    placed = {}
    at = start
    for name in names:
        placed[name] = at
        at += 0x40 + 0x10 * (len(name) % 5)
    return placed


def _of(table: tuple[tuple[str, Version, Version, int], ...], kernel: Kernel, bits: int) -> dict[str, int]:
    return _placed(name for name, first, last, size in table if first <= kernel.version < last and size in (0, bits))


def _file(name: str, kernel: Kernel, bits: int, **members: object) -> UserImage:
    """Declare a system DLL; the 32-bit ones of x64 are labelled `NAME32`, in a folder of their own."""
    if bits == 32 and kernel.is_64bit:
        members |= {"label": f"{name.rpartition('.')[0]}32", "path": "\\Windows\\SysWOW64"}
    return UserImage(name, bits=bits, **members)  # type: ignore[arg-type]


def native_bits(kernel: Kernel) -> int:
    """Give the size of the kernel's own addresses."""
    return 64 if kernel.is_64bit else 32


def ntdll(kernel: Kernel, bits: int | None = None) -> UserImage:
    """Declare ntdll.dll, of 32 bits too if asked."""
    bits = bits or native_bits(kernel)
    dispatches = kernel.version >= WINDOWS_7
    functions = _placed(["RtlDispatchAPC"] if dispatches else [], 0x2000)
    ordinals = {_DISPATCHER_ORDINAL: "RtlDispatchAPC"} if dispatches else {}
    return _file("ntdll.dll", kernel, bits, exports=_of(_NTDLL, kernel, bits), functions=functions, ordinals=ordinals)


def kernel32(kernel: Kernel, bits: int | None = None) -> UserImage:
    """Declare kernel32.dll, which before 7 has what kernelbase.dll has since."""
    bits = bits or native_bits(kernel)
    private = _PRIVATE_XP if kernel.version < WINDOWS_7 else ()
    return _file("kernel32.dll", kernel, bits, exports=_of(_KERNEL32, kernel, bits), functions=_placed(private, 0x2000))


def kernelbase(kernel: Kernel, bits: int | None = None) -> UserImage:
    """Declare kernelbase.dll, which is there since 7."""
    bits = bits or native_bits(kernel)
    return _file(
        "kernelbase.dll", kernel, bits, exports=_of(_KERNELBASE, kernel, bits), functions=_placed(_PRIVATE, 0x2000)
    )


def cryptography(kernel: Kernel) -> tuple[UserImage, ...]:
    """Declare the DLLs of SystemFunction032: advapi32.dll, which since 7 forwards it to cryptbase.dll."""
    if kernel.version < WINDOWS_7:
        return (UserImage("advapi32.dll", exports=_placed(["SystemFunction032"])),)
    return (
        UserImage("advapi32.dll", forwards={"SystemFunction032": "CRYPTBASE.SystemFunction032"}),
        UserImage("cryptbase.dll", exports=_placed(["SystemFunction032", "SystemFunction040"])),
    )


def system(kernel: Kernel) -> tuple[UserImage, ...]:
    """Declare what every native program maps."""
    return _base(kernel, native_bits(kernel))


def _base(kernel: Kernel, bits: int) -> tuple[UserImage, ...]:
    common = (ntdll(kernel, bits), kernel32(kernel, bits))
    return (*common, kernelbase(kernel, bits)) if kernel.version >= WINDOWS_7 else common


def wow64(kernel: Kernel) -> tuple[UserImage, ...]:
    """Declare what a 32-bit program maps: on x64 its own DLLs and the 64-bit ones around them."""
    if not kernel.is_64bit:
        return system(kernel)
    around = tuple(UserImage(name, exports=_placed([export])) for name, export in _WOW64)
    return (ntdll(kernel), *around, *_base(kernel, 32))


#: The DLLs of WoW64, each with an export (Windows Internals, "WoW64").
_WOW64 = (("wow64.dll", "Wow64LdrpInitialize"), ("wow64win.dll", "sdwhwin32"), ("wow64cpu.dll", "BTCpuSimulate"))
