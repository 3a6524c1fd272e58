"""Which return addresses on a stack are frames, and which of them are certain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.audit import Selection
from volatility3.plugins.windows.apcaudit.unwind import Stack
from volatility3.plugins.windows.apcaudit.unwind.epilogue import Epilogue, FunctionEnd, find_function_end

from apcaudit.synthetic.assembly import Code, Relative, Slot
from apcaudit.synthetic.damage import unmap_page
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Address, Driver, Process, Scene, StackWrite, Thread
from apcaudit.synthetic.scenes.common import HAL
from tests.stack_image import audit_of

X64, XP = "10-19041-x64", "xp-sp3-x86"
BASE = {X64: 0xFFFFF58C20006000, XP: 0xB7F04000}
TID = 400
CALL = b"\xff\xd0"

#: A driver whose code is in the image, and one whose code is not. The first calls KeWaitForSingleObject by its import.
WAITER = Driver(
    "waiter.sys",
    exports={"Wait": 0x1000, "Caller": 0x1100},
    imports={"nt": ("KeWaitForSingleObject",)},
    code={
        0x1010: (b"\xff\x15", Slot("KeWaitForSingleObject")),
        0x1120: (b"\xe8", Relative("waiter!Wait")),
    },
)
ABSENT = Driver("absent.sys", exports={"Work": 0x2400})

#: Calls in the kernel: of KiSwapThread, in which the thread is, by name and by a pointer; and of each other.
CODE: dict[Address, Code] = {
    "nt!KeWaitForSingleObject+0x1b": (b"\xe8", Relative("nt!KiSwapThread")),
    "nt!NtReadFile+0x1b": (b"\xe8", Relative("nt!KiSwapThread")),
    "nt!IofCompleteRequest+0x1e": CALL,
    "nt!IofCallDriver+0x1b": (b"\xe8", Relative("nt!IofCompleteRequest")),
    "nt!ExpWorkerThread+0x1b": (b"\xe8", Relative("nt!KeBugCheck")),
    # The last instruction before KeInsertQueueApc, whose first byte is the return address.
    "nt!KeInsertQueueApc-0x5": (b"\xe8", Relative("nt!KiSwapThread")),
    "nt!KiSwapThread+0x3f": (b"\xe8", Relative("nt!KiSwapContext")),
}


@dataclass(frozen=True)
class Case:
    """Values at offsets from the stack pointer of a thread that waits in KiSwapThread, and the frames beyond it."""

    name: str
    values: Mapping[int, Address]
    expected: tuple[str, ...]


CASES = (
    Case("a call of the very function", {0x48: "nt!NtReadFile+0x20"}, ("nt!NtReadFile+0x20",)),
    Case("a call of a pointer", {0x48: "nt!IofCompleteRequest+0x20"}, ("nt!IofCompleteRequest+0x20?",)),
    Case("a call of another function", {0x48: "nt!ExpWorkerThread+0x20"}, ()),
    Case(
        "a call of the very function is preferred",
        {0x28: "nt!IofCompleteRequest+0x20", 0x48: "nt!NtReadFile+0x20"},
        ("nt!IofCompleteRequest+0x20?", "nt!NtReadFile+0x20"),
    ),
    Case(
        "unless the caller of the pointer was called by name",
        {0x28: "nt!IofCompleteRequest+0x20", 0x48: "nt!IofCallDriver+0x20", 0x88: "nt!NtReadFile+0x20"},
        ("nt!IofCompleteRequest+0x20?", "nt!IofCallDriver+0x20"),
    ),
    Case(
        "what may be between is shown",
        {0x28: "absent!Work+0x15", 0x48: "nt!NtReadFile+0x20"},
        ("absent!Work+0x15?", "nt!NtReadFile+0x20"),
    ),
    Case(
        "also before a call of a pointer",
        {0x28: "absent!Work+0x15", 0x48: "nt!IofCompleteRequest+0x20", 0x68: "nt!IofCallDriver+0x20"},
        ("absent!Work+0x15?", "nt!IofCompleteRequest+0x20?", "nt!IofCallDriver+0x20"),
    ),
    # KeInitializeApc lies before KeInsertQueueApc.
    Case(
        "the first byte of the next function",
        {0x48: "nt!KeInsertQueueApc", 0x68: "nt!ExpWorkerThread+0x20"},
        ("nt!KeInitializeApc+{distance:#x}",),
    ),
    Case(
        "a call through an import",
        {0x28: "nt!KeWaitForSingleObject+0x20", 0x48: "waiter!Wait+0x16", 0x68: "waiter!Caller+0x25"},
        ("nt!KeWaitForSingleObject+0x20", "waiter!Wait+0x16", "waiter!Caller+0x25"),
    ),
    Case(
        "of two equal ones the nearest",
        {0x48: "nt!NtReadFile+0x20", 0x88: "nt!NtReadFile+0x20"},
        ("nt!NtReadFile+0x20",),
    ),
)


def waiting(kernel: str, number: int, values: Mapping[int, Address]) -> Thread:
    """Declare a thread that waits in KiSwapThread; on x86 EBP leads nowhere, as in code without frame pointers."""
    base, size = BASE[kernel] + 0x10000 * number, 8 if kernel == X64 else 4
    top, ip = base - 0x800, "nt!KiSwapThread+0x44"
    frame = (0, 0, 0, 0, 0, 0, 0x1234, ip) if size == 8 else (0, 0, ip, 0x1234, 0, 0, 0)
    sp = stack_pointer(kernel, number)
    # The offsets are those of x64, where return addresses lie 8 bytes below a multiple of 16.
    frames = [StackWrite(sp + offset * size // 8, (value,)) for offset, value in values.items()]
    members = {"Tcb.KernelStack": top}
    return Thread(
        TID + 4 * number, frames=(StackWrite(top, frame), *frames), stack_base=base, stack=(0,), members=members
    )


def stack_pointer(kernel: str, number: int) -> int:
    """Give the stack pointer of a waiting thread, behind its switch frame."""
    return BASE[kernel] + 0x10000 * number - 0x800 + (0x40 if kernel == X64 else 0xC)


def walked(
    folder: Path, kernel: str, threads: Iterable[Thread], code: Mapping[Address, Code] | None = None
) -> dict[int, Stack]:
    """Walk the stacks of threads of one machine; gives them by TID."""
    processes = (Process("System", 4, tuple(threads), parent=0),)
    scene = Scene("stack", "stacks", kernel, processes, (HAL, WAITER, ABSENT), code={**CODE, **(code or {})})

    def absent(image: Image) -> None:
        unmap_page(image, image.resolve("absent!Work") & ~0xFFF)

    audited = audit_of(scene, folder, absent).run(Selection(clean_too=True, stacks=True))
    stacks = {each.thread.members.tid: each.stack for each in audited}
    return {tid: stack for tid, stack in stacks.items() if tid is not None and stack is not None}


@pytest.fixture(scope="module", params=[X64, XP])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[int, Stack]]:
    """A machine with a thread for each case: its kernel's name, and the stacks by TID."""
    kernel: str = request.param
    threads = [waiting(kernel, number, case.values) for number, case in enumerate(CASES)]
    return kernel, walked(tmp_path_factory.mktemp(kernel), kernel, threads)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_the_frames_between(machine: tuple[str, dict[int, Stack]], number: int) -> None:
    """A frame is certain if the call before it entered the function of the frame below; what may be one is marked.

    Each is the nearest such word on the stack.
    """
    kernel, stacks = machine
    own = load_kernel(kernel)
    distance = own.address("KeInsertQueueApc") - own.address("KeInitializeApc")
    frames = stacks[TID + 4 * number].frames[1:]
    expected = CASES[number].expected
    assert [str(each) for each in frames] == [each.format(distance=distance) for each in expected]
    places = [stack_pointer(kernel, number) + at * (8 if kernel == X64 else 4) // 8 for at in CASES[number].values]
    assert [each.found_at for each in frames] == places[: len(frames)]


#: lea r11, [rsp+50h]; mov rbx, [r11+20h]; mov rsp, r11; pop r15; pop r14; ret, as in the genuine minidump.
RESTORING = "4c8d5c2450 498b5b20 498be3 415f 415e c3"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param("8bd8 4883c420 5b c3", FunctionEnd(Epilogue(None, 0x20, (3,))), id="add, pop, ret"),
        pytest.param("eb08 8b4954 4883c428 c3", FunctionEnd(Epilogue(None, 0x28, ())), id="behind a jump"),
        pytest.param("90 4881c400010000 c3", FunctionEnd(Epilogue(None, 0x100, ())), id="add of 32 bits"),
        pytest.param("90 4883c428 e900010000", FunctionEnd(Epilogue(None, 0x28, ())), id="a tail call"),
        pytest.param("90 488d65205dc3", FunctionEnd(Epilogue(5, 0x20, (5,))), id="from RBP"),
        pytest.param(RESTORING, FunctionEnd(Epilogue(None, 0x50, (15, 14))), id="from R11"),
        pytest.param("8bd8 4883c430 415f 415e", FunctionEnd(Epilogue(None, 0x30, (15, 14)), whole=False), id="cut"),
        pytest.param("8bd8 4883c430 415f 41", FunctionEnd(Epilogue(None, 0x30, (15,)), whole=False), id="cut in a pop"),
        pytest.param("cc 4883c428 c3", None, id="behind a call that never returns"),
        pytest.param("8bd8 cccc 4883c428 c3", None, id="in the next function"),
        pytest.param("8bd8 4883ec28 c3", None, id="no epilogue"),
        pytest.param("4883c4e0 c3", None, id="an adjustment that allocates"),
        pytest.param("", None, id="nothing can be read"),
    ],
)
def test_the_end_of_a_function(code: str, expected: FunctionEnd | None) -> None:
    """The first epilogue behind a return address is that of its function (Microsoft, "x64 prolog and epilog")."""
    assert find_function_end(bytes.fromhex(code)) == expected


def test_where_a_function_leaves(tmp_path: Path) -> None:
    """Without unwind data the code behind a return address tells which word is the next one; the others are no frames.

    The function in which the thread waits ends with add rsp, 20h; pop rbx; ret.
    """
    values = {0x8: "absent!Work+0x35", 0x18: "absent!Work+0x55", 0x28: "absent!Work+0x15"}
    code: dict[Address, Code] = {"nt!KiSwapThread+0x44": bytes.fromhex("4883c420 5b c3")}
    stack = walked(tmp_path, X64, [waiting(X64, 0, values)], code)[TID]
    assert [str(each) for each in stack.frames[1:]] == ["absent!Work+0x15"]
