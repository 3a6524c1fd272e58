"""User APCs with a legitimate explanation: the nearest neighbours of the findings about what they would run."""

from __future__ import annotations

from dataclasses import replace

from apcaudit.synthetic.libraries import DISPATCHER_32, IO_COMPLETION, TIMER
from apcaudit.synthetic.scene import Apc, IoStackLocation, Irp
from apcaudit.synthetic.situations import owners
from apcaudit.synthetic.situations.queued import (
    ALERTABLE,
    NEWBORN,
    SINCE_7,
    SPECIAL_SINCE,
    armed_timer,
    dispatched,
    queued,
    reading,
    reserved,
    special,
)
from apcaudit.synthetic.situations.situation import SERVICE, WOW64, Situation

#: The nearest legitimate neighbours: nothing to say.
ORDINARY_USER_APCS: tuple[Situation, ...] = (
    Situation(
        "loader-of-xp",
        "the APC by which a new process's first thread runs the loader",
        {
            **NEWBORN,
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
        {**ALERTABLE, "state": "Ready", "user_apc_pending": True, "user_apcs": (dispatched("BAVSvc+0x1200", 7),)},
        owner=SERVICE,
    ),
    Situation(
        "read-file-ex",
        "ReadFileEx has completed: the routine that was given to it is NormalContext",
        {
            **ALERTABLE,
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
        {**ALERTABLE, "user_apcs": (queued(DISPATCHER_32, "avtray32+0x1200", 7, 0xFFFFFFFF),)},
        owner=WOW64,
        x64=True,
    ),
    Situation(
        "wow64-native-ntdll",
        "a 64-bit routine of ntdll.dll in a 32-bit program",
        {**ALERTABLE, "user_apcs": (queued("ntdll!RtlUserThreadStart+0x10"),)},
        owner=WOW64,
        x64=True,
    ),
    Situation(
        "reserve-object",
        "an APC that a program has kept a reserve object for",
        {**ALERTABLE, "state": "Ready", "user_apcs": (reserved("BAVSvc+0x1280", SERVICE),)},
        owner=SERVICE,
        needs=SINCE_7,
    ),
    Situation(
        "armed-timer",
        "a timer that has not expired: nothing is queued",
        {**ALERTABLE, "user_apcs": (armed_timer(TIMER),)},
        owner=SERVICE,
    ),
    Situation(
        "pending-read-file-ex",
        "ReadFileEx has not completed: nothing is queued",
        {**ALERTABLE, "requests": (reading(IO_COMPLETION, "BAVSvc+0x1300"),)},
        owner=SERVICE,
    ),
    Situation(
        "hooked-alike",
        "a function that a security product has hooked alike in every program that has it",
        {**ALERTABLE, "user_apcs": (queued("user32!PeekMessageW"),)},
        owner=owners.HOOKED,
    ),
    Situation(
        "managed-stub",
        "a stub of a managed run time, which has many alike",
        {**ALERTABLE, "user_apcs": (queued("memory:stub3"), dispatched("memory:stub7"))},
        owner=owners.MANAGED,
    ),
    Situation(
        "image-pages-not-in-memory",
        "functions of a DLL whose pages are not in the working set, or not in memory at all",
        {
            **ALERTABLE,
            "user_apcs": tuple(queued(f"idledll!{name}") for name in ("Trimmed", "LookedUp", "Unused", "Absent")),
        },
        owner=owners.IDLE,
    ),
)

#: Explained and worth seeing: low.
LOW_USER_APCS: tuple[Situation, ...] = (
    Situation(
        "early-load-by-driver",
        "a security product's driver lets a process that is being created load its DLL",
        {
            **NEWBORN,
            "user_apcs": (
                replace(
                    queued("ntdll!LdrLoadDll", 0, 0, "memory:early_product"),
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
            **ALERTABLE,
            "user_apcs": (
                replace(
                    queued("kernel32!LoadLibraryW", "memory:product_path"),
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
            **ALERTABLE,
            "alertable": False,
            "wait_reason": "Executive",
            "wait_mode": "kernel",
            "user_apc_pending": True,
            "user_apcs": (special("clr!DllGetClassObjectInternal+0x20"),),
        },
        {"special-user-apc": "low"},
        owner=owners.MANAGED,
        needs=SPECIAL_SINCE,
    ),
)
