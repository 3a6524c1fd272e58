"""Threads and APCs in situations, as values: what the pure checks are tested on, with no image behind them.

A thread is by default what Windows has most of: waiting at PASSIVE_LEVEL, not attached, nothing queued.
An APC is by default what the kernel queues: Type, Size, Thread, Inserted and environment as they should be,
routines in the kernel. What a test is about is overridden by the member's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit import windows
from volatility3.plugins.windows.apcaudit.findings import Finding, Severity
from volatility3.plugins.windows.apcaudit.model import (
    Apc,
    Backing,
    Code,
    Ending,
    Facts,
    Process,
    Queue,
    QueueName,
    Thread,
    ThreadMembers,
)
from volatility3.plugins.windows.apcaudit.targets import Target

# Where things lie in a 64-bit system: the address in the pool, the offsets of 10 (19041).
THREAD = 0xFFFF8A0000004080
KERNEL_HEAD, USER_HEAD = THREAD + 0x98, THREAD + 0xA8
SAVED_KERNEL_HEAD, SAVED_USER_HEAD = THREAD + 0x258, THREAD + 0x268
APC_LIST_ENTRY = 0x10
APC_SIZE = 0x58

OWNER = Process(0xFFFF8A0000001080, 4, "System")
OTHER = Process(0xFFFF8A0000002080, 1172, "BAVSvc.exe")

# The kernel's routines that the rules ask for; what the linker has folded into one address on every Windows since 8.
NO_OP = 0xFFFFF80000300000
ROUTINES = {
    **{name: 0xFFFFF80000200000 + 0x100 * number for number, name in enumerate(sorted(windows.ROUTINES))},
    "KiSchedulerApcNop": NO_OP,
    "KiSchedulerApcRundown": NO_OP,
}
# Where a thread holds the KAPCs that are parts of it: offsets of 11 (26100).
EMBEDDED = {"SchedulerApc": THREAD + 0x288, "UpdateTebApc": THREAD + 0x720}
TEB_MEMBERS = frozenset(name for name in ThreadMembers._fields if name.startswith("teb_apc_"))

# KWAIT_REASON of XP ends before the reasons of preempted threads (public PDB).
XP_WAIT_REASONS = windows.WAIT_REASONS[:27]

WINDOWS_11_24H2 = Facts(apc_size=APC_SIZE, routines=ROUTINES, embedded=frozenset(EMBEDDED))
WINDOWS_10 = Facts(apc_size=APC_SIZE, lacks=TEB_MEMBERS, routines=ROUTINES, embedded=frozenset({"SchedulerApc"}))
WINDOWS_7 = Facts(
    apc_size=APC_SIZE,
    lacks=TEB_MEMBERS | {"special_apc_in_progress", "termination_request"},
    routines=ROUTINES,
    embedded=frozenset({"SuspendApc"}),
)
WINDOWS_XP = Facts(
    apc_size=0x30,
    lacks=WINDOWS_7.lacks | {"special_apc_disable", "wait_state"},
    routines=ROUTINES,
    wait_reasons=XP_WAIT_REASONS,
    embedded=frozenset({"SuspendApc"}),
)


def code(address: int, backing: Backing = Backing.MODULE, text: str = "", module: str | None = None) -> Code:
    """Return a code address as the drivers' table would name it."""
    return Code(address, backing, text or f"{address:#x}", module)


def routine(name: str) -> Code:
    """Return the address of one of the kernel's routines."""
    return code(ROUTINES[name], text=f"nt!{name}", module="nt")


NO_ROUTINE = code(0, Backing.USER)
IN_KERNEL = code(0xFFFFF8000020A5C0, text="nt!IopCompleteRequest", module="nt")
IN_DRIVER = code(0xFFFFF80001231000, text="Bfilter!DriverEntry+0x10", module="Bfilter")
IN_POOL = code(0xFFFF8A0000345000, Backing.NOTHING)
IN_UNLOADED = Code(0xFFFFF80005550000, Backing.UNLOADED, "0xfffff80005550000", former="Bfilter.sys")
IN_USER_SPACE = code(0x00007FF612340000, Backing.USER)
NOT_CANONICAL = code(0x4141414141414141, Backing.USER)
NOBODY_KNOWS = code(0xFFFFF80007770000, Backing.UNKNOWN)

_MEMBERS = ThreadMembers(
    pid=4,
    tid=260,
    dispatcher_type=6,
    process=OWNER.address,
    state=5,
    wait_reason=15,
    wait_irql=0,
    wait_mode=0,
    wait_state=1,
    suspend_count=0,
    freeze_count=0,
    alertable=0,
    apc_queueable=1,
    apc_state_index=0,
    kernel_apc_disable=0,
    special_apc_disable=0,
    terminated=0,
    termination_request=0,
    system_thread=1,
    start_address=IN_DRIVER.address,
    win32_start_address=0,
    next_processor=0,
    kernel_stack=0xFFFFF90000006A00,
    initial_stack=0xFFFFF90000007000,
    stack_base=0xFFFFF90000007000,
    stack_limit=0xFFFFF90000001000,
    thread_list_flink=OWNER.address + 0x5E0,
    thread_list_blink=OWNER.address + 0x5E0,
    irp_list_flink=THREAD + 0x538,
    create_time=132_000_000_000_000_000,
    exit_time=0,
    apc_kernel_flink=KERNEL_HEAD,
    apc_kernel_blink=KERNEL_HEAD,
    apc_user_flink=USER_HEAD,
    apc_user_blink=USER_HEAD,
    apc_process=OWNER.address,
    kernel_apc_in_progress=0,
    special_apc_in_progress=0,
    kernel_apc_pending=0,
    user_apc_pending=0,
    saved_kernel_flink=0,
    saved_kernel_blink=0,
    saved_user_flink=0,
    saved_user_blink=0,
    saved_process=0,
    suspend_apc_type=18,
    suspend_apc_size=APC_SIZE,
    suspend_apc_thread=THREAD,
    suspend_apc_kernel=NO_OP,
    suspend_apc_rundown=NO_OP,
    suspend_apc_normal=ROUTINES["KiSchedulerApc"],
    suspend_apc_inserted=0,
    **dict.fromkeys(TEB_MEMBERS),
)

TO_WINDOWS_7: dict[str, Any] = {
    "special_apc_in_progress": None,
    "termination_request": None,
    "suspend_apc_kernel": ROUTINES["KiSuspendNop"],
    "suspend_apc_rundown": ROUTINES["KiSuspendRundown"],
    "suspend_apc_normal": ROUTINES["KiSuspendThread"],
}
"""Members of a thread as Windows 7 has them."""

TO_WINDOWS_XP: dict[str, Any] = {
    **TO_WINDOWS_7,
    "special_apc_disable": None,
    "wait_state": None,
    "suspend_apc_size": 0x30,
}
"""Members of a thread as Windows XP has them."""

ATTACHED: dict[str, Any] = {
    "apc_state_index": 1,
    "apc_process": OTHER.address,
    "saved_process": OWNER.address,
    "saved_kernel_flink": SAVED_KERNEL_HEAD,
    "saved_kernel_blink": SAVED_KERNEL_HEAD,
    "saved_user_flink": SAVED_USER_HEAD,
    "saved_user_blink": SAVED_USER_HEAD,
}
"""Members of a thread that KeStackAttachProcess has attached to another process."""

RUNNING: dict[str, Any] = {"state": 2, "processor": 0}
"""A thread on a processor."""

# Genuine Windows 8.1 and 10 dumps: idle threads run attached, with ApcQueueable 0 and WaitIrql 2.
IDLE: dict[str, Any] = {
    **ATTACHED,
    **RUNNING,
    "pid": 0,
    "tid": 0,
    "apc_queueable": 0,
    "wait_irql": 2,
    "start_address": 0,
    "idle": True,
}

TERMINATED: dict[str, Any] = {"state": 4, "terminated": 1, "apc_queueable": 0, "exit_time": 132_000_000_000_000_001}
"""A thread that has ended."""

ABSENT = 0xFFFF8A0000770040
ABSENT_ENTRY = ABSENT + APC_LIST_ENTRY
"""The KAPC of absent_queue, and its LIST_ENTRY."""

_FITTING = -1  # stands for the environment that fits the list, until the APC is put on one

_APC = Apc(
    address=0xFFFF8A0000010008,
    queue=QueueName.KERNEL,
    position=0,
    type=18,
    size=APC_SIZE,
    thread=THREAD,
    kernel_routine=IN_KERNEL,
    rundown_routine=NO_ROUTINE,
    normal_routine=NO_ROUTINE,
    normal_context=0,
    system_argument1=0,
    system_argument2=0,
    apc_state_index=_FITTING,
    apc_mode=0,
    inserted=1,
)


def special(**overrides: Any) -> Apc:
    """Return a special kernel APC: one without a NormalRoutine."""
    return replace(_APC, **overrides)


def normal(**overrides: Any) -> Apc:
    """Return a normal kernel APC."""
    return special(**{"normal_routine": IN_DRIVER, **overrides})


def user(**overrides: Any) -> Apc:
    """Return a user APC as NtQueueApcThread makes it."""
    return special(**{"normal_routine": IN_USER_SPACE, "apc_mode": 1, **overrides})


def scheduler(**overrides: Any) -> Apc:
    """Return the SchedulerApc of the thread: what suspends, freezes and ends it since 8."""
    values = {
        "address": EMBEDDED["SchedulerApc"],
        "member": "SchedulerApc",
        "kernel_routine": code(NO_OP, text="nt!KiSchedulerApcNop", module="nt"),
        "rundown_routine": code(NO_OP, text="nt!KiSchedulerApcNop", module="nt"),
        "normal_routine": routine("KiSchedulerApc"),
    }
    return special(**{**values, **overrides})


def teb_update(**overrides: Any) -> Apc:
    """Return the UpdateTebApc of the thread (24H2)."""
    values = {
        "address": EMBEDDED["UpdateTebApc"],
        "member": "UpdateTebApc",
        "kernel_routine": code(NO_OP, text="nt!KiSchedulerApcNop", module="nt"),
        "normal_routine": routine("KiUpdateTebApc"),
    }
    return special(**{**values, **overrides})


def thread(
    *,
    kernel: Sequence[Apc] = (),
    user: Sequence[Apc] = (),
    saved_kernel: Sequence[Apc] = (),
    saved_user: Sequence[Apc] = (),
    damaged: Iterable[Queue] = (),
    target: Target | None = None,
    **overrides: Any,
) -> Thread:
    """Return a thread with these lists; every other argument is a ThreadMembers or a Thread member.

    `target` is what each of its user APCs would run.

    The APCs get position, list and, where they lie at the default address, an address of their own. The heads'
    Flinks and, in an attached thread, the environments of what is queued follow from the lists.
    """
    members = _MEMBERS._replace(**{name: overrides.pop(name) for name in _MEMBERS._fields if name in overrides})
    index = members.apc_state_index if members.apc_state_index == 1 else 0
    queues = []
    for name, flink, head, apcs in (
        (QueueName.KERNEL, "apc_kernel_flink", KERNEL_HEAD, kernel),
        (QueueName.USER, "apc_user_flink", USER_HEAD, user),
        (QueueName.SAVED_KERNEL, "saved_kernel_flink", SAVED_KERNEL_HEAD, saved_kernel),
        (QueueName.SAVED_USER, "saved_user_flink", SAVED_USER_HEAD, saved_user),
    ):
        if apcs:
            placed = [_place(apc, name, position, index) for position, apc in enumerate(apcs)]
            members = members._replace(**{flink: placed[0].address + APC_LIST_ENTRY})
            queues.append(Queue(name, head, tuple(placed), Ending.CLOSED, placed[-1].address + APC_LIST_ENTRY))
    attached = OTHER if members.apc_process == OTHER.address else None
    user_apcs = [apc for queue in queues for apc in queue.apcs if apc.is_user]
    targets = {} if target is None else {apc.key: target for apc in user_apcs}
    values = {"owner": OWNER, "attached": attached, "targets": targets, **overrides}
    return Thread(THREAD, members, queues=(*queues, *damaged), **values)


def _place(apc: Apc, queue: QueueName, position: int, index: int) -> Apc:
    number = list(QueueName).index(queue) << 4 | position
    address = apc.address + number * 0x100 if apc.address == _APC.address else apc.address
    fitting = 0 if queue.saved else index
    environment = fitting if apc.apc_state_index == _FITTING else apc.apc_state_index
    return replace(apc, address=address, queue=queue, position=position, apc_state_index=environment)


def severities(findings: Iterable[Finding]) -> dict[str, str]:
    """Return code and severity of findings, each code once."""
    listed = [(finding.code, str(Severity(finding.severity))) for finding in findings]
    assert len(listed) == len(dict(listed)), listed
    return dict(listed)


def damaged_queue(ending: Ending, *, broken_at: int | None = None, name: QueueName = QueueName.KERNEL) -> Queue:
    """Return a list of one normal APC at which the walk ended as told."""
    head = KERNEL_HEAD if name is QueueName.KERNEL else USER_HEAD
    apc = normal(queue=name, apc_mode=name.mode)
    return Queue(name, head, (apc,), ending, apc.address + APC_LIST_ENTRY, broken_at)


def absent_queue(*, name: QueueName = QueueName.KERNEL) -> Queue:
    """Return a list whose only entry, at ABSENT, is not in the minidump."""
    head = {QueueName.KERNEL: KERNEL_HEAD, QueueName.USER: USER_HEAD, QueueName.SAVED_KERNEL: SAVED_KERNEL_HEAD}[name]
    members = ("type", "size", "thread", "kernel_routine", "rundown_routine", "normal_routine", "normal_context")
    others = ("system_argument1", "system_argument2", "apc_state_index", "apc_mode", "inserted")
    apc = special(address=ABSENT, queue=name, **dict.fromkeys(members + others))
    return Queue(name, head, (apc,), Ending.ABSENT, head, None, ABSENT_ENTRY)


def case(name: str, subject: Thread, expected: dict[str, str], facts: Facts = WINDOWS_10) -> Any:
    """Return a row of a table of threads: what it is, the thread, the severities of its findings by code."""
    return pytest.param(subject, facts, expected, id=name)
