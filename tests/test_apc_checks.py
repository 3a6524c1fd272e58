"""The findings about a queued APC: what holds them, and the nearest legitimate neighbours, which stay silent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.checks import check_apc
from volatility3.plugins.windows.apcaudit.model import (
    Apc,
    Backing,
    Ending,
    Facts,
    ModuleConflict,
    NotCode,
    Queue,
    QueueName,
    Thread,
)

from tests.situations_pure import (
    APC_LIST_ENTRY,
    ATTACHED,
    IN_DRIVER,
    IN_KERNEL,
    IN_POOL,
    IN_UNLOADED,
    IN_USER_SPACE,
    NO_OP,
    NO_ROUTINE,
    NOBODY_KNOWS,
    NOT_CANONICAL,
    OTHER,
    OWNER,
    THREAD,
    WINDOWS_7,
    WINDOWS_10,
    WINDOWS_XP,
    code,
    normal,
    routine,
    scheduler,
    severities,
    special,
    thread,
    user,
)

NO_OP_ROUTINE = code(NO_OP, text="nt!guard_check_icall_nop", module="nt")
IN_DATA = replace(IN_DRIVER, not_code=NotCode("in the section .data of Bfilter, which is not executable", certain=True))
IN_FUNCTION = replace(IN_DRIVER, not_code=NotCode("0x30 bytes into the function at Bfilter+0x1000", certain=False))
ON_STACK: dict[str, Any] = {"misplaced": "the kernel stack of thread 0x1", "on_stack": True}
WOW64, NATIVE = (replace(OWNER, wow64=each) for each in (True, False))
ENCODED = code(0xFFFFFFFE216BB730, Backing.NOTHING)  # -(0x77a51234 << 2)
IN_A_WIDE_ENTRY = replace(IN_DRIVER, doubt=ModuleConflict("the entry of wide claims what nt has", overlapping=True))
IN_NO_IMAGE = replace(IN_DRIVER, doubt=ModuleConflict("the entry of wiped claims memory where no image begins"))

PAGE_FILE_TRIM = routine("MiTrimUnusedPageFileRegionsApc")
SPECIAL_USER = routine("KeSpecialUserApcKernelRoutine")

KERNEL, USER = QueueName.KERNEL, QueueName.USER
SAVED_KERNEL, SAVED_USER = QueueName.SAVED_KERNEL, QueueName.SAVED_USER


def case(name: str, apc: Apc, expected: dict[str, str], queue: QueueName = KERNEL, facts: Facts = WINDOWS_10) -> Any:
    """Put an APC alone on a list of a waiting thread, attached where the list is a saved one."""
    members: dict[str, Any] = ATTACHED if queue.saved else {}
    return pytest.param(thread(**{queue.value.replace("-", "_"): [apc]}, **members), facts, expected, id=name)


ROUTINES = [
    case("KernelRoutine in no module", special(kernel_routine=IN_POOL), {"routine-unbacked": "high"}),
    case("RundownRoutine in no module", special(rundown_routine=IN_POOL), {"routine-unbacked": "high"}),
    case("NormalRoutine of a kernel APC in no module", normal(normal_routine=IN_POOL), {"routine-unbacked": "high"}),
    case("KernelRoutine of a user APC in no module", user(kernel_routine=IN_POOL), {"routine-unbacked": "high"}, USER),
    case(
        "all three in no module",
        normal(kernel_routine=IN_POOL, rundown_routine=IN_POOL, normal_routine=IN_POOL),
        {"routine-unbacked": "high"},
    ),
    case("KernelRoutine in user space", special(kernel_routine=IN_USER_SPACE), {"routine-user-address": "critical"}),
    case("KernelRoutine not canonical", special(kernel_routine=NOT_CANONICAL), {"routine-user-address": "critical"}),
    case(
        "KernelRoutine null: the kernel calls it without asking",
        special(kernel_routine=NO_ROUTINE),
        {"routine-user-address": "critical"},
    ),
    case("RundownRoutine in user space", special(rundown_routine=IN_USER_SPACE), {"routine-user-address": "critical"}),
    case(
        "NormalRoutine of a kernel APC in user space",
        normal(normal_routine=IN_USER_SPACE),
        {"routine-user-address": "critical"},
    ),
    case(
        "one in no module and one in user space",
        normal(kernel_routine=IN_POOL, normal_routine=IN_USER_SPACE),
        {"routine-unbacked": "high", "routine-user-address": "critical"},
    ),
    case(
        "a special user APC in its first phase: its NormalRoutine is cleared before anything calls it",
        normal(kernel_routine=SPECIAL_USER, normal_routine=IN_USER_SPACE),
        {"special-user-apc": "low"},
    ),
    case(
        "a special user APC in its first phase with a RundownRoutine in user space",
        normal(kernel_routine=SPECIAL_USER, rundown_routine=IN_USER_SPACE, normal_routine=IN_USER_SPACE),
        {"routine-user-address": "critical", "special-user-apc": "low"},
    ),
    case(
        "a special user APC in its second phase",
        user(kernel_routine=SPECIAL_USER),
        {"special-user-apc": "low"},
        USER,
    ),
    case("KernelRoutine in data", special(kernel_routine=IN_DATA), {"routine-not-code": "high"}),
    case("RundownRoutine in data", special(rundown_routine=IN_DATA), {"routine-not-code": "high"}),
    case("KernelRoutine within a function", special(kernel_routine=IN_FUNCTION), {"routine-not-code": "medium"}),
    case("NormalRoutine within a function", normal(normal_routine=IN_FUNCTION), {"routine-not-code": "medium"}),
    case("NormalRoutine of a user APC is not called in kernel mode", user(normal_routine=IN_USER_SPACE), {}, USER),
    case("KernelRoutine in a module that nothing contradicts", special(kernel_routine=IN_DRIVER), {}),
    case(
        "where only an entry over others claims", special(kernel_routine=IN_A_WIDE_ENTRY), {"module-conflict": "high"}
    ),
    case(
        "NormalRoutine in a module whose headers are gone",
        normal(normal_routine=IN_NO_IMAGE),
        {"module-conflict": "medium"},
    ),
    case(
        "KernelRoutine where an unloaded driver was: in no module now, and known to have been one",
        special(kernel_routine=IN_UNLOADED),
        {"routine-unbacked": "high", "routine-unloaded": "critical"},
    ),
    case(
        "RundownRoutine where an unloaded driver was",
        special(rundown_routine=IN_UNLOADED),
        {"routine-unbacked": "high", "routine-unloaded": "critical"},
    ),
    case("RundownRoutine null is allowed", special(rundown_routine=NO_ROUTINE), {}),
    case("NormalRoutine null is a special APC", special(normal_routine=NO_ROUTINE), {}),
    case("NormalRoutine of a user APC in user space", user(), {}, USER),
    case("routines in a driver", normal(kernel_routine=IN_DRIVER, rundown_routine=IN_DRIVER), {}),
    case("the modules could not be read", normal(kernel_routine=NOBODY_KNOWS, normal_routine=NOBODY_KNOWS), {}),
    case("the routines could not be read", normal(kernel_routine=None, rundown_routine=None, normal_routine=None), {}),
    case(
        "NormalRoutine in user space where ApcMode could not be read",
        normal(normal_routine=IN_USER_SPACE, apc_mode=None),
        {},
    ),
]

KERNEL_NORMAL = [
    case(
        "a user APC with a NormalRoutine in the kernel",
        user(normal_routine=IN_KERNEL),
        {"kernel-normal-in-user-apc": "high"},
        USER,
    ),
    case(
        "a user APC with a NormalRoutine in kernel pool, as DoublePulsar's lineage has it",
        user(normal_routine=IN_POOL),
        {"kernel-normal-in-user-apc": "high"},
        USER,
    ),
    case(
        "a kernel address is one where the modules could not be read, too",
        user(normal_routine=NOBODY_KNOWS),
        {"kernel-normal-in-user-apc": "high"},
        USER,
    ),
    case(
        "in the HAL's heap, which no 32-bit address encodes to",
        user(normal_routine=code(0xFFFFFFFFFFD00010, IN_POOL.backing)),
        {"kernel-normal-in-user-apc": "high"},
        USER,
    ),
    pytest.param(
        thread(user=[user(normal_routine=ENCODED)], owner=WOW64), WINDOWS_10, {}, id="a WoW64 process's user APC"
    ),
    pytest.param(
        thread(user=[user(normal_routine=ENCODED)], owner=NATIVE),
        WINDOWS_10,
        {"kernel-normal-in-user-apc": "high"},
        id="an address encoded as WoW64's in a native process",
    ),
    pytest.param(
        thread(user=[user(normal_routine=ENCODED)], **ATTACHED, owner=NATIVE, attached=replace(OTHER, wow64=True)),
        WINDOWS_10,
        {},
        id="queued for the WoW64 process that the thread is attached to",
    ),
    case("whether it is a WoW64 process is unknown", user(normal_routine=ENCODED), {}, USER),
    case(
        "the thread is to end, since 8: what SchedulerApc is made into",
        scheduler(apc_mode=1, kernel_routine=routine("KiSchedulerApcTerminate")),
        {},
        USER,
    ),
    case(
        "the thread is to end, XP to 7: PspExitNormalApc has queued itself again",
        user(kernel_routine=routine("PsExitSpecialApc"), normal_routine=routine("PspExitNormalApc")),
        {},
        USER,
        WINDOWS_7,
    ),
    case(
        "the routines of a termination in a KAPC that is not SchedulerApc",
        user(kernel_routine=routine("KiSchedulerApcTerminate"), normal_routine=routine("KiSchedulerApc")),
        {"kernel-normal-in-user-apc": "high"},
        USER,
    ),
    case(
        "KiSchedulerApc with another KernelRoutine",
        scheduler(apc_mode=1, kernel_routine=IN_DRIVER),
        {"kernel-normal-in-user-apc": "high"},
        USER,
    ),
    case("NormalRoutine of a user APC null", user(normal_routine=NO_ROUTINE), {}, USER),
    case("NormalRoutine of a user APC unreadable", user(normal_routine=None), {}, USER),
    case("a kernel APC has its NormalRoutine in the kernel", normal(), {}),
]

CONSISTENCY = [
    case("a user APC on the kernel list", user(), {"mode-mismatch": "high"}),
    case("a kernel APC on the user list", special(), {"mode-mismatch": "high"}, USER),
    case("a user APC on the saved kernel list", user(), {"mode-mismatch": "high"}, SAVED_KERNEL),
    case("a kernel APC on the saved user list", special(), {"mode-mismatch": "high"}, SAVED_USER),
    case("ApcMode 2", special(apc_mode=2), {"mode-mismatch": "high"}),
    case("ApcMode unreadable", special(apc_mode=None), {}),
    case("KAPC.Thread is another thread", special(thread=THREAD + 0x1000), {"thread-mismatch": "high"}),
    case("KAPC.Thread null", special(thread=0), {"thread-mismatch": "high"}),
    case("KAPC.Thread unreadable", special(thread=None), {}),
    case("Type of a DPC", special(type=19), {"bad-object": "high"}),
    case("Size of XP's on 10", special(size=0x30), {"bad-object": "high"}),
    case("Type and Size", special(type=0, size=0), {"bad-object": "high"}),
    case("Size of XP's on XP", special(size=0x30), {}, facts=WINDOWS_XP),
    case("Type and Size unreadable", special(type=None, size=None), {}),
    case("linked but not Inserted", special(inserted=0), {"not-inserted": "medium"}),
    case("Inserted unreadable", special(inserted=None), {}),
    case(
        "in user space",
        special(misplaced="user space"),
        {"apc-outside-pool": "high"},
    ),
    case(
        "on a kernel stack, with a driver's routine",
        special(**ON_STACK, kernel_routine=IN_DRIVER),
        {"apc-outside-pool": "high"},
    ),
    case("in the HAL heap", special(misplaced="the HAL heap"), {"apc-outside-pool": "high"}),
    case(
        "in the HAL heap, with a routine whose KAPC may lie on a stack",
        special(misplaced="the HAL heap", kernel_routine=routine("PspGetSetContextSpecialApc")),
        {"apc-outside-pool": "high"},
    ),
    *(
        case(f"on the stack of a caller of the kernel's that waits for it: {name}", apc, {})
        for name, apc in (
            ("KernelRoutine", special(**ON_STACK, kernel_routine=routine("PspGetSetContextSpecialApc"))),
            ("a rundown", special(**ON_STACK, kernel_routine=routine("EtwpThreadRundownApc"))),
            (
                "NormalRoutine, the KernelRoutine being an empty function",
                normal(
                    **ON_STACK, kernel_routine=NO_OP_ROUTINE, normal_routine=routine("MiTrimUnusedPageFileRegionsApc")
                ),
            ),
        )
    ),
    case(
        "on a stack, an empty function and nothing else",
        special(**ON_STACK, kernel_routine=NO_OP_ROUTINE),
        {"apc-outside-pool": "high"},
    ),
    case("the same KAPC on another list", special(also_on="the kernel list of thread 0x1"), {"duplicate-apc": "high"}),
]

ENVIRONMENT = [
    case(
        "S at 0 holds one of the attached environment", special(apc_state_index=1), {"environment-mismatch": "medium"}
    ),
    case(
        "S at 0 holds one whose environment was never resolved",
        special(apc_state_index=2),
        {"environment-mismatch": "medium"},
    ),
    case(
        "V holds one of the attached environment",
        special(apc_state_index=1),
        {"environment-mismatch": "medium"},
        SAVED_KERNEL,
    ),
    case("V holds user APCs of the original environment", user(), {}, SAVED_USER),
    case("V holds kernel APCs of the original environment", normal(), {}, SAVED_KERNEL),
    case("KAPC.ApcStateIndex unreadable", special(apc_state_index=None), {}),
    pytest.param(
        thread(kernel=[special(apc_state_index=0)], **ATTACHED),
        WINDOWS_10,
        {"environment-mismatch": "medium"},
        id="S at 1 holds one of the original environment",
    ),
    pytest.param(
        thread(kernel=[special(apc_state_index=1)], **ATTACHED),
        WINDOWS_10,
        {},
        id="S at 1 holds one of the attached environment",
    ),
    pytest.param(
        thread(kernel=[special(apc_state_index=1)], apc_state_index=None),
        WINDOWS_10,
        {},
        id="the thread's ApcStateIndex unreadable",
    ),
    pytest.param(
        thread(kernel=[special(apc_state_index=1)], apc_state_index=7),
        WINDOWS_10,
        {},
        id="the thread's ApcStateIndex is wrong itself: that is the thread's finding",
    ),
]


@pytest.mark.parametrize(("subject", "facts", "expected"), [*ROUTINES, *KERNEL_NORMAL, *CONSISTENCY, *ENVIRONMENT])
def test_findings_of_an_apc(subject: Thread, facts: Facts, expected: dict[str, str]) -> None:
    """An APC carries exactly the findings whose condition holds, each with its severity."""
    subject_apc = subject.queues[0].apcs[0]
    assert severities(check_apc(subject_apc, subject, facts)) == expected


@pytest.mark.parametrize(
    ("kernel", "violating"),
    [
        pytest.param([special(), special(), normal(), normal()], [], id="special before normal"),
        pytest.param([normal(), special()], [1], id="special behind normal"),
        pytest.param([special(), normal(), normal(), special(), special()], [3, 4], id="two behind normal ones"),
        pytest.param([normal(normal_routine=None), special()], [], id="what stands before is unreadable"),
        pytest.param([normal(), special(normal_routine=None)], [], id="what stands behind is unreadable"),
    ],
)
@pytest.mark.parametrize("queue", ["kernel", "saved_kernel"])
def test_order_of_a_kernel_list(queue: str, kernel: list[Apc], violating: list[int]) -> None:
    """KiInsertQueueApc puts special APCs before normal ones; one behind is a finding, the normal one before is none."""
    subject = thread(**{queue: kernel}, **ATTACHED)
    (read,) = subject.queues
    found = [severities(check_apc(apc, subject, WINDOWS_10)) for apc in read.apcs]
    expected = [{"order-violation": "medium"} if at in violating else {} for at in range(len(kernel))]
    assert found == expected


def test_user_apcs_have_no_order() -> None:
    """On a user list nothing stands in a wrong place."""
    subject = thread(user=[user(), user(normal_routine=code(0x7FF600000000, IN_USER_SPACE.backing))])
    assert [check_apc(apc, subject, WINDOWS_10) for apc in subject.queues[0].apcs] == [(), ()]


def test_order_within_its_own_list() -> None:
    """A thread that attached twice has two saved lists: what stands in the one is not ahead of what is in the other."""
    own = thread(saved_kernel=[normal()], **ATTACHED)
    apcs = tuple(replace(special(), queue=SAVED_KERNEL, position=at, apc_state_index=1, nested=True) for at in (0, 1))
    apcs = tuple(replace(apc, address=apc.address + at) for apc, at in zip(apcs, (0x800, 0x900), strict=True))
    nested = Queue(SAVED_KERNEL, 0xFFFFF90000006E00, apcs, Ending.CLOSED, apcs[-1].address + APC_LIST_ENTRY)
    subject = replace(own, queues=(*own.queues, nested))
    assert [severities(check_apc(apc, subject, WINDOWS_10)) for apc in apcs] == [{}, {}]
