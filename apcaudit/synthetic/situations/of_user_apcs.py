"""Situations that are findings about what a user APC would run, and where it lies."""

from __future__ import annotations

from dataclasses import replace

from apcaudit.synthetic.libraries import DISPATCHER
from apcaudit.synthetic.situations import owners
from apcaudit.synthetic.situations.owners import BEACON_STEPS, CONTEXT_STRIDE
from apcaudit.synthetic.situations.queued import (
    ALERTABLE,
    NEWBORN,
    SINCE_7,
    SPECIAL_SINCE,
    armed_timer,
    dispatched,
    queued,
    reserved,
    special,
)
from apcaudit.synthetic.situations.situation import SPECIAL_USER, Situation

_CHAIN = tuple(
    queued("ntdll!NtContinue", f"memory:contexts+{CONTEXT_STRIDE * number:#x}") for number in range(len(BEACON_STEPS))
)

OF_USER_APCS: tuple[Situation, ...] = (
    Situation(
        "early-bird",
        "shellcode is to run before a process that was created suspended runs anything of its own",
        {**NEWBORN, "user_apcs": (queued("memory:early"),)},
        {"user-apc-early": "high", "user-apc-private-code": "high"},
        owner=owners.EARLY,
    ),
    Situation(
        "early-bird-dispatched",
        "the same by QueueUserAPC: NormalContext is the shellcode",
        {**NEWBORN, "user_apcs": (queued(DISPATCHER, "memory:early_dispatched", 0, -1),)},
        {"user-apc-early": "high", "user-apc-private-code": "high"},
        owner=owners.EARLY_DISPATCHED,
        needs=SINCE_7,
    ),
    Situation(
        "injected-writable",
        "private memory that is writable and executable, the only such of its process",
        {**ALERTABLE, "user_apcs": (queued("memory:injected"),)},
        {"user-apc-private-code": "high"},
        owner=owners.INJECTED,
    ),
    Situation(
        "injected-dispatched",
        "the same memory by QueueUserAPC",
        {**ALERTABLE, "user_apcs": (dispatched("memory:injected+0x10"),)},
        {"user-apc-private-code": "high"},
        owner=owners.INJECTED,
    ),
    Situation(
        "not-executable",
        "private memory that is not executable",
        {**ALERTABLE, "user_apcs": (queued("memory:not_executable"),)},
        {"user-apc-nowhere": "medium"},
        owner=owners.INJECTED,
        no_execute=True,
    ),
    Situation(
        "injected-protected",
        "private memory that VirtualProtect has made executable and no longer writable",
        {**ALERTABLE, "user_apcs": (queued("memory:protected+0x1000"),)},
        {"user-apc-private-code": "medium"},
        owner=owners.PROTECTED,
        no_execute=True,
    ),
    Situation(
        "disarmed",
        "private memory that was executable, until VirtualProtect took that away",
        {**ALERTABLE, "user_apcs": (queued("memory:disarmed"),)},
        {"user-apc-nowhere": "medium"},
        owner=owners.PROTECTED,
        no_execute=True,
    ),
    Situation(
        "injected-paged-out",
        "private memory in the page file, of which only the VAD's protection is left",
        {**ALERTABLE, "user_apcs": (queued("memory:paged_out"),)},
        {"user-apc-private-code": "medium"},
        owner=owners.PAGED_OUT,
    ),
    Situation(
        "injected-in-transition",
        "private memory on its way out, still in its frame",
        {**ALERTABLE, "user_apcs": (queued("memory:in_transition"),)},
        {"user-apc-private-code": "medium"},
        owner=owners.PAGED_OUT,
    ),
    Situation(
        "special-user-apc-injected",
        "a special user APC waits for a thread's return from the kernel: it needs no alertable wait",
        {
            **ALERTABLE,
            "alertable": False,
            "wait_reason": "Executive",
            "wait_mode": "kernel",
            "user_apc_pending": True,
            "user_apcs": (special("memory:special"),),
        },
        {"special-user-apc": "high", "user-apc-private-code": "high"},
        owner=owners.SPECIAL,
        needs=SPECIAL_SINCE,
    ),
    Situation(
        "special-user-apc-suspended",
        "a special user APC in its first phase, to a suspended thread, that would run the program's own code",
        {
            **ALERTABLE,
            "alertable": False,
            "wait_reason": "Suspended",
            "kernel_apc_in_progress": True,
            "suspend_count": 1,
            "kernel_apcs": (replace(SPECIAL_USER, normal_routine="special+0x1200"),),
        },
        {"special-user-apc": "medium"},
        owner=owners.SPECIAL,
        needs=SPECIAL_SINCE,
    ),
    Situation(
        "sleeping-beacon",
        "a thread that sleeps, with a chain of NtContinue to decrypt and run its code again",
        {**ALERTABLE, "user_apcs": _CHAIN},
        {"user-apc-gadget": "high"},
        owner=owners.BEACON,
    ),
    Situation(
        "sleeping-beacon-not-alertable",
        "the same in the wait that one of its own APCs makes",
        {**ALERTABLE, "alertable": False, "user_apcs": _CHAIN[:3]},
        {"user-apc-gadget": "high"},
        owner=owners.BEACON,
    ),
    Situation(
        "write-by-memset",
        "an APC that would write one byte into the program's memory",
        {**ALERTABLE, "user_apcs": (queued("ntdll!memset", "memory:written", 0x90, 1),)},
        {"user-apc-gadget": "high"},
        owner=owners.WRITTEN,
    ),
    Situation(
        "atom-bombing",
        "an APC that would copy an atom's name into the program's memory",
        {**ALERTABLE, "user_apcs": (queued("kernel32!GlobalGetAtomNameW", 0xC042, "memory:written+0x100", 0x40),)},
        {"user-apc-gadget": "high"},
        owner=owners.WRITTEN,
    ),
    Situation(
        "decrypt-by-apc",
        "an APC that would decrypt memory, by the name that advapi32.dll forwards",
        {**ALERTABLE, "user_apcs": (queued(BEACON_STEPS[0], "memory:asleep", "memory:contexts"),)},
        {"user-apc-gadget": "high"},
        owner=owners.BEACON,
    ),
    Situation(
        "load-library",
        "another program has queued LoadLibraryW with a path",
        {**ALERTABLE, "user_apcs": (queued("kernel32!LoadLibraryW", "memory:foreign_path"),)},
        {"user-apc-loader": "medium"},
        owner=owners.LOADED,
    ),
    Situation(
        "load-library-dispatched",
        "the same by QueueUserAPC",
        {**ALERTABLE, "user_apcs": (dispatched("kernel32!LoadLibraryW", "memory:foreign_path"),)},
        {"user-apc-loader": "medium"},
        owner=owners.LOADED,
    ),
    Situation(
        "ldr-load-dll",
        "another program has queued LdrLoadDll, whose third argument is a UNICODE_STRING",
        {**ALERTABLE, "user_apcs": (queued("ntdll!LdrLoadDll", 0, 0, "memory:foreign_name"),)},
        {"user-apc-loader": "medium"},
        owner=owners.LOADED,
    ),
    Situation(
        "tool-in-wow64",
        "a 64-bit DLL's routine in a 32-bit program, not encoded",
        {**ALERTABLE, "user_apcs": (queued("avhook64!AvNotify"),)},
        {"user-apc-wow64": "medium"},
        owner=owners.MIXED,
        x64=True,
    ),
    Situation(
        "injected-in-wow64",
        "64-bit code in private memory of a 32-bit program",
        {**ALERTABLE, "user_apcs": (queued("memory:mixed"),)},
        {"user-apc-private-code": "high", "user-apc-wow64": "high"},
        owner=owners.MIXED,
        x64=True,
    ),
    Situation(
        "reserve-object-of-another",
        "an APC in the reserve object of another program, which has its handle",
        {**ALERTABLE, "user_apcs": (reserved("memory:injected+0x20", owners.LOADED),)},
        {"user-apc-private-code": "high"},
        owner=owners.INJECTED,
        needs=SINCE_7,
    ),
    Situation(
        "armed-timer-injected",
        "a timer that has not expired would run private memory: nothing is queued",
        {**ALERTABLE, "user_apcs": (armed_timer("memory:injected+0x30"),)},
        owner=owners.INJECTED,
    ),
    Situation(
        "unloaded-dll",
        "an APC of a DLL that has gone",
        {**ALERTABLE, "user_apcs": (queued(0x6E120000),)},
        {"user-apc-nowhere": "medium"},
        owner=owners.UNLOADED,
    ),
    Situation(
        "patched-image",
        "a function whose first bytes somebody has written over, in this program alone",
        {**ALERTABLE, "user_apcs": (queued("kernel32!SleepEx"),)},
        {"user-apc-patched-image": "medium"},
        owner=owners.PATCHED,
    ),
)
