"""What a NormalRoutine leads to: Windows' dispatchers, encodings, activation contexts, and what is armed for later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.output.columns import COLUMNS, rows_of

from apcaudit.synthetic import libraries
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import OWN, Kernel, load_kernel
from apcaudit.synthetic.scene import Address, Apc, IoStackLocation, Irp, Process, Thread
from apcaudit.synthetic.user import Region, UserImage, UserSpace
from tests.origin_image import give_handle, place
from tests.views_image import Audits, audited

Change = Callable[[Image], None]

#: The functions of kernelbase that nothing exports; kernel32 has them before 7.
COMPLETION = "kernelbase!BasepIoCompletion|kernel32!BasepIoCompletion"
SIMPLE = "kernelbase!BasepIoCompletionSimple|kernel32!BasepIoCompletionSimple"
PROGRAM, NARROW = 0x900, 0x980
PATH = "C:\\Temp\\a.dll"


def block(label: str, *pointers: Address) -> Change:
    """Write an activation context's block into a region: Flags, then three pointers."""

    def change(image: Image) -> None:
        memory = image.user(PROGRAM)
        at = image.address_of[f"memory:{label}"]
        for number, pointer in enumerate(pointers, 1):
            memory.write_pointer(at + number * memory.pointer_size, image.resolve(pointer))

    return change


@dataclass(frozen=True, slots=True)
class Case:
    """A NormalRoutine with its arguments, and what it leads to: in words, by way of what, with which argument."""

    routine: Address
    arguments: tuple[Address, Address, Address] = (0, 0, 0)
    text: str = "memory"
    via: str | None = None
    argument: Address | None = None
    string: str | None = None
    change: Change | None = None
    owner: int = PROGRAM
    kernel: str = "nt!IopDeallocateApc"
    x64: bool = False
    more: dict[str, Any] = field(default_factory=dict)


def packed(function: str, argument: Address) -> str:
    """Stand for a 32-bit function and its argument as Wow64ApcRoutine is given them; see `planted`."""
    return f"packed:{function}:{argument}"


CASES = {
    "by itself": Case("program+0x1200", (7, 8, 9), "program+0x1200", argument=7),
    "QueueUserAPC": Case(libraries.DISPATCHER, ("program+0x1240", 5, -1), "program+0x1240", "Dispatch", 5),
    "QueueUserAPC of a loader": Case(
        libraries.DISPATCHER, ("kernel32!LoadLibraryA", "memory:narrow_text", -1), "kernel32!LoadLibraryA", "Dispatch",
        "memory:narrow_text", PATH,
    ),
    "ReadFileEx": Case(SIMPLE, ("program+0x1280", 5, 0), "program+0x1280", "?", kernel="nt!IopUserCompletion"),
    "ReadFileEx with an activation context": Case(
        COMPLETION,
        ("memory:one", 0, 0),
        "program+0x12c0",
        "?",
        change=block("one", "memory:two", "program+0x12c0", 0),
    ),
    "... whose function comes last": Case(
        COMPLETION,
        ("memory:two", 0, 0),
        "program+0x1300",
        "?",
        change=block("two", 0x1234, "memory:one", "program+0x1300"),
    ),
    "a block with two functions": Case(
        COMPLETION,
        ("memory:three", 0, 0),
        "COMPLETION",
        change=block("three", "program+0x1300", "program+0x1340", 0),
        argument="memory:three",
    ),
    "a number as context": Case(SIMPLE, (0x42, 0, 0), "SIMPLE", argument=0x42),
    "a context that is nowhere": Case(
        SIMPLE, (0x6E120000, 0, 0), "0x6e120000 (no VAD)", "?", kernel="nt!IopUserCompletion"
    ),
    "a loader whose name begins in one page and ends in the next": Case(
        "kernel32!LoadLibraryW", ("memory:last+0xff0", 0, 0), "kernel32!LoadLibraryW", argument="memory:last+0xff0",
        string="C:\\Te",
    ),
    "a loader with no name": Case(
        "kernel32!LoadLibraryW", (0x6E120000, 0, 0), "kernel32!LoadLibraryW", argument=0x6E120000
    ),
    "LdrLoadDll": Case("ntdll!LdrLoadDll", (0, 0, "memory:counted"), "ntdll!LdrLoadDll", argument=0, string=PATH),
    "encoded": Case("wow64:user32+0x1200", (3, 0, 0), "user32+0x1200", argument=3, owner=NARROW, x64=True),
    "encoded, by QueueUserAPC": Case(
        libraries.DISPATCHER_32, ("user32+0x1240", 6, 0), "user32+0x1240", "Dispatch", 6, owner=NARROW, x64=True
    ),
    "Wow64ApcRoutine": Case(
        "wow64!Wow64ApcRoutine", (packed("user32+0x1280", 9), 0, 0), "user32+0x1280", "wow64!Wow64ApcRoutine", 9,
        owner=NARROW, x64=True,
    ),
    "Wow64ApcRoutine, then ReadFileEx of 32 bits": Case(
        "wow64!Wow64ApcRoutine", (packed("kernelbase32!BasepIoCompletionSimple", "user32+0x12c0"), 0, 0),
        "user32+0x12c0", "wow64!Wow64ApcRoutine and kernelbase", owner=NARROW, x64=True, kernel="nt!IopUserCompletion",
    ),
}  # fmt: skip


def chosen(kernel: Kernel) -> dict[int, Case]:
    """The cases that a kernel can have, by TID."""
    able = [case for case in CASES.values() if kernel.is_64bit or not case.x64]
    return {0x1000 + 4 * number: case for number, case in enumerate(able)}


def _plant_packed(image: Image, tid: int, text: str) -> None:
    function, _, argument = text.removeprefix("packed:").rpartition(":")
    apc = image.address_of[f"apc:{tid}"]
    value = image.resolve(function) << 32 | image.resolve(int(argument) if argument.isdigit() else argument)
    image.memory.write(apc, "_KAPC", "NormalContext", value)


def machine(kernel: Kernel) -> tuple[tuple[Process, ...], tuple[Change, ...]]:
    """Two programs with a thread for each case, and what is written into them once they are built."""
    threads: dict[int, list[Thread]] = {PROGRAM: [], NARROW: []}
    changes: list[Change] = []
    for tid, case in chosen(kernel).items():
        context, first, second = case.arguments
        if isinstance(context, str) and context.startswith("packed:"):
            changes.append(lambda image, tid=tid, text=context: _plant_packed(image, tid, text))
            context = 0
        apc = Apc(case.kernel, case.routine, normal_context=context, system_argument1=first, system_argument2=second)
        apc = replace(apc, mode="user", label=str(tid))
        threads[case.owner].append(Thread(tid, start="ntdll+0x1100", wait_reason="DelayExecution", user_apcs=(apc,)))
        changes += [case.change] if case.change is not None else []
    rw = {"protection": "READWRITE"}
    regions = (
        *(Region(name, **rw) for name in ("one", "two", "three")),
        Region("narrow_text", content={0: PATH.encode() + b"\0"}, **rw),
        Region("counted", strings={0: PATH}, **rw),
        Region("last", content={0xFF0: PATH.encode("utf-16-le")[:10] + b"\0\0"}, **rw),
    )
    program = UserImage("program.exe")
    spaces = {PROGRAM: UserSpace((program, *libraries.system(kernel)), regions)}
    listed = [Process("program.exe", PROGRAM, tuple(threads[PROGRAM]), space=spaces[PROGRAM])]
    if kernel.is_64bit:
        around = [each for each in libraries.wow64(kernel) if each.name != "wow64.dll"]
        images = (
            UserImage("user32.exe", bits=32),
            UserImage("wow64.dll", exports={"Wow64ApcRoutine": 0x1200}),
            *around,
        )
        listed.append(Process("user32.exe", NARROW, tuple(threads[NARROW]), wow64=True, space=UserSpace(images)))
    return tuple(listed), tuple(changes)


@pytest.fixture(scope="module", params=OWN)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Audits:
    """The machine on one kernel, audited."""
    processes, changes = machine(load_kernel(request.param))
    folder = tmp_path_factory.mktemp(request.param)
    return audited(request.param, folder, (), others=processes, changes=changes)


@pytest.mark.parametrize("name", CASES)
def test_targets(found: Audits, name: str) -> None:
    """NormalRoutine is the target, or what a dispatcher there hands on, with the argument that it is given."""
    case = CASES[name]
    tid = next((tid for tid, each in chosen(found.image.kernel).items() if each is case), None)
    if tid is None:
        pytest.skip("only x64 runs 32-bit programs")
    target = found.target(tid)
    assert target is not None
    wanted = {"COMPLETION": COMPLETION, "SIMPLE": SIMPLE}.get(case.text)
    if wanted is not None:
        assert target.place.address == found.image.resolve(wanted)
    else:
        assert case.text in target.text
    # To 2003 the dispatcher of QueueUserAPC is kernel32's, and nothing exports it.
    nameless = case.via == "Dispatch" and not found.image.memory.has("_KTHREAD", "WaitRegister")
    via = "kernel32!SleepEx+" if nameless else case.via or ""
    assert via in (target.via or "")
    assert bool(case.via) is bool(target.via)
    assert target.argument == (None if case.argument is None else found.image.resolve(case.argument))
    assert target.string == case.string


ARMED, QUEUED = 0x2000, 0x2004
#: The index of an object type of ours, behind those that the scene has.
_RESERVE_INDEX = 12


def _arm(image: Image) -> None:
    """Set the timer, let the request wait, and use the reserve object."""
    memory = image.memory
    thread = image.address_of[ARMED]
    timer = image.address_of["apc:timer"] - memory.offset("_ETIMER", "TimerApc")
    memory.append(
        thread + memory.offset("_ETHREAD", "ActiveTimerListHead"),
        timer + memory.offset("_ETIMER", "ActiveTimerListEntry"),
    )
    for label, routine in (("irp", "memory:code"), ("create", 0x12345678)):
        irp = image.address_of[f"irp:{label}"]
        path = "Overlay.AsynchronousParameters.UserApc"
        memory.write(irp, "_IRP", f"{path}Routine", image.resolve(routine))
        memory.write(irp, "_IRP", f"{path}Context", 0x77)
    if image.kernel.has("ObTypeIndexTable"):
        _reserve(image)


def _reserve(image: Image) -> None:
    """Give the program a handle to a reserve object that is in use."""
    memory = image.memory
    kind = image.pool.allocate(memory.size("_OBJECT_TYPE"), b"ObjT")
    image.pool.string(kind, "_OBJECT_TYPE", "Name", "UserApcReserve")
    memory.write(kind, "_OBJECT_TYPE", "TotalNumberOfObjects", 1)
    table = image.kernel.address("ObTypeIndexTable")
    memory.write_pointer(table + _RESERVE_INDEX * memory.pointer_size, kind)
    body = image.address_of["apc:reserve"] - memory.pointer_size
    memory.write_scalar(body, 4, 1)
    header = body - memory.offset("_OBJECT_HEADER", "Body")
    index = _RESERVE_INDEX
    if image.kernel.has("ObHeaderCookie"):
        index ^= header >> 8 & 0xFF ^ image.read(image.kernel.address("ObHeaderCookie"), 1)[0]
    memory.write(header, "_OBJECT_HEADER", "TypeIndex", index)
    give_handle(image, image.address_of["process:armed.exe"], header)


@pytest.fixture(scope="module", params=("xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "11-26100-x64"))
def armed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Audits:
    """A program with a thread for which a timer, a request and a reserve object are armed."""
    kernel = load_kernel(request.param)
    loose: dict[str, Any] = {"linked": False, "inserted": False, "mode": "user"}
    location = IoStackLocation("fltMgr.sys", major=3)
    apcs = (
        Apc("nt!ExpTimerApcRoutine", "memory:code", holder="timer", label="timer", **loose),
        Apc(irp=Irp((location,)), label="irp", **loose),
        # A request to open a file keeps a size where others have a routine.
        Apc(irp=Irp((location,), flags=0x80), label="create", **loose),
        Apc(
            "nt!PspUserApcReserveKernelRoutine|nt!IopDeallocateApc",
            "armed+0x1200",
            address=place(kernel, 1) + kernel.layout.pointer_size,
            pool_tag=None,
            label="reserve",
            **loose,
        ),
    )
    queued = Apc("nt!ExpTimerApcRoutine", "armed+0x1200", holder="timer", label="queued")
    threads = (
        Thread(ARMED, start="ntdll+0x1100", user_apcs=apcs),
        Thread(QUEUED, start="ntdll+0x1100", user_apcs=(queued,)),
    )
    space = UserSpace((UserImage("armed.exe"), *libraries.system(kernel)), (Region("code"),))
    others = (Process("armed.exe", PROGRAM, threads, space=space),)
    folder = tmp_path_factory.mktemp(request.param)
    return audited(request.param, folder, (), others=others, changes=(_arm,))


def _told(machine: Audits, tid: int, **selection: bool) -> list[str]:
    audit = Audit(*machine.source)
    rows = {each.thread.members.tid: each for each in audit.run(Selection(clean_too=True, **selection))}
    explanation = next(column for column in COLUMNS if column.name == "Explanation")
    text = str(explanation.value(rows_of(rows[tid], audit.facts, wide=True)[0]))
    assert rows[tid].severity == 0
    return text.partition("armed: ")[2].rstrip(".").split("; ") if "armed: " in text else []


def test_what_is_armed(armed: Audits) -> None:
    """With --wide a thread's row says what will queue APCs to it, and what those would run, with the codes they had."""
    offset = armed.image.memory.offset("_ETIMER", "TimerApc")
    code = f"{armed.image.address_of['memory:code']:#x} (private rwx): user-apc-private-code"
    expected = [
        f"timer {armed.image.address_of['apc:timer'] - offset:#x} would run {code}",
        f"IRP {armed.image.address_of['irp:irp']:#x} would run {code}",
    ]
    if armed.image.kernel.has("ObTypeIndexTable"):
        body = armed.image.address_of["apc:reserve"] - armed.image.memory.pointer_size
        expected.append(f"reserve object {body:#x} would run armed+0x1200")
    assert _told(armed, ARMED, armed=True) == expected


def test_what_is_armed_is_asked_for(armed: Audits) -> None:
    """Without --wide nothing of it is read; what is queued already is no longer armed."""
    assert _told(armed, ARMED) == []
    assert _told(armed, QUEUED, armed=True) == []
