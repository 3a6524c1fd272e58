"""Situations of user APCs: what would run in user mode, and where it lies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from apcaudit.synthetic.libraries import DISPATCHER, DISPATCHER_32, IO_COMPLETION, TIMER
from apcaudit.synthetic.scene import Address, Apc, IoStackLocation, Irp
from apcaudit.synthetic.situations import owners
from apcaudit.synthetic.situations.owners import BEACON_STEPS, CONTEXT_STRIDE
from apcaudit.synthetic.situations.situation import (
    SERVICE,
    SPECIAL_USER,
    WOW64,
    Situation,
    armed_timer,
    reading,
    reserved,
)

#: A thread of a program in an alertable wait, as those are that take APCs.
_ALERTABLE: dict[str, Any] = {"start": "ntdll+0x1100", "wait_reason": "DelayExecution", "alertable": True}
#: The first thread of a process that was created suspended, in its suspending APC, before its first instruction.
_NEWBORN: dict[str, Any] = {
    "start": "ntdll!RtlUserThreadStart|ntdll!LdrInitializeThunk",
    "instruction": "ntdll!RtlUserThreadStart|ntdll!LdrInitializeThunk",
    "wait_reason": "Suspended",
    "kernel_apc_in_progress": True,
    "suspend_count": 1,
}
#: What 7 brought: reserve objects, and a dispatcher in ntdll.dll, which a newborn process has.
_SINCE_7 = ("nt!PspUserApcReserveKernelRoutine",)
_SPECIAL_SINCE = ("nt!KeSpecialUserApcKernelRoutine",)


def _queued(target: Address, context: Address = 0, first: Address = 0, second: Address = 0) -> Apc:
    """Declare a user APC of NtQueueApcThread, with its three arguments."""
    return Apc(
        "nt!IopDeallocateApc",
        normal_routine=target,
        normal_context=context,
        system_argument1=first,
        system_argument2=second,
        pool_tag=b"PsAp",
    )


def _dispatched(target: Address, argument: Address = 0) -> Apc:
    """Declare a user APC of QueueUserAPC; it has no activation context, which is -1."""
    return _queued(DISPATCHER, target, argument, -1)


def _special(target: Address) -> Apc:
    """Declare a special user APC in its second phase."""
    return replace(SPECIAL_USER, normal_routine=target, mode="user", pool_tag=b"PsAp")


_CHAIN = tuple(
    _queued("ntdll!NtContinue", f"memory:contexts+{CONTEXT_STRIDE * number:#x}") for number in range(len(BEACON_STEPS))
)

OF_USER_APCS: tuple[Situation, ...] = (
    Situation(
        "early-bird",
        "shellcode is to run before a process that was created suspended runs anything of its own",
        {**_NEWBORN, "user_apcs": (_queued("memory:early"),)},
        {"user-apc-early": "high", "user-apc-private-code": "high"},
        owner=owners.EARLY,
    ),
    Situation(
        "early-bird-dispatched",
        "the same by QueueUserAPC: NormalContext is the shellcode",
        {**_NEWBORN, "user_apcs": (_queued(DISPATCHER, "memory:early_dispatched", 0, -1),)},
        {"user-apc-early": "high", "user-apc-private-code": "high"},
        owner=owners.EARLY_DISPATCHED,
        needs=_SINCE_7,
    ),
    Situation(
        "injected-writable",
        "private memory that is writable and executable, the only such of its process",
        {**_ALERTABLE, "user_apcs": (_queued("memory:injected"),)},
        {"user-apc-private-code": "high"},
        owner=owners.INJECTED,
    ),
    Situation(
        "injected-dispatched",
        "the same memory by QueueUserAPC",
        {**_ALERTABLE, "user_apcs": (_dispatched("memory:injected+0x10"),)},
        {"user-apc-private-code": "high"},
        owner=owners.INJECTED,
    ),
    Situation(
        "not-executable",
        "private memory that is not executable",
        {**_ALERTABLE, "user_apcs": (_queued("memory:not_executable"),)},
        {"user-apc-nowhere": "medium"},
        owner=owners.INJECTED,
    ),
    Situation(
        "injected-protected",
        "private memory that VirtualProtect has made executable and no longer writable",
        {**_ALERTABLE, "user_apcs": (_queued("memory:protected+0x1000"),)},
        {"user-apc-private-code": "medium"},
        owner=owners.PROTECTED,
    ),
    Situation(
        "disarmed",
        "private memory that was executable, until VirtualProtect took that away",
        {**_ALERTABLE, "user_apcs": (_queued("memory:disarmed"),)},
        {"user-apc-nowhere": "medium"},
        owner=owners.PROTECTED,
    ),
    Situation(
        "injected-paged-out",
        "private memory in the page file, of which only the VAD's protection is left",
        {**_ALERTABLE, "user_apcs": (_queued("memory:paged_out"),)},
        {"user-apc-private-code": "medium"},
        owner=owners.PAGED_OUT,
    ),
    Situation(
        "injected-in-transition",
        "private memory on its way out, still in its frame",
        {**_ALERTABLE, "user_apcs": (_queued("memory:in_transition"),)},
        {"user-apc-private-code": "medium"},
        owner=owners.PAGED_OUT,
    ),
    Situation(
        "special-user-apc-injected",
        "a special user APC waits for a thread's return from the kernel: it needs no alertable wait",
        {
            **_ALERTABLE,
            "alertable": False,
            "wait_reason": "Executive",
            "wait_mode": "kernel",
            "user_apc_pending": True,
            "user_apcs": (_special("memory:special"),),
        },
        {"special-user-apc": "high", "user-apc-private-code": "high"},
        owner=owners.SPECIAL,
        needs=_SPECIAL_SINCE,
    ),
    Situation(
        "special-user-apc-suspended",
        "a special user APC in its first phase, to a suspended thread, that would run the program's own code",
        {
            **_ALERTABLE,
            "alertable": False,
            "wait_reason": "Suspended",
            "kernel_apc_in_progress": True,
            "suspend_count": 1,
            "kernel_apcs": (replace(SPECIAL_USER, normal_routine="special+0x1200"),),
        },
        {"special-user-apc": "medium"},
        owner=owners.SPECIAL,
        needs=_SPECIAL_SINCE,
    ),
    Situation(
        "sleeping-beacon",
        "a thread that sleeps, with a chain of NtContinue to decrypt and run its code again",
        {**_ALERTABLE, "user_apcs": _CHAIN},
        {"user-apc-gadget": "high"},
        owner=owners.BEACON,
    ),
    Situation(
        "sleeping-beacon-not-alertable",
        "the same in the wait that one of its own APCs makes",
        {**_ALERTABLE, "alertable": False, "user_apcs": _CHAIN[:3]},
        {"user-apc-gadget": "high"},
        owner=owners.BEACON,
    ),
    Situation(
        "write-by-memset",
        "an APC that would write one byte into the program's memory",
        {**_ALERTABLE, "user_apcs": (_queued("ntdll!memset", "memory:written", 0x90, 1),)},
        {"user-apc-gadget": "high"},
        owner=owners.WRITTEN,
    ),
    Situation(
        "atom-bombing",
        "an APC that would copy an atom's name into the program's memory",
        {**_ALERTABLE, "user_apcs": (_queued("kernel32!GlobalGetAtomNameW", 0xC042, "memory:written+0x100", 0x40),)},
        {"user-apc-gadget": "high"},
        owner=owners.WRITTEN,
    ),
    Situation(
        "decrypt-by-apc",
        "an APC that would decrypt memory, by the name that advapi32.dll forwards",
        {**_ALERTABLE, "user_apcs": (_queued(BEACON_STEPS[0], "memory:asleep", "memory:contexts"),)},
        {"user-apc-gadget": "high"},
        owner=owners.BEACON,
    ),
    Situation(
        "load-library",
        "another program has queued LoadLibraryW with a path",
        {**_ALERTABLE, "user_apcs": (_queued("kernel32!LoadLibraryW", "memory:foreign_path"),)},
        {"user-apc-loader": "medium"},
        owner=owners.LOADED,
    ),
    Situation(
        "load-library-dispatched",
        "the same by QueueUserAPC",
        {**_ALERTABLE, "user_apcs": (_dispatched("kernel32!LoadLibraryW", "memory:foreign_path"),)},
        {"user-apc-loader": "medium"},
        owner=owners.LOADED,
    ),
    Situation(
        "ldr-load-dll",
        "another program has queued LdrLoadDll, whose third argument is a UNICODE_STRING",
        {**_ALERTABLE, "user_apcs": (_queued("ntdll!LdrLoadDll", 0, 0, "memory:foreign_name"),)},
        {"user-apc-loader": "medium"},
        owner=owners.LOADED,
    ),
    Situation(
        "tool-in-wow64",
        "a 64-bit DLL's routine in a 32-bit program, not encoded",
        {**_ALERTABLE, "user_apcs": (_queued("avhook64!AvNotify"),)},
        {"user-apc-wow64": "medium"},
        owner=owners.MIXED,
        x64=True,
    ),
    Situation(
        "injected-in-wow64",
        "64-bit code in private memory of a 32-bit program",
        {**_ALERTABLE, "user_apcs": (_queued("memory:mixed"),)},
        {"user-apc-private-code": "high", "user-apc-wow64": "high"},
        owner=owners.MIXED,
        x64=True,
    ),
    Situation(
        "reserve-object-of-another",
        "an APC in the reserve object of another program, which has its handle",
        {**_ALERTABLE, "user_apcs": (reserved("memory:injected+0x20", owners.LOADED),)},
        {"user-apc-private-code": "high"},
        owner=owners.INJECTED,
        needs=_SINCE_7,
    ),
    Situation(
        "armed-timer-injected",
        "a timer that has not expired would run private memory: nothing is queued",
        {**_ALERTABLE, "user_apcs": (armed_timer("memory:injected+0x30"),)},
        owner=owners.INJECTED,
    ),
    Situation(
        "unloaded-dll",
        "an APC of a DLL that has gone",
        {**_ALERTABLE, "user_apcs": (_queued(0x6E120000),)},
        {"user-apc-nowhere": "medium"},
        owner=owners.UNLOADED,
    ),
    Situation(
        "patched-image",
        "a function whose first bytes somebody has written over, in this program alone",
        {**_ALERTABLE, "user_apcs": (_queued("kernel32!SleepEx"),)},
        {"user-apc-patched-image": "medium"},
        owner=owners.PATCHED,
    ),
)

#: Explained and worth seeing: low.
LOW_USER_APCS: tuple[Situation, ...] = (
    Situation(
        "early-load-by-driver",
        "a security product's driver lets a process that is being created load its DLL",
        {
            **_NEWBORN,
            "user_apcs": (
                replace(
                    _queued("ntdll!LdrLoadDll", 0, 0, "memory:early_product"),
                    kernel_routine="avhook!AvApcKernelRoutine",
                    pool_tag=b"AvAp",
                ),
            ),
        },
        {"user-apc-early": "low", "user-apc-loader": "low"},
        owner=owners.EARLY_FOR_PRODUCT,
    ),
    Situation(
        "load-library-by-driver",
        "a security product's driver lets a program load its DLL",
        {
            **_ALERTABLE,
            "user_apcs": (
                replace(
                    _queued("kernel32!LoadLibraryW", "memory:product_path"),
                    kernel_routine="avhook!AvApcKernelRoutine",
                    pool_tag=b"AvAp",
                ),
            ),
        },
        {"user-apc-loader": "low"},
        owner=SERVICE,
    ),
    Situation(
        "garbage-collector",
        "a managed run time stops its own threads by special user APCs",
        {
            **_ALERTABLE,
            "alertable": False,
            "wait_reason": "Executive",
            "wait_mode": "kernel",
            "user_apc_pending": True,
            "user_apcs": (_special("clr!DllGetClassObjectInternal+0x20"),),
        },
        {"special-user-apc": "low"},
        owner=owners.MANAGED,
        needs=_SPECIAL_SINCE,
    ),
)

#: The nearest legitimate neighbours: nothing to say.
ORDINARY_USER_APCS: tuple[Situation, ...] = (
    Situation(
        "loader-of-xp",
        "the APC by which a new process's first thread runs the loader",
        {
            **_NEWBORN,
            "wait_reason": "Executive",
            "kernel_apc_in_progress": False,
            "suspend_count": 0,
            "state": "Ready",
            "user_apcs": (Apc("nt!PspNullSpecialApc", normal_routine="ntdll!LdrInitializeThunk", pool_tag=None),),
        },
        owner=owners.EARLY_LOADER,
        needs=("nt!PspNullSpecialApc",),
    ),
    Situation(
        "queue-user-apc",
        "QueueUserAPC of a program to one of its own threads",
        {**_ALERTABLE, "state": "Ready", "user_apc_pending": True, "user_apcs": (_dispatched("BAVSvc+0x1200", 7),)},
        owner=SERVICE,
    ),
    Situation(
        "read-file-ex",
        "ReadFileEx has completed: the routine that was given to it is NormalContext",
        {
            **_ALERTABLE,
            "state": "Ready",
            "user_apc_pending": True,
            "user_apcs": (
                Apc(
                    "nt!IopUserCompletion",
                    rundown_routine="nt!IopUserRundown",
                    normal_routine=IO_COMPLETION,
                    normal_context="BAVSvc+0x1300",
                    system_argument1="memory:overlapped",
                    irp=Irp(
                        (IoStackLocation("fltMgr.sys", major=3),), user_iosb="memory:overlapped", in_irp_list=False
                    ),
                ),
            ),
        },
        owner=SERVICE,
    ),
    Situation(
        "wow64-queue-user-apc",
        "QueueUserAPC of a 32-bit program: the routine is encoded, its argument is not",
        {**_ALERTABLE, "user_apcs": (_queued(DISPATCHER_32, "avtray32+0x1200", 7, 0xFFFFFFFF),)},
        owner=WOW64,
        x64=True,
    ),
    Situation(
        "wow64-native-ntdll",
        "a 64-bit routine of ntdll.dll in a 32-bit program",
        {**_ALERTABLE, "user_apcs": (_queued("ntdll!RtlUserThreadStart+0x10"),)},
        owner=WOW64,
        x64=True,
    ),
    Situation(
        "reserve-object",
        "an APC that a program has kept a reserve object for",
        {**_ALERTABLE, "state": "Ready", "user_apcs": (reserved("BAVSvc+0x1280", SERVICE),)},
        owner=SERVICE,
        needs=_SINCE_7,
    ),
    Situation(
        "armed-timer",
        "a timer that has not expired: nothing is queued",
        {**_ALERTABLE, "user_apcs": (armed_timer(TIMER),)},
        owner=SERVICE,
    ),
    Situation(
        "pending-read-file-ex",
        "ReadFileEx has not completed: nothing is queued",
        {**_ALERTABLE, "requests": (reading(IO_COMPLETION, "BAVSvc+0x1300"),)},
        owner=SERVICE,
    ),
    Situation(
        "hooked-alike",
        "a function that a security product has hooked alike in every program that has it",
        {**_ALERTABLE, "user_apcs": (_queued("user32!PeekMessageW"),)},
        owner=owners.HOOKED,
    ),
    Situation(
        "managed-stub",
        "a stub of a managed run time, which has many alike",
        {**_ALERTABLE, "user_apcs": (_queued("memory:stub3"), _dispatched("memory:stub7"))},
        owner=owners.MANAGED,
    ),
)
