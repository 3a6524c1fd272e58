"""The frames of x86 stacks: by EBP, by return addresses that follow a call, and how each was found."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.audit import Selection
from volatility3.plugins.windows.apcaudit.stacks import Stacks
from volatility3.plugins.windows.apcaudit.unwind import How
from volatility3.plugins.windows.apcaudit.unwind.registers import (
    partial_registers,
    registers_from_context,
    registers_from_switch_frame,
)
from volatility3.plugins.windows.apcaudit.unwind.scan import CallBefore, call_before

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import StackWrite, Thread
from apcaudit.synthetic.scenes import seed
from tests.stack_image import audit_of, stack_of, texts

#: The post's stack: ChildEBP, return address, arguments, function.
POST = [
    (0xBA6E5BE0, 0x80508D2F, (0x6, 0x8A715818, 0x0), "nt!KeBugCheck+0x14"),
    (0xBA6E5C00, 0x8062CFD8, (0xBA6E5C18, 0x8A715818, 0x0), "nt!KeUnstackDetachProcess+0x118"),
    (0xBA6E5C50, 0xF745664D, (0x8A3105E8, 0x8A6BDBB0, 0x1), "nt!MmProbeAndLockProcessPages+0x6a"),
    (0xBA6E5D54, 0xBA711870, (0x8AB61818, 0xBA71708C, 0xE4446410), "fltMgr!FltSendMessage+0x1db"),
    (0xBA6E5DAC, 0x80576320, (0x0, 0x0, 0x0), "Bfilter!ScUnInitExcludePath"),
    (0xBA6E5DDC, 0x804EC7B9, (0xBA7118A0, 0x0, 0x0), "nt!PspSystemThreadStartup+0x34"),
]
#: A debugger prints zeros beside it: there is no frame any more, its EBP is 0.
OUTERMOST = "nt!KiThreadStartup+0x16"
NAMES = [*(name for *_, name in POST), OUTERMOST]


def test_the_post(tmp_path: Path) -> None:
    """The crashing thread's stack is the post's: frames, return addresses, arguments, functions, in its order."""
    stack = stack_of(audit_of(seed.scene(), tmp_path), 340)
    *inner, last = stack.frames
    assert [(each.address, each.return_address, each.arguments, each.code.text) for each in inner] == POST
    assert (last.code.text, last.address, last.return_address) == (OUTERMOST, 0, None)
    assert [each.how for each in stack.frames] == [How.SAVED] + [How.FRAME_POINTER] * 6
    assert all(each.follows_call for each in stack.frames[1:])
    assert "dump's header" in stack.start
    assert "outermost" in stack.ending


def test_the_processors_own_context(tmp_path: Path) -> None:
    """Without a dump's header the registers come from the processor's KPRCB: the same frames."""
    audit = audit_of(seed.scene(), tmp_path)
    thread = next(each.thread for each in audit.run(Selection()) if each.thread.members.tid == 340)
    stack = Stacks(audit.kernel, None, stopped=True).walk(thread)
    assert stack is not None
    assert texts(stack) == NAMES
    assert "KPRCB" in stack.start


def test_without_registers(tmp_path: Path) -> None:
    """Where no registers were saved the stack is searched: the first return address, then EBP's chain from there."""
    audit = audit_of(seed.scene(), tmp_path)
    thread = next(each.thread for each in audit.run(Selection()) if each.thread.members.tid == 340)
    stack = Stacks(audit.kernel, None, stopped=False).walk(thread)
    assert stack is not None
    assert texts(stack) == NAMES[1:]
    assert [each.how for each in stack.frames] == [How.SCANNED] + [How.FRAME_POINTER] * 5
    assert "search" in stack.start


@pytest.mark.parametrize(
    "saved",
    [
        pytest.param(0x41414141, id="to nowhere"),
        pytest.param(0xBA6E5BE0, id="back to an inner frame"),
        pytest.param(0xBA6E5C51, id="odd"),
    ],
)
def test_a_broken_chain(tmp_path: Path, saved: int) -> None:
    """Where a saved EBP leads nowhere, the frame is found by search, so is its caller's, and the rest by EBP again."""

    def break_chain(image: Image) -> None:
        image.write(0xBA6E5C00, struct.pack("<I", saved))

    stack = stack_of(audit_of(seed.scene(), tmp_path, break_chain), 340)
    assert texts(stack) == NAMES
    how = [How.SAVED, How.FRAME_POINTER, How.SCANNED, How.SCANNED, *[How.FRAME_POINTER] * 3]
    assert [each.how for each in stack.frames] == how
    # MmProbeAndLockProcessPages, whose EBP was lost.
    assert stack.frames[2].address is None


def test_a_function_without_a_frame(tmp_path: Path) -> None:
    """A return address below EBP whose call entered the current function belongs to a function without a frame.

    Here KeBugCheck was called by IofCallDriver, which left EBP alone, so that EBP leads past it.
    """
    scene = seed.scene()
    kernel = load_kernel(scene.kernel)
    inner = kernel.address("IofCallDriver") + 0x20
    distance = kernel.address("KeBugCheck") - inner

    def call_between(image: Image) -> None:
        image.memory.space.map(inner - 5, 5)
        image.write(inner - 5, b"\xe8" + struct.pack("<i", distance))
        # KeBugCheck has pushed EBP at ba6e5bb0; the next EBP leads to KeUnstackDetachProcess's frame.
        image.write(0xBA6E5BB0, struct.pack("<II", 0xBA6E5BE0, inner))
        # What called IofCallDriver was a direct call of it.
        at = kernel.address("KeUnstackDetachProcess") + 0x113
        image.write(at, b"\xe8" + struct.pack("<i", kernel.address("IofCallDriver") - at - 5))

    assert scene.bugcheck is not None
    registers = {**scene.bugcheck.registers, "Esp": 0xBA6E5BA8, "Ebp": 0xBA6E5BB0}
    scene = replace(scene, bugcheck=replace(scene.bugcheck, registers=registers))
    stack = stack_of(audit_of(scene, tmp_path, call_between), 340)
    assert texts(stack)[:3] == ["nt!KeBugCheck+0x14", "nt!IofCallDriver+0x20", "nt!KeUnstackDetachProcess+0x118"]


def test_a_waiting_thread(tmp_path: Path) -> None:
    """A waiting thread's registers are in the switch frame at KernelStack: the return address, behind it EBP."""
    base = 0xB7F04000
    top = base - 0x200
    frames = (
        # ExceptionList, Eflags, RetAddr; then EBP, EDI, ESI and EBX as KiSwapContext pushed them, and its caller.
        StackWrite(top, (0xFFFFFFFF, 0, "nt!KiSwapContext+0x26", base - 0x180, 0, 0, 0, "nt!KiSwapThread+0x44")),
        StackWrite(base - 0x180, (0, "nt!PspSystemThreadStartup+0x34", 0, 0, 0)),
    )
    thread = Thread(400, frames=frames, stack_base=base, stack=(0,), members={"Tcb.KernelStack": top})
    scene = seed.scene()
    system, *others = scene.processes
    code = {
        **scene.code,
        "nt!KiSwapContext+0x21": b"\xe8\xf0\xf0\x00\x00",
        "nt!KiSwapThread+0x3f": b"\xff\x15\0\0\0\x80",
    }
    scene = replace(scene, processes=(replace(system, threads=(*system.threads, thread)), *others), code=code)
    stack = stack_of(audit_of(scene, tmp_path), 400)
    assert texts(stack)[0] == "nt!KiSwapContext+0x26"
    assert texts(stack)[-1] == "nt!PspSystemThreadStartup+0x34"
    assert f"{top:#x}" in stack.start


@pytest.mark.parametrize(
    ("code", "follows", "target"),
    [
        pytest.param("9090e800010000", True, 0x1100, id="direct"),
        pytest.param("90ff1500100000", True, None, id="through memory at a fixed address"),
        pytest.param("9090909090ffd0", True, None, id="register"),
        pytest.param("90909090ff5508", True, None, id="memory at EBP + 8"),
        pytest.param("909090ff542408", True, None, id="memory at ESP + 8"),
        pytest.param("90ff9500010000", True, None, id="memory at EBP + 0x100"),
        pytest.param("ff942400010000", True, None, id="memory at ESP + 0x100"),
        pytest.param("ff148500001000", True, None, id="a table indexed by EAX"),
        pytest.param("90909090909090", False, None, id="no call"),
        pytest.param("90ff2500100000", False, None, id="a jump through memory"),
        pytest.param("9090909090ff15", False, None, id="a call whose operand is still to come"),
        pytest.param("ffd0", True, None, id="only two bytes can be read, a call"),
        pytest.param("9090", None, None, id="only two bytes can be read, no call"),
        pytest.param("", None, None, id="nothing can be read"),
    ],
)
def test_the_call_before_an_address(code: str, follows: bool | None, target: int | None) -> None:
    """The forms of CALL (Intel SDM volume 2) are recognised by their bytes; unreadable bytes leave it unknown."""
    assert call_before(bytes.fromhex(code), 0x1000, 4) == CallBefore(follows, target)


def test_registers_of_a_context() -> None:
    """A CONTEXT record gives its registers where its flags say that it has the control registers (winnt.h)."""
    record = bytearray(716)
    struct.pack_into("<I", record, 0, 0x10007)
    struct.pack_into("<I", record, 0xB4, 0xBA6E5BE0)
    struct.pack_into("<I", record, 0xB8, 0x80537394)
    struct.pack_into("<I", record, 0xC4, 0xBA6E5BD8)
    registers = registers_from_context(bytes(record), 4)
    assert registers is not None
    assert (registers.ip, registers.sp, registers.bp) == (0x80537394, 0xBA6E5BD8, 0xBA6E5BE0)
    assert registers_from_context(bytes(716), 4) is None
    assert registers_from_context(bytes(record[:0x80]), 4) is None


def test_registers_of_a_switch_frame() -> None:
    """KSWITCH_FRAME: the return address, EBP, and the stack pointer behind it (x86, then x64)."""
    data = struct.pack("<4I", 0xFFFFFFFF, 0x202, 0x80501026, 0xB7F03E80)
    assert registers_from_switch_frame(data, 0xB7F03E00, 4) == partial_registers(0x80501026, 0xB7F03E0C, 0xB7F03E80, 4)
    data = struct.pack("<8Q", 0, 0, 0, 0, 0, 0, 0xFFFFF58C1000, 0xFFFFF80312345678)
    assert registers_from_switch_frame(data, 0xFFFFF58C2000, 8) == partial_registers(
        0xFFFFF80312345678, 0xFFFFF58C2040, 0xFFFFF58C1000, 8
    )
