"""The stacks that x86 machines crash on: planted as Windows leaves them, in full dumps and in minidumps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.unwind import How, Stack, StackKind

from apcaudit.synthetic.assembly import Code, Relative
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Address, Bugcheck, Driver, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import HAL
from tests.crash_image import Dumped, audit_crash, crash_stack, shown, write_members, write_words
from tests.stack_image import with_symbols

KERNEL = "xp-sp3-x86"
TID = 8
ROUTINES = ("KiTrap0E", "KiRetireDpcList", "KiDispatchInterrupt", "KiUnlockDispatcherDatabase", "KeUserModeCallback")
SYMBOLS = {name: 0x90000 + 0x400 * number for number, name in enumerate(ROUTINES)}
#: _KPRCB of XP SP3 (public PDB).
POINTERS = {"DpcStack": 0x868}

STACK_BASE, PROCESSOR_BASE = 0xB7F04000, 0xF78A3000
FAULTY = Driver("faulty.sys", exports={"DpcRoutine": 0x1000, "Work": 0x1400})
CALL = b"\xff\xd0"
CODE: dict[Address, Code] = {
    "nt!KiTrap0E+0x22e": (b"\xe8", Relative("nt!KeBugCheckEx")),
    "nt!KiRetireDpcList+0x5f": CALL,
    "nt!KiDispatchInterrupt+0x25": (b"\xe8", Relative("nt!KiRetireDpcList")),
    "nt!KiUnlockDispatcherDatabase+0x99": (b"\xe8", Relative("nt!KiDispatchInterrupt")),
    "nt!PspSystemThreadStartup+0x31": b"\xff\x55\x08",
    "faulty!Work+0x42": CALL,
}


@pytest.fixture(scope="module")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel's symbol file with those routines and members."""
    return with_symbols(tmp_path_factory.mktemp("x86"), SYMBOLS, KERNEL, POINTERS)


def walk(
    folder: Path,
    symbols: Path,
    bugcheck: Bugcheck,
    plant: object,
    *,
    minidump: Dumped | None = None,
    thread: Mapping[str, object] | None = None,
    code: Mapping[Address, Code] = CODE,
) -> Stack:
    """Walk the stack of the crashed thread."""
    crashed = replace(Thread(TID, state="Running", running_on=0, stack=(0,), stack_base=STACK_BASE), **(thread or {}))
    scene = Scene(
        "crash",
        "one crash",
        KERNEL,
        (Process("System", 4, (crashed,), parent=0),),
        (HAL, FAULTY),
        bugcheck=bugcheck,
        crashing_thread=TID,
        code=code,
    )
    audit, _ = audit_crash(scene, folder, symbols, plant, minidump=minidump)  # type: ignore[arg-type]
    return crash_stack(audit, TID)


def trap_frame(image: Image, address: int, eip: Address, ebp: int, **members: Address) -> None:
    """Write an x86 _KTRAP_FRAME of kernel mode as KiTrap0E makes it: the registers twice, and the mark."""
    twice = {"Eip": eip, "DbgEip": eip, "Ebp": ebp, "DbgEbp": ebp}
    flags = {"DbgArgMark": 0xBADB0D00, "SegCs": 0x8, "EFlags": 0x10246}
    write_members(image, address, "_KTRAP_FRAME", {**twice, **flags, **members})


# A page fault in a DPC routine. KiDispatchInterrupt sets ESP to the DPC stack's base and pushes the thread's ESP there;
# it has pushed ExceptionList and EBP on the thread's stack before. A genuine 0xD1 of Windows 7 has KiRetireDpcList's
# frame 0ch below the base of the DPC stack, as this one.
RETIRE = PROCESSOR_BASE - 0xC
ROUTINE = RETIRE - 0x40
TRAP = ROUTINE - 0xA0
BUGCHECK = TRAP - 0x20
THREAD_ESP = STACK_BASE - 0x300
WORKER = STACK_BASE - 0x200
DPC_CRASH = Bugcheck(
    0xD1,
    (0x28, 2, 0, "faulty!DpcRoutine+0x2c"),
    registers={"Eip": "nt!KeBugCheckEx+0x1b", "Esp": BUGCHECK - 0x10, "Ebp": BUGCHECK},
)


def plant_dpc(image: Image) -> None:
    image.memory.write(image.address_of["kprcb:0"], "_KPRCB", "DpcStack", PROCESSOR_BASE)
    write_words(image, BUGCHECK, TRAP, "nt!KiTrap0E+0x233")
    trap_frame(image, TRAP, "faulty!DpcRoutine+0x2c", ROUTINE)
    write_words(image, ROUTINE, RETIRE, "nt!KiRetireDpcList+0x61")
    # KiDispatchInterrupt uses EBP for the list of DPCs.
    write_words(image, RETIRE, image.address_of["kprcb:0"] + 0x860, "nt!KiDispatchInterrupt+0x2a", THREAD_ESP)
    write_words(image, THREAD_ESP, 0xFFFFFFFF, WORKER, "nt!KiUnlockDispatcherDatabase+0x9e")
    write_words(image, WORKER, STACK_BASE - 0x100, "faulty!Work+0x44")
    write_words(image, STACK_BASE - 0x100, 0, "nt!PspSystemThreadStartup+0x34")


DPC, OWN = StackKind.DPC, StackKind.THREAD
DPC_FRAMES = [
    (DPC, How.SAVED, "nt!KeBugCheckEx+0x1b"),
    (DPC, How.FRAME_POINTER, "nt!KiTrap0E+0x233"),
    (DPC, How.INTERRUPTED, "faulty!DpcRoutine+0x2c"),
    (DPC, How.FRAME_POINTER, "nt!KiRetireDpcList+0x61"),
    (DPC, How.SCANNED, "nt!KiDispatchInterrupt+0x2a"),
    (OWN, How.SCANNED, "nt!KiUnlockDispatcherDatabase+0x9e"),
    (OWN, How.FRAME_POINTER, "faulty!Work+0x44"),
    (OWN, How.FRAME_POINTER, "nt!PspSystemThreadStartup+0x34"),
]


def test_a_crash_on_the_dpc_stack(tmp_path: Path, symbols: Path) -> None:
    """The frames on the DPC stack come first, then those of the thread, whose ESP is at the stack's beginning."""
    stack = walk(tmp_path, symbols, DPC_CRASH, plant_dpc)
    assert shown(stack.frames) == DPC_FRAMES
    # EBP of the callers, which KiDispatchInterrupt pushed.
    assert [each.address for each in stack.frames if each.stack is OWN][:2] == [WORKER, STACK_BASE - 0x100]
    assert " <- [thread stack] nt!KiUnlockDispatcherDatabase+0x9e (scanned)" in str(stack)


def test_a_minidump_of_it(tmp_path: Path, symbols: Path) -> None:
    """A minidump has the DPC stack only, and no code and no exports."""
    dumped = Dumped((BUGCHECK - 0x10, PROCESSOR_BASE))
    stack = walk(tmp_path, symbols, DPC_CRASH, plant_dpc, minidump=dumped)
    expected = [(kind, how, text.replace("!DpcRoutine+0x2c", "+0x102c")) for kind, how, text in DPC_FRAMES[:4]]
    assert shown(stack.frames) == [*expected, (DPC, How.SCANNED, "nt!KiDispatchInterrupt+0x2a?")]
    assert stack.ending == "the thread stack is not in the image"


# An exception on the thread's stack (0x8E), whose trap frame the bugcheck names.
FRAME = STACK_BASE - 0x400
FAULT = FRAME - 0xC0
HANDLER = FAULT - 0x300


@pytest.mark.parametrize("chain", [FAULT, 0x41414141], ids=["EBP leads to it", "EBP leads nowhere"])
def test_the_trap_frame_that_a_bugcheck_names(tmp_path: Path, symbols: Path, chain: int) -> None:
    """The frames of the handler, then the driver that caused the exception, wherever EBP leads, mark or no mark."""

    def plant(image: Image) -> None:
        write_words(image, HANDLER, chain, "nt!KiTrap0E+0x233")
        trap_frame(image, FAULT, "faulty!Work+0x2c", FRAME, DbgArgMark=0)
        write_words(image, FRAME, 0, "nt!PspSystemThreadStartup+0x34")

    bugcheck = Bugcheck(
        0x8E,
        (0xC0000005, "faulty!Work+0x2c", FAULT, 0),
        registers={"Eip": "nt!KeBugCheckEx+0x1b", "Esp": HANDLER - 0x10, "Ebp": HANDLER},
    )
    stack = walk(tmp_path, symbols, bugcheck, plant, minidump=Dumped((HANDLER - 0x10, STACK_BASE)))
    assert [(each.how, each.code.text) for each in stack.frames if each.how is not How.SCANNED] == [
        (How.SAVED, "nt!KeBugCheckEx+0x1b"),
        *([(How.FRAME_POINTER, "nt!KiTrap0E+0x233")] if chain == FAULT else []),
        (How.INTERRUPTED, "faulty+0x142c"),
        (How.FRAME_POINTER, "nt!PspSystemThreadStartup+0x34"),
    ]
    assert "nt!KiTrap0E+0x233" in [each.code.text for each in stack.frames]
    (interrupted,) = [each for each in stack.frames if each.how is How.INTERRUPTED]
    assert (interrupted.address, interrupted.certain) == (FRAME, True)


# A call of user mode, from within which the kernel was entered again: KCALLOUT_FRAME is InitialStack, TrapFrame,
# CallbackStack, EDI, ESI, EBX, EBP, the return address.
FIRST_ENTRY, SECOND_ENTRY = STACK_BASE - 0x300, STACK_BASE - 0x600
CALLOUT = STACK_BASE - 0x480
CALLING = CALLOUT + 0x40
CRASHING = SECOND_ENTRY - 0x80


def test_a_crash_within_a_call_of_user_mode(tmp_path: Path, symbols: Path) -> None:
    """A minidump of it: beyond the second entry from user mode comes what called user mode, to the first entry."""

    def plant(image: Image) -> None:
        for entry in (FIRST_ENTRY, SECOND_ENTRY):
            write_members(image, entry, "_KTRAP_FRAME", {"SegCs": 0x1B, "Eip": 0x7C90E514})
        write_words(image, CALLOUT, STACK_BASE, FIRST_ENTRY, 0, 0, 0, 0, CALLING, "nt!KeUserModeCallback+0x87")
        write_words(image, CALLING, FIRST_ENTRY, "faulty!Work+0x44")
        write_words(image, CRASHING, SECOND_ENTRY, "nt!NtReadFile+0x20")
        # Left over beyond the first entry, where floating-point state is.
        write_words(image, STACK_BASE - 0x200, "nt!IofCompleteRequest+0x20")

    bugcheck = Bugcheck(0xE2, registers={"Eip": "nt!KeBugCheckEx+0x1b", "Esp": CRASHING - 0x10, "Ebp": CRASHING})
    thread = {"members": {"Tcb.TrapFrame": SECOND_ENTRY, "Tcb.CallbackStack": CALLOUT}, "system": False}
    dumped = Dumped((CRASHING - 0x10, STACK_BASE))
    stack = walk(tmp_path, symbols, bugcheck, plant, minidump=dumped, thread=thread)
    assert shown(stack.frames) == [
        (OWN, How.SAVED, "nt!KeBugCheckEx+0x1b"),
        (OWN, How.FRAME_POINTER, "nt!NtReadFile+0x20"),
        (OWN, How.CALLOUT, "nt!KeUserModeCallback+0x87"),
        (OWN, How.FRAME_POINTER, "faulty+0x1444"),
    ]
    assert stack.ending == "entered from user mode"
