"""The findings about a thread that ends, contradicts itself or starts in no module, and their legitimate neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest
from volatility3.plugins.windows.apcaudit.checks import check_thread
from volatility3.plugins.windows.apcaudit.model import Backing, BugCheck, Code, Facts, ModuleConflict, NotCode, Thread

from tests.situations_pure import (
    APC_LIST_ENTRY,
    APC_SIZE,
    ATTACHED,
    IDLE,
    IN_DRIVER,
    OTHER,
    OWNER,
    RUNNING,
    TERMINATED,
    THREAD,
    TO_WINDOWS_XP,
    WINDOWS_XP,
    case,
    normal,
    severities,
    special,
    thread,
    user,
)

IN_UNLOADED = Code(0xFFFFF80005550000, Backing.UNLOADED, "0xfffff80005550000", former="Bfilter.sys")

IN_DATA = replace(IN_DRIVER, not_code=NotCode("in the section .data of Bfilter, which is not executable", certain=True))
IN_FUNCTION = replace(IN_DRIVER, not_code=NotCode("0x30 bytes into a function", certain=False))

WIDE = ModuleConflict("the entry of wide claims it", overlapping=True)
STOPPED_BY_0X20 = Facts(APC_SIZE, bugcheck=BugCheck(0x20, (0, 0xFFFF, 0, 1), "nt!KiBugCheckData"))
STOPPED_BY_0X6 = Facts(APC_SIZE, bugcheck=BugCheck(0x6, (0, 0, 0, 0), "nt!KiBugCheckData"))

EXIT = [
    case("terminated, an APC queued", thread(kernel=[special()], **TERMINATED), {"exit-bugcheck": "high"}),
    case("terminated in a critical region", thread(kernel_apc_disable=-1, **TERMINATED), {"exit-bugcheck": "high"}),
    case("terminated in a guarded region", thread(special_apc_disable=-1, **TERMINATED), {"exit-bugcheck": "high"}),
    case(
        "XP, terminated in a critical region",
        thread(kernel_apc_disable=-1, **TERMINATED, **TO_WINDOWS_XP),
        {"exit-bugcheck": "high"},
        WINDOWS_XP,
    ),
    case(
        "stopped by 0x20 on this thread",
        thread(kernel_apc_disable=-1, **RUNNING, terminated=1, apc_queueable=0),
        {"exit-bugcheck": "critical"},
        STOPPED_BY_0X20,
    ),
    case(
        "stopped by 0x20 for the APC at the head of this thread's list",
        thread(kernel=[special(address=0xFFFF8A0000099008)], **RUNNING, terminated=None),
        {"exit-bugcheck": "critical"},
        Facts(APC_SIZE, bugcheck=BugCheck(0x20, (0xFFFF8A0000099008 + APC_LIST_ENTRY, 0, 0, 0), "header")),
    ),
    case(
        "stopped by 0x20, but this thread had ended before",
        thread(kernel=[special()], **TERMINATED),
        {"exit-bugcheck": "high"},
        STOPPED_BY_0X20,
    ),
    case(
        "stopped by 0x20 while this thread ran in a critical region on another processor",
        thread(kernel_apc_disable=-1, **RUNNING),
        {},
        STOPPED_BY_0X20,
    ),
    case(
        "stopped by something else while this thread ended in a critical region",
        thread(kernel_apc_disable=-1, **RUNNING, terminated=1),
        {},
        STOPPED_BY_0X6,
    ),
    case("terminated, a user APC left", thread(user=[user()], **TERMINATED), {}),
    case("terminated, nothing left", thread(**TERMINATED), {}),
    case(
        "marked for termination, the exit queued as an APC, in a critical region",
        thread(kernel=[normal()], kernel_apc_disable=-1, terminated=1, apc_queueable=0),
        {},
    ),
    case("State unreadable", thread(kernel_apc_disable=-1, **{**TERMINATED, "state": None}), {}),
]

STATE = [
    case("ApcStateIndex 2", thread(apc_state_index=2), {"state-mismatch": "medium"}),
    case("ApcStateIndex 0xff", thread(apc_state_index=0xFF), {"state-mismatch": "medium"}),
    case("not attached, in another process", thread(apc_process=OTHER.address), {"state-mismatch": "medium"}),
    case("not attached, SavedApcState.Process left", thread(saved_process=OWNER.address), {"state-mismatch": "medium"}),
    case(
        "attached, SavedApcState of another process",
        thread(**{**ATTACHED, "saved_process": OTHER.address}),
        {"state-mismatch": "medium"},
    ),
    case(
        "attached, SavedApcState.Process null", thread(**{**ATTACHED, "saved_process": 0}), {"state-mismatch": "medium"}
    ),
    case("attached to its own process", thread(**{**ATTACHED, "apc_process": OWNER.address}), {}),
    case(
        "the owner from the process's list where _KTHREAD.Process is unreadable",
        thread(process=None, apc_process=OTHER.address),
        {"state-mismatch": "medium"},
    ),
    case(
        "not attached, stale links in SavedApcState",
        thread(
            saved_kernel_flink=THREAD + 0x258,
            saved_kernel_blink=THREAD + 0x258,
            saved_user_flink=0xFFFFF90000123450,
            saved_user_blink=0xFFFFF90000123450,
        ),
        {},
    ),
    case("the owner unknown", thread(process=None, owner=None, apc_process=OTHER.address), {}),
    case("ApcStateIndex unreadable", thread(apc_state_index=None, apc_process=OTHER.address), {}),
    case("ApcState.Process unreadable", thread(apc_process=None), {}),
    case("attached, SavedApcState.Process unreadable", thread(**{**ATTACHED, "saved_process": None}), {}),
]

QUEUEABLE = [
    case("a waiting thread refuses APCs", thread(apc_queueable=0), {"not-queueable": "medium"}),
    case("a running thread refuses APCs", thread(apc_queueable=0, **RUNNING), {"not-queueable": "medium"}),
    case("marked for termination", thread(apc_queueable=0, terminated=1), {}),
    case("terminated", thread(**{**TERMINATED, "terminated": 0}), {}),
    case(
        "before it starts: the flag is set when a thread is initialized",
        thread(apc_queueable=0, state=0),
        {"not-queueable": "medium"},
    ),
    case("its end was requested in the _KTHREAD (8.1+)", thread(apc_queueable=0, termination_request=1), {}),
    case("an idle thread, not attached", thread(apc_queueable=0, idle=True, **RUNNING), {}),
    case("ApcQueueable unreadable", thread(apc_queueable=None), {}),
    case("whether it is marked for termination is unknown", thread(apc_queueable=0, terminated=None), {}),
    case("State unreadable", thread(apc_queueable=0, state=None), {}),
]

ORPHAN = [
    case(
        "a system thread starts in no module",
        thread(start_address=0xFFFF8A0000345010, start_backing=Backing.NOTHING),
        {"orphan-start": "high"},
    ),
    case(
        "a system thread starts in user space",
        thread(start_address=0x7FF612340000, start_backing=Backing.USER),
        {"orphan-start": "high"},
    ),
    case(
        "a system thread starts where an unloaded driver was",
        thread(start=IN_UNLOADED, start_address=IN_UNLOADED.address, start_backing=Backing.UNLOADED),
        {"orphan-start": "high", "unloaded-start": "high"},
    ),
    case(
        "a system thread starts in a module where nothing can be run",
        thread(start=IN_DATA, start_address=IN_DATA.address, start_backing=Backing.MODULE),
        {"routine-not-code": "high"},
    ),
    case(
        "a system thread starts within a function",
        thread(start=IN_FUNCTION, start_address=IN_FUNCTION.address, start_backing=Backing.MODULE),
        {"routine-not-code": "medium"},
    ),
    case("0 is no address", thread(start_address=0, start_backing=Backing.USER), {}),
    *(
        case(
            f"terminated: its driver may have gone ({backing.name})",
            thread(start=IN_UNLOADED, start_address=IN_UNLOADED.address, start_backing=backing, **TERMINATED),
            {},
        )
        for backing in (Backing.NOTHING, Backing.UNLOADED)
    ),
    case(
        "terminated, starting where module entries contradict one another",
        thread(
            start_backing=Backing.MODULE,
            start_conflict=ModuleConflict("wide claims it", overlapping=True),
            **TERMINATED,
        ),
        {},
    ),
    case(
        "starting where module entries contradict one another",
        thread(start_backing=Backing.MODULE, start_conflict=WIDE),
        {"module-conflict": "high"},
    ),
    case("a system thread starts in a driver", thread(start_backing=Backing.MODULE), {}),
    case("the modules could not be read", thread(start_backing=Backing.UNKNOWN), {}),
    case(
        "a user thread: no module of the kernel holds its start",
        thread(system_thread=0, start_address=0x7FF612340000),
        {},
    ),
    case("the start address unreadable", thread(start_address=None, start_backing=None), {}),
    case("the idle thread has none", thread(**IDLE, start_backing=Backing.USER), {}),
]


@pytest.mark.parametrize(("subject", "facts", "expected"), [*EXIT, *STATE, *QUEUEABLE, *ORPHAN])
def test_findings_of_a_thread(subject: Thread, facts: Facts, expected: dict[str, str]) -> None:
    """A thread carries exactly the findings whose condition holds, each with its severity."""
    assert severities(check_thread(subject, facts)) == expected
