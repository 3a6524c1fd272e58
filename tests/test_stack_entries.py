"""Where kernel stacks are entered and left: interrupts, system services, calls of user mode; stacks that are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.unwind import How, Stack

from apcaudit.synthetic.assembly import Code, Relative
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Address, Process, Scene, StackWrite, Thread
from apcaudit.synthetic.scenes.common import HAL
from tests import volatility
from tests.stack_image import audit_of, stack_of, texts, with_symbols

XP, WINDOWS_7, X64 = "xp-sp3-x86", "7-sp1-x86", "10-19041-x64"
BASE = {XP: 0xB7F04000, WINDOWS_7: 0x8A004000, X64: 0xFFFFF58C20006000}
KERNEL_CODE: dict[str, int] = {XP: 0x8, WINDOWS_7: 0x8, X64: 0x10}
USER_CODE = {XP: 0x1B, WINDOWS_7: 0x1B, X64: 0x33}
#: Selectors of KGDT_R0_CODE and KGDT_R3_CODE with the ring (ReactOS, sdk/include/ndk/i386/ketypes.h and amd64).
TID = 400

#: Ours: the calls before the return addresses of the scenes.
CODE: dict[Address, Code] = {
    "nt!KiSwapThread+0x42": b"\xff\xd0",
    "nt!ExpWorkerThread+0x5b": (b"\xe8", Relative("nt!IofCallDriver")),
    "nt!PspSystemThreadStartup+0x31": b"\xff\x55\x08",
    "nt!IofCompleteRequest+0x1e": b"\xff\xd0",
    "nt!MmProbeAndLockPages+0x3e": b"\xff\xd0",
    "nt!NtReadFile+0x1e": b"\xff\xd0",
}


def scene_of(kernel: str, thread: Thread, *, user: bool = False) -> Scene:
    """Declare a machine with one thread to look at, of the kernel's or of a program."""
    processes = (Process("game.exe", 1000, (thread,)),) if user else (Process("System", 4, (thread,), parent=0),)
    return Scene("entries", "one stack", kernel, processes, (HAL,), code=CODE)


def switched(base: int, ip: Address, bp: int, *frames: StackWrite, pointer_size: int = 4, **thread: object) -> Thread:
    """Declare a thread that does not run, by its switch frame: RetAddr and EBP on x86, RBP and RIP on x64."""
    top = base - 0x800
    frame = (0, 0, ip, bp, 0, 0, 0) if pointer_size == 4 else (0, 0, 0, 0, 0, 0, bp, ip)
    members = {"Tcb.KernelStack": top, **dict(thread.pop("members", {}))}  # type: ignore[call-overload]
    described = Thread(TID, frames=(StackWrite(top, frame), *frames), stack_base=base, stack=(0,), members=members)
    return replace(described, **thread)


def write_trap_frame(image: Image, address: int, members: Mapping[str, Address]) -> None:
    for name, value in members.items():
        image.memory.write(address, "_KTRAP_FRAME", name, image.resolve(value))


# The preempted thread: nt!KiSwapThread stands for what the interrupt enters, which switched to another thread.
TRAP, FRAME, OUTER = BASE[XP] - 0x600, BASE[XP] - 0x400, BASE[XP] - 0x200
INTERRUPTED: dict[str, Address] = {
    "DbgEbp": FRAME,
    "DbgEip": "nt!IofCallDriver+0x31",
    "DbgArgMark": 0xBADB0D00,
    "Ebp": FRAME,
    "Eip": "nt!IofCallDriver+0x31",
    "SegCs": KERNEL_CODE[XP],
    "EFlags": 0x246,
}
CALLERS = (
    StackWrite(FRAME, (OUTER, "nt!ExpWorkerThread+0x60")),
    StackWrite(OUTER, (0, "nt!PspSystemThreadStartup+0x34")),
)
CALLER_NAMES = ["nt!ExpWorkerThread+0x60", "nt!PspSystemThreadStartup+0x34"]


def preempted(folder: Path, *, bp: int = TRAP, trap: Mapping[str, Address] | None = None) -> Stack:
    """Walk the stack of a preempted thread whose switch frame has an EBP."""
    members = {**INTERRUPTED, **(trap or {})}
    thread = switched(BASE[XP], "nt!KiSwapThread+0x44", bp, *CALLERS, state="Ready")
    audit = audit_of(scene_of(XP, thread), folder, lambda image: write_trap_frame(image, TRAP, members))
    return stack_of(audit, TID)


def test_a_preempted_thread(tmp_path: Path) -> None:
    """Behind the interrupt's code come the function that it interrupted and its callers."""
    stack = preempted(tmp_path)
    assert texts(stack) == ["nt!KiSwapThread+0x44", "nt!IofCallDriver+0x31", *CALLER_NAMES]
    assert [each.how for each in stack.frames] == [How.SAVED, How.INTERRUPTED, How.FRAME_POINTER, How.FRAME_POINTER]
    interrupted = stack.frames[1]
    # Eip is at 68h of _KTRAP_FRAME.
    assert (interrupted.address, interrupted.found_at, interrupted.follows_call) == (FRAME, TRAP + 0x68, None)
    assert str(stack) == (
        "nt!KiSwapThread+0x44 (saved) <- nt!IofCallDriver+0x31 (interrupted)"
        " <- nt!ExpWorkerThread+0x60 <- nt!PspSystemThreadStartup+0x34 (frame pointer)"
    )


@pytest.mark.parametrize(
    "bp",
    [
        pytest.param(FRAME, id="code that leaves EBP alone"),
        pytest.param(0x41414141, id="code that has its own use for EBP"),
    ],
)
def test_an_interrupt_whose_code_does_not_point_to_the_trap_frame(tmp_path: Path, bp: int) -> None:
    """A trap frame between the interrupt's code and the frame that EBP leads to, or no frame at all, is seen."""
    stack = preempted(tmp_path, bp=bp)
    assert texts(stack) == ["nt!KiSwapThread+0x44", "nt!IofCallDriver+0x31", *CALLER_NAMES]
    assert stack.frames[1].how is How.INTERRUPTED


@pytest.mark.parametrize(
    ("edited", "stack_pointer"),
    [
        # In one ring the processor pushes no stack pointer: the interrupted stack goes on behind EFlags, at 74h.
        pytest.param({}, TRAP + 0x74, id="a plain frame"),
        pytest.param({"SegCs": 0, "TempSegCs": 0x8, "TempEsp": TRAP + 0x100}, TRAP + 0x100, id="an edited frame"),
    ],
)
def test_interrupted_at_the_first_instruction(
    tmp_path: Path, edited: Mapping[str, Address], stack_pointer: int
) -> None:
    """A function that has not made its frame has its return address at the stack pointer, and EBP is its caller's.

    Its name is that of the instruction it is at: what was interrupted is no return address.
    """
    entry = "nt!KeWaitForSingleObject"
    trap = {**INTERRUPTED, "DbgEip": entry, "Eip": entry, **edited}
    thread = switched(
        BASE[XP],
        "nt!KiSwapThread+0x44",
        TRAP,
        StackWrite(stack_pointer, ("nt!NtReadFile+0x20",)),
        *CALLERS,
        state="Ready",
    )
    # The function before ends with a call.
    code = {**CODE, "nt!KeWaitForSingleObject-0x2": b"\xff\xd0"}
    scene = replace(scene_of(XP, thread), code=code)
    stack = stack_of(audit_of(scene, tmp_path, lambda image: write_trap_frame(image, TRAP, trap)), TID)
    assert texts(stack) == ["nt!KiSwapThread+0x44", entry, "nt!NtReadFile+0x20", *CALLER_NAMES]
    assert stack.frames[1].address == stack_pointer - 4


@pytest.mark.parametrize(
    "trap",
    [
        pytest.param({"SegCs": 0x1B, "Eip": 0x7C90E514, "DbgEip": 0x7C90E514}, id="user mode"),
        pytest.param({"EFlags": 0x20246, "SegCs": 0xF000, "Eip": 0x1234, "DbgEip": 0x1234}, id="virtual 8086 mode"),
    ],
)
def test_an_interrupt_of_user_mode(tmp_path: Path, trap: Mapping[str, Address]) -> None:
    """What was interrupted in user mode is no frame of this stack, and nothing lies beyond."""
    stack = preempted(tmp_path, trap=trap)
    assert texts(stack) == ["nt!KiSwapThread+0x44"]
    assert stack.ending == "entered from user mode"


@pytest.mark.parametrize(
    "trap",
    [
        pytest.param({"DbgArgMark": 0}, id="without its mark"),
        pytest.param({"Eip": 0x8A123456, "DbgEip": 0x8A123456}, id="into no code"),
    ],
)
def test_what_is_no_trap_frame(tmp_path: Path, trap: Mapping[str, Address]) -> None:
    """Where EBP does not lead to a trap frame that holds, nothing is said to have been interrupted."""
    stack = preempted(tmp_path, trap=trap)
    assert How.INTERRUPTED not in [each.how for each in stack.frames]


def test_a_system_service_of_the_kernel(tmp_path: Path) -> None:
    """A Zw routine calls KiSystemService, which makes a trap frame too: its caller was not interrupted."""
    symbols = with_symbols(tmp_path, {"KiSystemService": 0x12000})
    trap = {**INTERRUPTED, "DbgEip": "nt!ZwQueueApcThread+0x11", "Eip": "nt!ZwQueueApcThread+0x11"}
    zw_caller = StackWrite(TRAP + 0x74, ("nt!NtReadFile+0x20",))
    thread = switched(BASE[XP], "nt!KiSwapThread+0x44", TRAP, zw_caller, *CALLERS)
    code: dict[Address, Code] = {
        **CODE,
        "nt!ZwQueueApcThread+0xc": (b"\xe8", Relative("nt!KiSystemService")),
        "nt!NtReadFile+0x1b": (b"\xe8", Relative("nt!ZwQueueApcThread")),
    }
    scene = replace(scene_of(XP, thread), code=code)
    audit = audit_of(scene, tmp_path, lambda image: write_trap_frame(image, TRAP, trap), symbols=symbols)
    stack = stack_of(audit, TID)
    assert texts(stack) == [
        "nt!KiSwapThread+0x44",
        "nt!ZwQueueApcThread+0x11",
        # The Zw routine has no frame of its own.
        "nt!NtReadFile+0x20",
        *CALLER_NAMES,
    ]
    assert stack.frames[1].how is How.FRAME_POINTER


@dataclass(frozen=True)
class Kernel:
    """A kernel, and the member of _KTRAP_FRAME in which a nested system service keeps the frame before."""

    name: str
    previous: str


@pytest.mark.parametrize("nested", [False, True], ids=["one service", "a service that the service called"])
@pytest.mark.parametrize("kernel", [Kernel(XP, "Edx"), Kernel(X64, "TrapFrame")], ids=lambda kernel: kernel.name)
def test_beyond_the_entry_from_user_mode(tmp_path: Path, kernel: Kernel, *, nested: bool) -> None:
    """No frame lies beyond the trap frame of the entry from user mode: what looks like some was left there before."""
    base, size = BASE[kernel.name], 8 if kernel.name == X64 else 4
    entry, inner = base - 0x400, base - 0x600
    left_over = StackWrite(base - 0x200 + 8, ("nt!IofCompleteRequest+0x20",))
    frame = StackWrite(base - 0x700 + 8, ("nt!NtReadFile+0x20",))
    members = {"Tcb.TrapFrame": inner if nested else entry}
    # A register that leads nowhere: what the service was called from is searched.
    thread = switched(
        base, "nt!KiSwapThread+0x44", 0x1234, left_over, frame, pointer_size=size, members=members, system=False
    )

    def trap_frames(image: Image) -> None:
        write_trap_frame(image, entry, {"SegCs": USER_CODE[kernel.name]})
        write_trap_frame(image, inner, {"SegCs": KERNEL_CODE[kernel.name], kernel.previous: entry})

    stack = stack_of(audit_of(scene_of(kernel.name, thread, user=True), tmp_path, trap_frames), TID)
    assert texts(stack) == ["nt!KiSwapThread+0x44", "nt!NtReadFile+0x20"]
    assert stack.ending == "no further return address below the trap frame of the entry from user mode"


def test_ebp_leads_to_the_entry_from_user_mode(tmp_path: Path) -> None:
    """The trap frame of a system service is the end of EBP's chain, also where it does not bear the mark."""
    base = BASE[XP]
    entry = base - 0x400
    left_over = StackWrite(base - 0x200, (0, "nt!IofCompleteRequest+0x20"))
    members = {"Tcb.TrapFrame": entry}
    thread = switched(base, "nt!KiSwapThread+0x44", entry, left_over, members=members, system=False)

    def trap_frame(image: Image) -> None:
        # As a chain it would lead on.
        user = {"SegCs": USER_CODE[XP], "DbgEbp": base - 0x200, "DbgEip": "nt!NtReadFile+0x20"}
        write_trap_frame(image, entry, user)

    stack = stack_of(audit_of(scene_of(XP, thread, user=True), tmp_path, trap_frame), TID)
    assert texts(stack) == ["nt!KiSwapThread+0x44"]
    assert stack.ending == "entered from user mode"


# A call of user mode, as win32k makes them: beyond the second entry lie the frames of the first, found by the
# KCALLOUT_FRAME (InitialStack, TrapFrame, CallbackStack, EDI, ESI, EBX, EBP, the return address).
FIRST_ENTRY, SECOND_ENTRY, THIRD_ENTRY = BASE[XP] - 0x300, BASE[XP] - 0x600, BASE[XP] - 0x780
CALLOUT, LATER_CALLOUT = BASE[XP] - 0x480, BASE[XP] - 0x6C0
#: EBP of what called KiCallUserMode; its caller's EBP is the trap frame, as system services have it.
CALLING = CALLOUT + 0x40
CALLOUTS = (
    StackWrite(CALLOUT, (BASE[XP], FIRST_ENTRY, 0, 0, 0, 0, CALLING, "nt!MmProbeAndLockPages+0x40")),
    StackWrite(CALLING, (FIRST_ENTRY, "nt!NtReadFile+0x20")),
    StackWrite(LATER_CALLOUT, (CALLOUT, SECOND_ENTRY, CALLOUT, 0, 0, 0, SECOND_ENTRY, "nt!MmProbeAndLockPages+0x40")),
)
FIRST_CALL = [(How.CALLOUT, "nt!MmProbeAndLockPages+0x40"), (How.FRAME_POINTER, "nt!NtReadFile+0x20")]


@pytest.mark.parametrize(
    ("entry", "callback_stack", "expected"),
    [
        pytest.param(SECOND_ENTRY, CALLOUT, FIRST_CALL, id="one call"),
        pytest.param(THIRD_ENTRY, LATER_CALLOUT, [FIRST_CALL[0], *FIRST_CALL], id="a call in a call"),
        pytest.param(SECOND_ENTRY, 0, [], id="no call"),
        pytest.param(SECOND_ENTRY, 1, [], id="a depth, as Windows Vista and 7 have it"),
        pytest.param(SECOND_ENTRY, CALLING, [], id="no KCALLOUT_FRAME"),
    ],
)
def test_a_call_of_user_mode(tmp_path: Path, entry: int, callback_stack: int, expected: list[tuple[How, str]]) -> None:
    """Beyond an entry from within a call of user mode the walk goes on with what made that call, to the first entry."""
    left_over = StackWrite(BASE[XP] - 0x200, ("nt!IofCompleteRequest+0x20",))
    members = {"Tcb.TrapFrame": entry, "Tcb.CallbackStack": callback_stack}
    thread = switched(BASE[XP], "nt!KiSwapThread+0x44", entry, *CALLOUTS, left_over, members=members, system=False)

    def trap_frames(image: Image) -> None:
        for address in (FIRST_ENTRY, SECOND_ENTRY, THIRD_ENTRY):
            write_trap_frame(image, address, {"SegCs": USER_CODE[XP]})

    stack = stack_of(audit_of(scene_of(XP, thread, user=True), tmp_path, trap_frames), TID)
    found = [(each.how, each.code.text) for each in stack.frames]
    assert found == [(How.SAVED, "nt!KiSwapThread+0x44"), *expected]
    assert stack.ending == "entered from user mode"


@pytest.mark.parametrize("kernel", [XP, WINDOWS_7, X64])
@pytest.mark.parametrize(
    ("thread", "why"),
    [
        pytest.param(Thread(TID, stack_pages=0), "not in the image (KernelStackResident 0)", id="paged out"),
        pytest.param(
            Thread(TID, stack_pages=0, members={"Tcb.KernelStackResident": 1}),
            "not in the image (KernelStackResident 1)",
            id="not acquired",
        ),
        pytest.param(
            Thread(TID, members={"Tcb.StackBase": 0, "Tcb.StackLimit": 0}),
            "none, StackLimit is 0x0 and StackBase 0x0",
            id="freed",
        ),
    ],
)
def test_why_there_is_no_stack(tmp_path: Path, kernel: str, thread: Thread, why: str) -> None:
    """A thread without frames says why, as the table and the JSON give it."""
    stack = stack_of(audit_of(scene_of(kernel, thread), tmp_path), TID)
    assert (stack.frames, stack.start, stack.ending, str(stack)) == ((), "", why, why)


def test_a_stack_without_return_addresses(tmp_path: Path) -> None:
    """Where a search finds nothing, that and where it began are said."""
    thread = Thread(TID, stack=(0,), stack_base=BASE[XP], members={"Tcb.KernelStack": BASE[XP] - 0x40})
    stack = stack_of(audit_of(scene_of(XP, thread), tmp_path), TID)
    assert stack.frames == ()
    assert stack.ending == f"no return address from KernelStack {BASE[XP] - 0x40:#x} on"
    assert "no usable saved registers" in stack.start


def test_the_explanation_of_a_thread_without_a_stack(tmp_path: Path) -> None:
    """The table says it too, with --stacks."""
    image = tmp_path / "stack.dmp"
    audit_of(scene_of(XP, Thread(TID, stack_pages=0)), tmp_path)
    rows = volatility.rows(image, cache=volatility.CACHE, all=True, stacks=True)
    (explanation,) = [row["Explanation"] for row in rows if row["TID"] == TID]
    assert explanation == "stack: not in the image (KernelStackResident 0)."
