"""The stacks of x64 threads: from where their registers were saved to the outermost frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.unwind import How, Stack

from apcaudit.synthetic.assembly import Code, Relative
from apcaudit.synthetic.build import build
from apcaudit.synthetic.damage import unmap_page
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Address, Bugcheck, Driver, Process, Scene, StackWrite, Thread
from apcaudit.synthetic.scenes.common import FLTMGR, HAL
from tests import volatility
from tests.unwind_images import FRAMED, SMALL

SHARED = volatility.ROOT.parent / "shared"
KERNEL = "10-19041-x64"

#: A driver of ours: Inner (pushes RBX), called by Outer (RBP is its frame), as above.
WALKER_CODE: dict[int, Code] = {
    0x1000: SMALL[0x100:0x10D],
    0x1100: FRAMED[0x100:0x116],
    0x1130: (b"\xe8", Relative("walker!Inner")),
}
WALKER = Driver(
    "walker.sys",
    exports={"Inner": 0x1000, "Outer": 0x1100},
    code=WALKER_CODE,
    unwind={(0x1000, 0x100D): SMALL[0x1000:0x1008], (0x1100, 0x1180): FRAMED[0x1000:0x100C]},
)
#: Ours: the calls in the kernel that its return addresses follow; KeQuery... that a stale one does.
KERNEL_CODE: dict[Address, Code] = {
    "nt!PspSystemThreadStartup+0x53": b"\xff\xd0",
    "nt!KiStartSystemThread+0x26": b"\xff\xd0",
    "nt!IofCallDriver+0x1b": (b"\xe8", Relative("nt!KeBugCheck")),
}

STACK_BASE = 0xFFFFF58C20006000
INNER = STACK_BASE - 0x800
OUTER = INNER + 0x30
FRAME = OUTER + 0x40  # Outer has allocated 0x40 bytes since
CALLER = FRAME + 0x210
FRAMES = (
    StackWrite(INNER + 0x20, (0x1B1B, "walker!Outer+0x35")),
    StackWrite(FRAME + 0x200, (0, "nt!PspSystemThreadStartup+0x55")),
    # Left over: the address of a function, the return address of a call of another function.
    StackWrite(CALLER + 0x10, ("nt!ExpWorkerThread", "nt!IofCallDriver+0x20")),
    StackWrite(CALLER + 0x48, ("nt!KiStartSystemThread+0x28",)),
)
EXPECTED = [
    (How.UNWOUND, "walker!Outer+0x35", OUTER),
    (How.UNWOUND, "nt!PspSystemThreadStartup+0x55", CALLER),
    # The synthetic kernel has no unwind data.
    (How.SCANNED, "nt!KiStartSystemThread+0x28", CALLER + 0x50),
]


def stack_of(folder: Path, thread: Thread, *, paged_out: Address | None = None, **scene: object) -> Stack:
    processes = (Process("System", 4, (thread,), parent=0),)
    described = Scene("stack", "one stack", KERNEL, processes, (HAL, FLTMGR, WALKER), code=KERNEL_CODE)
    image = build(replace(described, **scene), load_kernel(KERNEL))
    if paged_out is not None:
        unmap_page(image, image.resolve(paged_out) & ~0xFFF)
    path = folder / "stack.dmp"
    image.write_dump(path)
    plugin = volatility.construct(path, "windows.apcaudit.ApcAudit", cache=volatility.CACHE, kernel=image.kernel)
    audit = Audit(plugin.context, plugin.config["kernel"])
    stacks = [each.stack for each in audit.run(Selection(tids=frozenset({8}), clean_too=True, stacks=True))]
    assert stacks[0] is not None
    return stacks[0]


def shown(stack: Stack) -> list[tuple[How, str, int | None]]:
    return [(each.how, each.code.text, each.address) for each in stack.frames]


def test_a_crashing_thread(tmp_path: Path) -> None:
    """From the saved context outwards by the drivers' .pdata as it stands in memory, then by search."""
    registers: dict[str, Address] = {"Rip": "walker!Inner+0x6", "Rsp": INNER, "Rbp": FRAME + 0x20}
    thread = Thread(8, start="walker!Outer", state="Running", running_on=0, frames=FRAMES, stack_base=STACK_BASE)
    stack = stack_of(tmp_path, thread, bugcheck=Bugcheck(0xD1, registers=registers), crashing_thread=8)
    assert shown(stack) == [(How.SAVED, "walker!Inner+0x6", INNER), *EXPECTED]
    assert [each.follows_call for each in stack.frames] == [None, True, True, True]


def test_a_waiting_thread(tmp_path: Path) -> None:
    """From the switch frame at KernelStack: RIP at 0x38, RBP at 0x30, RSP behind it."""
    top = OUTER - 0x40
    switch_frame = StackWrite(top, (0, 0, 0, 0, 0, 0, FRAME + 0x20, "walker!Outer+0x35"))
    members = {"Tcb.KernelStack": top}
    thread = Thread(8, start="walker!Outer", frames=(*FRAMES, switch_frame), stack_base=STACK_BASE, members=members)
    assert shown(stack_of(tmp_path, thread)) == [(How.SAVED, "walker!Outer+0x35", OUTER), *EXPECTED[1:]]


def test_unwind_data_of_a_driver_that_lies(tmp_path: Path) -> None:
    """Where a driver's unwind data leads off the stack, the return address is searched, and the walk goes on."""
    registers: dict[str, Address] = {"Rip": "walker!Inner+0x6", "Rsp": INNER, "Rbp": FRAME + 0x20}
    thread = Thread(8, start="walker!Outer", state="Running", running_on=0, frames=FRAMES, stack_base=STACK_BASE)
    # Inner claims to have allocated 512 KiB less 8 bytes.
    liar = replace(WALKER, unwind={**WALKER.unwind, (0x1000, 0x100D): bytes.fromhex("010602000601ffff")})
    bugcheck = Bugcheck(0xD1, registers=registers)
    stack = stack_of(tmp_path, thread, bugcheck=bugcheck, crashing_thread=8, drivers=(HAL, FLTMGR, liar))
    assert [each.code.text for each in stack.frames] == ["walker!Inner+0x6", *(text for _, text, _ in EXPECTED)]
    # Outer's frame register is lost with the frame.
    assert [each.how for each in stack.frames[1:]] == [How.SCANNED] * 3


@pytest.mark.parametrize(("offset", "frames"), [(0x28, ["plain!Main+0x105?"]), (0x30, [])])
def test_the_alignment_of_a_frame(offset: int, frames: list[str], tmp_path: Path) -> None:
    """Of what may be a return address, and no call is seen before, one where no call could have put it is none."""
    left_over = StackWrite(CALLER + offset, ("plain!Main+0x105",))
    top = OUTER - 0x40
    switch_frame = StackWrite(top, (0, 0, 0, 0, 0, 0, FRAME + 0x20, "walker!Outer+0x35"))
    members = {"Tcb.KernelStack": top}
    thread = Thread(
        8, start="walker!Outer", frames=(*FRAMES, left_over, switch_frame), stack_base=STACK_BASE, members=members
    )
    drivers = (HAL, FLTMGR, WALKER, Driver("plain.sys", exports={"Main": 0x2400}))
    stack = stack_of(tmp_path, thread, paged_out="plain!Main", drivers=drivers)
    assert [str(frame) for frame in stack.frames[2:-1]] == frames


#: How Windows starts a device, innermost first: the kernel's own names for it, in the order in which they call another.
STARTING_A_DEVICE = [
    "nt!IofCallDriver+0x55",
    "nt!PnpAsynchronousCall+0xea",
    "nt!PnpSendIrp+0x9e",
    "nt!PnpStartDevice+0x88",
    "nt!PnpStartDeviceNode+0xec",
    "nt!PipProcessStartPhase1+0x73",
    "nt!PipProcessDevNodeTree+0x319",
    "nt!PiProcessStartSystemDevices+0x60",
    "nt!PnpDeviceActionWorker+0x4cc",
    "nt!ExpWorkerThread+0x105",
    "nt!PspSystemThreadStartup+0x55",
    "nt!KiStartSystemThread+0x28",
]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED.name}/ is not beside the repository")
def test_the_genuine_minidump(tmp_path: Path) -> None:
    """The crashing thread's stack: the exception's address, the driver's calls to there, and a device being started.

    Read off the dump's bytes by hand: the calls before the return addresses amdppm+313f and +3234 enter 32dc and 30d4,
    the functions of the frames before; that before +1f852 enters 27b70, where +283f6 lies. From +3234 the code runs to
    `add rsp, 28h; ret`, which returns to the word 28h above ...2180: +20e8f. From there it runs to `add rsp, 30h` and
    five pops of which the dump has three, so that it returns at 2208 or above: +283f6. What is left over of calls that
    have returned (nt!PnpSetDeviceAffinityThread+55 behind a call of __security_check_cookie) is no frame, nor is what
    lies where no call puts a return address (Wdf01000+97e38 at ...2680), or within a function's own part of the stack
    (amdppm+312d4 at ...21d8; Wdf01000+c900 at ...23d8, where the code behind +16f81 has `add rsp, 20h` and three pops).
    """
    minidump = SHARED / "samples" / "triage_x64.dmp"
    kernel = SHARED / "symbols" / "windows" / "ntkrnlmp.pdb" / "5278AFF86C341677D7D7835C85B7B844-1.json.xz"
    symbols = volatility.alone(kernel, tmp_path)
    plugin = volatility.construct(minidump, "windows.apcaudit.ApcAudit", cache=volatility.CACHE, symbols=(symbols,))
    audit = Audit(plugin.context, plugin.config["kernel"])
    selection = Selection(tids=frozenset({264}), clean_too=True, stacks=True)
    stack = next(iter(audit.run(selection))).stack
    assert stack is not None
    texts = [each.code.text for each in stack.frames]
    assert texts[:6] == [f"amdppm+{at:#x}" for at in (0x334C, 0x313F, 0x3234, 0x20E8F, 0x283F6, 0x1F852)]
    assert [each.follows_call for each in stack.frames[:6]] == [None, True, True, None, None, True]
    assert [text for text in texts if text in STARTING_A_DEVICE] == STARTING_A_DEVICE
    left_over = {"nt!PnpSetDeviceAffinityThread+0x55", "Wdf01000+0x97e38", "amdppm+0x312d4", "Wdf01000+0xc900"}
    assert not left_over & set(texts)
    # No driver's unwind data is in a minidump.
    assert {each.how for each in stack.frames[1:]} == {How.SCANNED}
    start = "amdppm+0x334c (saved) <- amdppm+0x313f <- amdppm+0x3234 <- amdppm+0x20e8f <- amdppm+0x283f6?"
    assert str(stack).startswith(start)
