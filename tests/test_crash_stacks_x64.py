"""The stacks that x64 machines crash on: planted as Windows leaves them, in full dumps and in minidumps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.unwind import How, Stack, StackKind

from apcaudit.synthetic.assembly import Code, Relative
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Address, Bugcheck, Driver, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import HAL
from tests.crash_image import (
    USER64,
    Dumped,
    audit_crash,
    context64,
    crash_stack,
    shown,
    trap_frame64,
    write_members,
    write_words,
)
from tests.stack_image import with_symbols
from tests.unwind_images import FRAMED

KERNEL = "10-19041-x64"
TID = 8

#: Routines on the way to and from a crash, at addresses of ours: their names are those of 19041's public PDB.
ROUTINES = (
    "KiPageFault",
    "KiBugCheckDispatch",
    "KiDpcInterrupt",
    "KiDispatchInterrupt",
    "KiDispatchInterruptContinue",
    "KxRetireDpcList",
    "KiRetireDpcList",
    "KiExecuteAllDpcs",
    "KzLowerIrql",
    "IopProcessWorkItem",
    "KiInterruptDispatchNoLockNoEtw",
    "KiInterruptSubDispatchNoLockNoEtw",
    "KiCallInterruptServiceRoutine",
    "KiSwitchKernelStackContinue",
    "KxSwitchKernelStackCallout",
    "KiExpandKernelStackAndCalloutOnStackSegment",
    "KiSystemServiceHandler",
    "RtlpExecuteHandlerForException",
    "RtlDispatchException",
    "KiDispatchException",
    "KiExceptionDispatch",
    "KiFastFailDispatch",
    "KiRaiseSecurityCheckFailure",
    "KiSystemServiceCopyEnd",
    "KeUserModeCallback",
)
SYMBOLS = {name: 0x90000 + 0x800 * number for number, name in enumerate(ROUTINES)}
#: _KPRCB of 19041 (public PDB).
POINTERS = {"DpcStack": 0x3110, "IsrStack": 0x85D8, "ExceptionStack": 0x7F28}

CALL = b"\xff\xd0"
#: Calls before the return addresses, as a full dump has them: entry code and its callers call by name, and Windows
#: calls DPC, thread and worker routines through pointers.
CODE: dict[Address, Code] = {
    "nt!KiBugCheckDispatch+0x64": (b"\xe8", Relative("nt!KeBugCheckEx")),
    "nt!KiPageFault+0x464": (b"\xe8", Relative("nt!KiBugCheckDispatch")),
    "nt!KiExecuteAllDpcs+0x30c": CALL,
    "nt!KiRetireDpcList+0x1ef": (b"\xe8", Relative("nt!KiExecuteAllDpcs")),
    "nt!KxRetireDpcList": (b"\xe8", Relative("nt!KiRetireDpcList")),
    "nt!KiDpcInterrupt+0x2e9": (b"\xe8", Relative("nt!KiDispatchInterrupt")),
    "nt!IopProcessWorkItem+0x133": CALL,
    "nt!ExpWorkerThread+0x103": CALL,
    "nt!PspSystemThreadStartup+0x53": CALL,
    "nt!KiStartSystemThread+0x26": CALL,
}

STACK_BASE = 0xFFFFF58C20006000
PROCESSOR_BASE = 0xFFFFF80301008000
#: The driver whose code crashes, and one that was interrupted; a minidump holds the code of neither.
FAULTY = Driver("faulty.sys", exports={"DpcRoutine": 0x1000, "Work": 0x1400, "Dispatch": 0x1800})
DRIVERS = (HAL, FAULTY)

OUTERMOST = (
    "nt!ExpWorkerThread+0x105",
    "nt!PspSystemThreadStartup+0x55",
    "nt!KiStartSystemThread+0x28",
)


@dataclass(frozen=True)
class Crash:
    """A crash: bugcheck parameters 1 to 4, registers, and what writes the stacks; the ranges that a minidump has."""

    code: int
    parameters: tuple[Address, Address, Address, Address]
    rip: Address
    rsp: int
    stack: tuple[int, int]
    ranges: tuple[tuple[Address, int], ...] = ()


def worker_frames(image: Image, sp: int) -> None:
    """Write the callers of a work item's routine: it returns to ExpWorkerThread at a stack address."""
    for at, value in ((sp, OUTERMOST[0]), (sp + 0xA0, OUTERMOST[1]), (sp + 0x100, OUTERMOST[2])):
        write_words(image, at, value)


@pytest.fixture(scope="module")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel's symbol file with those routines and members."""
    return with_symbols(tmp_path_factory.mktemp("x64"), SYMBOLS, KERNEL, POINTERS)


def walk(
    folder: Path,
    symbols: Path,
    crash: Crash,
    plant: object,
    *,
    minidump: bool = False,
    thread: Mapping[str, object] | None = None,
    **scene: object,
) -> Stack:
    """Walk the stack of the crashed thread."""
    crashed = replace(Thread(TID, state="Running", running_on=0, stack=(0,), stack_base=STACK_BASE), **(thread or {}))
    registers: dict[str, Address] = {"Rip": crash.rip, "Rsp": crash.rsp}
    described = Scene(
        "crash",
        "one crash",
        KERNEL,
        (Process("System", 4, (crashed,), parent=0),),
        DRIVERS,
        bugcheck=Bugcheck(crash.code, crash.parameters, registers=registers),
        crashing_thread=TID,
        code=CODE,
    )
    dumped = Dumped(crash.stack, crash.ranges) if minidump else None
    audit, _ = audit_crash(replace(described, **scene), folder, symbols, plant, minidump=dumped)  # type: ignore[arg-type]
    return crash_stack(audit, TID)


# A page fault in a DPC routine, which the DPC interrupt of a worker thread runs, as a genuine 0xD1 of 19041 has it
# (WinDbg's stack of it has these routines, offsets and frame sizes). The kernel changes to the DPC stack with RSP at
# the base less 50h, and saves where it goes on at the base less 28h and the thread's RSP at the base less 10h.
FAULT_RSP = PROCESSOR_BASE - 0x480
FAULT_TRAP = FAULT_RSP - 0x190
THREAD_RSP = STACK_BASE - 0x600
THREAD_TRAP = THREAD_RSP + 0x30
DPC_CRASH = Crash(
    0xD1,
    (0x28, 2, 0, "faulty!DpcRoutine+0x2c"),
    "nt!KeBugCheckEx",
    FAULT_TRAP - 0x148,
    (FAULT_TRAP - 0x148, PROCESSOR_BASE),
)


def plant_dpc(image: Image) -> None:
    image.memory.write(image.address_of["kprcb:0"], "_KPRCB", "DpcStack", PROCESSOR_BASE - 0x50)
    write_words(image, FAULT_TRAP - 0x148, "nt!KiBugCheckDispatch+0x69")
    write_words(image, FAULT_TRAP - 8, "nt!KiPageFault+0x469")
    trap_frame64(image, FAULT_TRAP, "faulty!DpcRoutine+0x2c", FAULT_RSP)
    write_words(image, FAULT_RSP + 0x28, "nt!KiExecuteAllDpcs+0x30e")
    write_words(image, FAULT_RSP + 0x198, "nt!KiRetireDpcList+0x1f4")
    write_words(image, PROCESSOR_BASE - 0x58, "nt!KxRetireDpcList+0x5")
    write_words(image, PROCESSOR_BASE - 0x28, "nt!KiDispatchInterruptContinue", 0, 0, THREAD_RSP, 0)
    write_words(image, THREAD_RSP + 0x28, "nt!KiDpcInterrupt+0x2ee")
    trap_frame64(image, THREAD_TRAP, "nt!KzLowerIrql+0x1b", THREAD_TRAP + 0x190)
    write_words(image, THREAD_TRAP + 0x190 + 0x28, "nt!IopProcessWorkItem+0x135")
    worker_frames(image, THREAD_TRAP + 0x190 + 0x98)


DPC, OWN = StackKind.DPC, StackKind.THREAD


def marked(frames: list[tuple[StackKind, How, str]], *uncertain: str) -> list[tuple[StackKind, How, str]]:
    """Give frames with the mark on those that are named."""
    return [(kind, how, f"{text}?" if text in uncertain else text) for kind, how, text in frames]


def unnamed(frames: list[tuple[StackKind, How, str]]) -> list[tuple[StackKind, How, str]]:
    """Give frames with the addresses in the driver as its exports' readers do not have them: by module alone."""
    offsets = {"DpcRoutine": 0x1000, "Work": 0x1400, "Dispatch": 0x1800}
    made = []
    for kind, how, text in frames:
        name, found, rest = text.partition("faulty!")[2].partition("+")
        place = f"faulty+{offsets[name] + int(rest.rstrip('?'), 16):#x}{'?' * text.endswith('?')}" if found else text
        made.append((kind, how, place))
    return made


DPC_FRAMES = [
    (DPC, How.SAVED, "nt!KeBugCheckEx"),
    (DPC, How.SCANNED, "nt!KiBugCheckDispatch+0x69"),
    (DPC, How.SCANNED, "nt!KiPageFault+0x469"),
    (DPC, How.INTERRUPTED, "faulty!DpcRoutine+0x2c"),
    (DPC, How.SCANNED, "nt!KiExecuteAllDpcs+0x30e"),
    (DPC, How.SCANNED, "nt!KiRetireDpcList+0x1f4"),
    (DPC, How.SCANNED, "nt!KxRetireDpcList+0x5"),
    (OWN, How.SWITCHED, "nt!KiDispatchInterruptContinue"),
    (OWN, How.SCANNED, "nt!KiDpcInterrupt+0x2ee"),
    (OWN, How.INTERRUPTED, "nt!KzLowerIrql+0x1b"),
    (OWN, How.SCANNED, "nt!IopProcessWorkItem+0x135"),
    *((OWN, How.SCANNED, text) for text in OUTERMOST),
]


def test_a_crash_on_the_dpc_stack(tmp_path: Path, symbols: Path) -> None:
    """The frames on the DPC stack come first, then those of the thread that the DPC interrupt stopped.

    Calls through pointers may have led elsewhere, and KiDispatchInterruptContinue is no routine that anything calls.
    """
    stack = walk(tmp_path, symbols, DPC_CRASH, plant_dpc)
    uncertain = ("nt!KiExecuteAllDpcs+0x30e", "nt!KiDpcInterrupt+0x2ee", "nt!KzLowerIrql+0x1b")
    assert shown(stack.frames) == marked(DPC_FRAMES, *uncertain, "nt!IopProcessWorkItem+0x135", *OUTERMOST)
    addresses = {each.code.text: each.address for each in stack.frames}
    assert addresses["faulty!DpcRoutine+0x2c"] == FAULT_RSP
    assert addresses["nt!KxRetireDpcList+0x5"] == PROCESSOR_BASE - 0x50
    assert addresses["nt!KiDispatchInterruptContinue"] == THREAD_RSP
    assert stack.start == "the context in the dump's header, on the DPC stack"
    assert str(stack).startswith(
        "[DPC stack] nt!KeBugCheckEx (saved) <- nt!KiBugCheckDispatch+0x69 <- nt!KiPageFault+0x"
    )
    assert " <- nt!KxRetireDpcList+0x5 (scanned) <- [thread stack] nt!KiDispatchInterruptContinue (switched)" in str(
        stack
    )


def test_the_thread_that_a_processor_crashed_on(tmp_path: Path, symbols: Path) -> None:
    """Of several running threads that one crashed whose processor's DPC stack has the dump's stack pointer."""
    threads = tuple(
        Thread(tid, state="Running", running_on=number, stack=(0,), stack_base=STACK_BASE + 0x10000 * number)
        for number, tid in enumerate((12, TID))
    )
    scene = Scene(
        "crash",
        "one of two processors",
        KERNEL,
        (Process("System", 4, threads, parent=0),),
        DRIVERS,
        bugcheck=Bugcheck(0xD1, registers={"Rip": "nt!KeBugCheckEx", "Rsp": DPC_CRASH.rsp}),
        crashing_thread=TID,
        code=CODE,
        processors=2,
    )

    def plant(image: Image) -> None:
        image.memory.write(image.address_of["kprcb:1"], "_KPRCB", "DpcStack", PROCESSOR_BASE - 0x50)
        write_words(image, DPC_CRASH.rsp, "nt!KiBugCheckDispatch+0x69")

    audit, image = audit_crash(scene, tmp_path, symbols, plant)
    assert audit.facts.crashing_thread == image.address_of[f"thread:{TID}"]
    assert shown(crash_stack(audit, TID).frames)[:2] == DPC_FRAMES[:2]


def test_a_minidump_of_it(tmp_path: Path, symbols: Path) -> None:
    """A minidump has the DPC stack only, from RSP on, and no code: all of its frames, and where the thread goes on."""
    stack = walk(tmp_path, symbols, DPC_CRASH, plant_dpc, minidump=True)
    scanned = [text for _, how, text in DPC_FRAMES[:7] if how is How.SCANNED]
    # Nor does it have the driver's exports.
    assert unnamed(shown(stack.frames)) == unnamed(marked(DPC_FRAMES[:8], *scanned))
    assert stack.ending == "the thread stack is not in the image"


# The clock interrupts a driver's work item, and its interrupt's routine crashes on the interrupt stack. At the base of
# that is the return address of KiInterruptDispatch..., and the thread's RSP, where its trap frame is.
CLOCK_RSP = PROCESSOR_BASE - 0x1C0
CLOCK_TRAP = STACK_BASE - 0x700
CLOCK_CRASH = Crash(0x101, (0, 0, 0, 0), "nt!KeBugCheckEx", CLOCK_RSP, (CLOCK_RSP, PROCESSOR_BASE))


def plant_clock(image: Image) -> None:
    image.memory.write(image.address_of["kprcb:0"], "_KPRCB", "IsrStack", PROCESSOR_BASE)
    write_words(image, CLOCK_RSP, "faulty!Dispatch+0x20")
    write_words(image, CLOCK_RSP + 0xF0, "nt!KiCallInterruptServiceRoutine+0x2ed")
    write_words(image, PROCESSOR_BASE - 0x58, "nt!KiInterruptSubDispatchNoLockNoEtw+0x4e")
    write_words(image, PROCESSOR_BASE - 0x28, "nt!KiInterruptDispatchNoLockNoEtw+0x3c", 0, 0, CLOCK_TRAP, 0)
    trap_frame64(image, CLOCK_TRAP, "faulty!Work+0x44", CLOCK_TRAP + 0x190)
    write_words(image, CLOCK_TRAP + 0x190 + 0x58, "nt!IopProcessWorkItem+0x135")
    worker_frames(image, CLOCK_TRAP + 0x190 + 0xC8)


def test_a_crash_on_the_interrupt_stack(tmp_path: Path, symbols: Path) -> None:
    """Beyond the interrupt stack comes its dispatcher's frame on the thread's, and then what was interrupted."""
    code: dict[Address, Code] = {
        **CODE,
        "faulty!Dispatch+0x1b": (b"\xe8", Relative("nt!KeBugCheckEx")),
        "nt!KiCallInterruptServiceRoutine+0x2eb": CALL,
        "nt!KiInterruptSubDispatchNoLockNoEtw+0x49": (b"\xe8", Relative("nt!KiCallInterruptServiceRoutine")),
        "nt!KiInterruptDispatchNoLockNoEtw+0x37": (b"\xe8", Relative("nt!KiInterruptSubDispatchNoLockNoEtw")),
    }
    stack = walk(tmp_path, symbols, CLOCK_CRASH, plant_clock, code=code)
    assert shown(stack.frames) == [
        (StackKind.INTERRUPT, How.SAVED, "nt!KeBugCheckEx"),
        (StackKind.INTERRUPT, How.SCANNED, "faulty!Dispatch+0x20"),
        (StackKind.INTERRUPT, How.SCANNED, "nt!KiCallInterruptServiceRoutine+0x2ed?"),
        (StackKind.INTERRUPT, How.SCANNED, "nt!KiInterruptSubDispatchNoLockNoEtw+0x4e"),
        (OWN, How.SWITCHED, "nt!KiInterruptDispatchNoLockNoEtw+0x3c"),
        (OWN, How.INTERRUPTED, "faulty!Work+0x44"),
        (OWN, How.SCANNED, "nt!IopProcessWorkItem+0x135?"),
        *((OWN, How.SCANNED, f"{text}?") for text in OUTERMOST),
    ]


# A page fault on the thread's own stack, in a driver that calls the kernel, as bugchecks 0xA, 0x50 and 0xD1 name it by
# the address of its instruction.
RSP = STACK_BASE - 0x500
TRAP = RSP - 0x190
FAULT_START = TRAP - 0x148


def plant_fault(image: Image) -> None:
    write_words(image, FAULT_START, "nt!KiBugCheckDispatch+0x69")
    write_words(image, TRAP - 8, "nt!KiPageFault+0x469")
    trap_frame64(image, TRAP, "faulty!Work+0x2c", RSP)
    # Left over below and in the trap frame: what earlier calls pushed.
    write_words(image, FAULT_START + 0x40, "nt!IofCallDriver+0x55")
    write_words(image, TRAP + 0x38, "nt!IofCallDriver+0x55")
    write_words(image, RSP + 0x38, "faulty!Dispatch+0x60")
    write_words(image, RSP + 0x98, "nt!IopProcessWorkItem+0x135")
    worker_frames(image, RSP + 0x108)


FAULT_FRAMES = [
    (OWN, How.SAVED, "nt!KeBugCheckEx"),
    (OWN, How.SCANNED, "nt!KiBugCheckDispatch+0x69"),
    (OWN, How.SCANNED, "nt!IofCallDriver+0x55"),
    (OWN, How.SCANNED, "nt!KiPageFault+0x469"),
    (OWN, How.INTERRUPTED, "faulty!Work+0x2c"),
    (OWN, How.SCANNED, "faulty!Dispatch+0x60"),
    (OWN, How.SCANNED, "nt!IopProcessWorkItem+0x135"),
    *((OWN, How.SCANNED, text) for text in OUTERMOST),
]


@pytest.mark.parametrize(
    ("code", "parameters"),
    [
        pytest.param(0xD1, (0x28, 2, 0, "faulty!Work+0x2c"), id="parameter 4"),
        pytest.param(0x50, (0x28, 0, "faulty!Work+0x2c", 2), id="parameter 3"),
        pytest.param(0x1E, (0xC0000005, "faulty!Work+0x2c", 0, 0x28), id="parameter 2"),
        pytest.param(
            0xD1, (0x28, 2, 0, 0), id="none, by the trap frame below which the entry code's return address is"
        ),
    ],
)
def test_the_instruction_that_a_bugcheck_names(
    tmp_path: Path, symbols: Path, code: int, parameters: tuple[Address, Address, Address, Address]
) -> None:
    """The driver that caused the exception is a frame, and its callers, of which the minidump has no code either."""
    crash = Crash(code, parameters, "nt!KeBugCheckEx", FAULT_START, (FAULT_START, STACK_BASE))
    stack = walk(tmp_path, symbols, crash, plant_fault, minidump=True)
    certain = {"nt!KeBugCheckEx", *(["faulty!Work+0x2c"] if any(isinstance(each, str) for each in parameters) else [])}
    uncertain = {text for *_, text in FAULT_FRAMES} - certain
    assert unnamed(shown(stack.frames)) == unnamed(marked(FAULT_FRAMES, *uncertain))
    (interrupted,) = [each for each in stack.frames if each.how is How.INTERRUPTED]
    assert (interrupted.address, interrupted.found_at) == (RSP, TRAP + 0x168)


def test_a_fault_in_a_full_dump(tmp_path: Path, symbols: Path) -> None:
    """Where the code is in the image, what is left over of calls that led elsewhere is no frame."""
    crash = Crash(0xD1, (0x28, 2, 0, "faulty!Work+0x2c"), "nt!KeBugCheckEx", FAULT_START, (FAULT_START, STACK_BASE))
    code: dict[Address, Code] = {
        **CODE,
        "nt!IofCallDriver+0x50": (b"\xe8", Relative("nt!KeWaitForSingleObject")),
        "faulty!Dispatch+0x5b": (b"\xe8", Relative("faulty!Work")),
    }
    stack = walk(tmp_path, symbols, crash, plant_fault, code=code)
    expected = [frame for frame in FAULT_FRAMES if frame[2] != "nt!IofCallDriver+0x55"]
    assert shown(stack.frames) == marked(expected, "nt!IopProcessWorkItem+0x135", *OUTERMOST)


# An exception that a system service does not handle (0x3B): KiDispatchException makes a CONTEXT of it on the stack and
# searches handlers; KiSystemServiceHandler stops the machine. The driver's function (tests.unwind_images.FRAMED) has
# RBP as its frame, which only the CONTEXT has.
FRAME = STACK_BASE - 0x800
SERVICE_RSP = FRAME - 0x40
SERVICE_TRAP = SERVICE_RSP - 0x190
CONTEXT = SERVICE_TRAP - 0x900
SERVICE_START = CONTEXT - 0x408
ENTRY = STACK_BASE - 0x190
SERVICE = Driver(
    "faulty.sys",
    exports={"Framed": 0x1100, "Dispatch": 0x1800},
    code={0x1100: FRAMED[0x100:0x116]},
    unwind={(0x1100, 0x1180): FRAMED[0x1000:0x100C]},
)
SERVICE_FRAMES = [
    (OWN, How.SAVED, "nt!KeBugCheckEx"),
    (OWN, How.SCANNED, "nt!KiBugCheckDispatch+0x69"),
    (OWN, How.SCANNED, "nt!KiSystemServiceHandler+0x7c"),
    (OWN, How.SCANNED, "nt!RtlpExecuteHandlerForException+0xf"),
    (OWN, How.SCANNED, "nt!RtlDispatchException+0x434"),
    (OWN, How.SCANNED, "nt!KiDispatchException+0x1bd"),
    (OWN, How.SCANNED, "nt!KiExceptionDispatch+0x12c"),
    (OWN, How.SCANNED, "nt!KiPageFault+0x443"),
    (OWN, How.INTERRUPTED, "faulty!Framed+0x10"),
    (OWN, How.UNWOUND, "nt!NtReadFile+0x20"),
]


def plant_service(image: Image) -> None:
    for at, value in (
        (SERVICE_START, "nt!KiBugCheckDispatch+0x69"),
        (SERVICE_START + 0x140, "nt!KiSystemServiceHandler+0x7c"),
        (SERVICE_START + 0x180, "nt!RtlpExecuteHandlerForException+0xf"),
        (SERVICE_START + 0x1B0, "nt!RtlDispatchException+0x434"),
        (CONTEXT + 0x6D8, "nt!KiDispatchException+0x1bd"),
        (SERVICE_TRAP - 0x148, "nt!KiExceptionDispatch+0x12c"),
        (SERVICE_TRAP - 8, "nt!KiPageFault+0x443"),
        # Framed has allocated 40h bytes since; its RBP is 20h above the beginning of its frame of 200h bytes.
        (FRAME + 0x208, "nt!NtReadFile+0x20"),
    ):
        write_words(image, at, value)
    trap_frame64(image, SERVICE_TRAP, "faulty!Framed+0x10", SERVICE_RSP, Rbp=FRAME + 0x20)
    context64(image, CONTEXT, "faulty!Framed+0x10", SERVICE_RSP, Rbp=FRAME + 0x20)
    write_members(image, ENTRY, "_KTRAP_FRAME", {"Rip": 0x7FF612345678, "Rsp": 0x1234F0, **USER64})


@pytest.mark.parametrize("in_image", [True, False], ids=["the CONTEXT", "its trap frame, since the CONTEXT is gone"])
def test_the_context_that_a_bugcheck_names(tmp_path: Path, symbols: Path, *, in_image: bool) -> None:
    """0x3B: the frames of the handler, then the function that caused the exception, with all of its registers."""

    def plant(image: Image) -> None:
        plant_service(image)
        if not in_image:
            write_members(image, CONTEXT, "_CONTEXT", {"ContextFlags": 0, "Rip": 0})

    parameters = (0xC0000005, "faulty!Framed+0x10", CONTEXT, 0)
    crash = Crash(0x3B, parameters, "nt!KeBugCheckEx", SERVICE_START, (SERVICE_START, STACK_BASE))
    code: dict[Address, Code] = {
        **CODE,
        "nt!KiSystemServiceHandler+0x77": (b"\xe8", Relative("nt!KiBugCheckDispatch")),
        "nt!RtlpExecuteHandlerForException+0xd": CALL,
        "nt!RtlDispatchException+0x42f": (b"\xe8", Relative("nt!RtlpExecuteHandlerForException")),
        "nt!KiDispatchException+0x1b8": (b"\xe8", Relative("nt!RtlDispatchException")),
        "nt!KiExceptionDispatch+0x127": (b"\xe8", Relative("nt!KiDispatchException")),
        "nt!KiPageFault+0x43e": (b"\xe8", Relative("nt!KiExceptionDispatch")),
        "nt!NtReadFile+0x1b": (b"\xe8", Relative("faulty!Framed")),
    }
    thread = {"system": False, "members": {"Tcb.TrapFrame": ENTRY}}
    drivers = (HAL, SERVICE)
    stack = walk(tmp_path, symbols, crash, plant, code=code, thread=thread, drivers=drivers)
    frames = shown(stack.frames)
    assert frames == marked(SERVICE_FRAMES, "nt!RtlpExecuteHandlerForException+0xf")
    assert stack.frames[8].found_at == SERVICE_TRAP + 0x168


def test_a_context_elsewhere(tmp_path: Path, symbols: Path) -> None:
    """0x7E in a minidump: its header has the CONTEXT that parameter 4 names, which may as well lie in the file."""
    crash = Crash(
        0x7E,
        (0xC0000005, "faulty!Framed+0x10", CONTEXT - 0x2000, CONTEXT - 0x1000),
        "nt!KeBugCheckEx",
        # The header's context leads to no stack that the dump has.
        PROCESSOR_BASE + 0x100000,
        (SERVICE_RSP, STACK_BASE),
        ((CONTEXT - 0x1000, 0x4D0),),
    )

    def plant(image: Image) -> None:
        context64(image, CONTEXT - 0x1000, "faulty!Framed+0x10", SERVICE_RSP, Rbp=FRAME + 0x20)
        write_words(image, SERVICE_RSP + 0x48, "nt!IopProcessWorkItem+0x135")

    stack = walk(tmp_path, symbols, crash, plant, minidump=True, drivers=(HAL, SERVICE))
    assert [each.code.text for each in stack.frames] == ["faulty+0x1110", "nt!IopProcessWorkItem+0x135"]
    assert stack.start == "the CONTEXT that parameter 4 of bugcheck 0x7e names"


def test_the_trap_frame_that_a_bugcheck_names(tmp_path: Path, symbols: Path) -> None:
    """0x139: the routine that found a list corrupt, by the trap frame of its fast fail."""

    def plant(image: Image) -> None:
        write_words(image, FAULT_START, "nt!KiBugCheckDispatch+0x69")
        # KiFastFailDispatch has the trap frame farther out than its own stack pointer.
        write_words(image, TRAP - 0x10, "nt!KiRaiseSecurityCheckFailure+0x320")
        trap_frame64(image, TRAP, "nt!IofCompleteRequest+0x60", RSP)
        write_words(image, RSP + 0x38, "faulty!Dispatch+0x60")

    crash = Crash(0x139, (3, TRAP, TRAP - 0x60, 0), "nt!KeBugCheckEx", FAULT_START, (FAULT_START, STACK_BASE))
    code: dict[Address, Code] = {
        "nt!KiBugCheckDispatch+0x64": (b"\xe8", Relative("nt!KeBugCheckEx")),
        "faulty!Dispatch+0x5b": (b"\xe8", Relative("nt!IofCompleteRequest")),
    }
    stack = walk(tmp_path, symbols, crash, plant, code=code)
    assert shown(stack.frames) == [
        (OWN, How.SAVED, "nt!KeBugCheckEx"),
        (OWN, How.SCANNED, "nt!KiBugCheckDispatch+0x69"),
        (OWN, How.INTERRUPTED, "nt!IofCompleteRequest+0x60"),
        (OWN, How.SCANNED, "faulty!Dispatch+0x60"),
    ]


# A driver calls KeExpandKernelStackAndCallout: the new stack has the old one in its structure at InitialStack, and
# where to go on 28h and 10h bytes below that.
EXPANDED_BASE = 0xFFFFF58C20040000
CONTROL = EXPANDED_BASE - 0x30
CALLOUT_RSP = CONTROL - 0x90
OLD_RSP = STACK_BASE - 0x400


def plant_control(image: Image) -> None:
    previous = {
        "Previous.StackBase": STACK_BASE,
        "Previous.StackLimit": STACK_BASE - 0x6000,
        "Previous.KernelStack": OLD_RSP,
        "Previous.InitialStack": STACK_BASE,
    }
    write_members(image, CONTROL, "_KSTACK_CONTROL", {"StackBase": EXPANDED_BASE, **previous})


def plant_expanded(image: Image) -> None:
    plant_control(image)
    write_words(image, CALLOUT_RSP, "faulty!Work+0x20")
    write_words(image, CONTROL - 0x58, "nt!KxSwitchKernelStackCallout+0x2e")
    write_words(image, CONTROL - 0x28, "nt!KiSwitchKernelStackContinue", 0, 0, OLD_RSP, 0)
    write_words(image, OLD_RSP + 0x18, "nt!KiExpandKernelStackAndCalloutOnStackSegment+0x18e")
    write_words(image, OLD_RSP + 0xB8, "faulty!Dispatch+0x60")


def test_a_crash_on_an_expanded_stack(tmp_path: Path, symbols: Path) -> None:
    """What a stack has grown out of is walked too: the routine on the new one, then the caller on the old one."""
    members = {"Tcb.InitialStack": CONTROL, "Tcb.StackLimit": EXPANDED_BASE - 0x3000}
    code: dict[Address, Code] = {
        "faulty!Work+0x1b": (b"\xe8", Relative("nt!KeBugCheckEx")),
        "nt!KxSwitchKernelStackCallout+0x2c": CALL,
        "nt!KiExpandKernelStackAndCalloutOnStackSegment+0x189": (b"\xe8", Relative("nt!KiSwitchKernelStackContinue")),
        "faulty!Dispatch+0x5b": (b"\xe8", Relative("nt!KiExpandKernelStackAndCalloutOnStackSegment")),
    }
    crash = Crash(0xE2, (0, 0, 0, 0), "nt!KeBugCheckEx", CALLOUT_RSP, (CALLOUT_RSP, EXPANDED_BASE))
    thread = {"stack_base": EXPANDED_BASE, "members": members}
    stack = walk(tmp_path, symbols, crash, plant_expanded, code=code, thread=thread)
    assert shown(stack.frames) == [
        (StackKind.EXPANDED, How.SAVED, "nt!KeBugCheckEx"),
        (StackKind.EXPANDED, How.SCANNED, "faulty!Work+0x20"),
        (StackKind.EXPANDED, How.SCANNED, "nt!KxSwitchKernelStackCallout+0x2e?"),
        (OWN, How.SWITCHED, "nt!KiSwitchKernelStackContinue"),
        (OWN, How.SCANNED, "nt!KiExpandKernelStackAndCalloutOnStackSegment+0x18e?"),
        (OWN, How.SCANNED, "faulty!Dispatch+0x60"),
    ]


# win32k calls user mode, which calls the kernel again: KiCallUserMode saves its caller's registers in a
# _KEXCEPTION_FRAME on the stack that it leaves, and its address in the structure at the new InitialStack.
EXCEPTION_FRAME = STACK_BASE - 0x600
FIRST_ENTRY, SECOND_ENTRY = STACK_BASE - 0x190, CONTROL - 0x190


def test_a_crash_within_a_call_of_user_mode(tmp_path: Path, symbols: Path) -> None:
    """Beyond the entry from user mode come the frames of the call of user mode that it happened in."""

    def plant(image: Image) -> None:
        plant_control(image)
        write_members(image, CONTROL, "_KSTACK_CONTROL", {"Previous.KernelStack": EXCEPTION_FRAME})
        saved = {"TrapFrame": FIRST_ENTRY, "Return": "nt!KeUserModeCallback+0x40", "Rbp": STACK_BASE - 0x300}
        write_members(image, EXCEPTION_FRAME, "_KEXCEPTION_FRAME", saved)
        for entry in (FIRST_ENTRY, SECOND_ENTRY):
            write_members(image, entry, "_KTRAP_FRAME", {"Rip": 0x7FF612345678, "Rsp": 0x1234F0, **USER64})
        write_words(image, SECOND_ENTRY - 0x88, "faulty!Work+0x20")
        write_words(image, EXCEPTION_FRAME + 0x140 + 0x68, "faulty!Dispatch+0x60")

    members = {
        "Tcb.InitialStack": CONTROL,
        "Tcb.StackLimit": EXPANDED_BASE - 0x3000,
        "Tcb.TrapFrame": SECOND_ENTRY,
    }
    code: dict[Address, Code] = {
        "faulty!Work+0x1b": (b"\xe8", Relative("nt!KeBugCheckEx")),
        "nt!KeUserModeCallback+0x3e": CALL,
        "faulty!Dispatch+0x5b": (b"\xe8", Relative("nt!KeUserModeCallback")),
    }
    crash = Crash(0xE2, (0, 0, 0, 0), "nt!KeBugCheckEx", SECOND_ENTRY - 0x88, (SECOND_ENTRY - 0x88, EXPANDED_BASE))
    thread = {"stack_base": EXPANDED_BASE, "members": members, "system": False}
    stack = walk(tmp_path, symbols, crash, plant, code=code, thread=thread)
    assert shown(stack.frames) == [
        (StackKind.EXPANDED, How.SAVED, "nt!KeBugCheckEx"),
        (StackKind.EXPANDED, How.SCANNED, "faulty!Work+0x20"),
        (OWN, How.CALLOUT, "nt!KeUserModeCallback+0x40"),
        (OWN, How.SCANNED, "faulty!Dispatch+0x60"),
    ]
    assert stack.frames[2].found_at == EXCEPTION_FRAME + 0x138


def test_an_exception_that_another_stack_handled(tmp_path: Path, symbols: Path) -> None:
    """The frames at the exception are shown though nothing leads to them from the stack that the machine stopped on."""

    def plant(image: Image) -> None:
        write_words(image, PROCESSOR_BASE - 0x188, "nt!KiBugCheckDispatch+0x69")
        trap_frame64(image, TRAP, "nt!IofCompleteRequest+0x60", RSP)
        write_words(image, RSP + 0x38, "faulty!Dispatch+0x60")

    crash = Crash(0x139, (3, TRAP, 0, 0), "nt!KeBugCheckEx", PROCESSOR_BASE - 0x188, (0, 0))
    code: dict[Address, Code] = {**CODE, "faulty!Dispatch+0x5b": (b"\xe8", Relative("nt!IofCompleteRequest"))}
    stack = walk(tmp_path, symbols, crash, plant, code=code)
    assert shown(stack.frames) == [
        (StackKind.OTHER, How.SAVED, "nt!KeBugCheckEx"),
        (StackKind.OTHER, How.SCANNED, "nt!KiBugCheckDispatch+0x69"),
        (OWN, How.INTERRUPTED, "nt!IofCompleteRequest+0x60"),
        (OWN, How.SCANNED, "faulty!Dispatch+0x60"),
    ]


def test_a_thread_whose_stack_is_full(tmp_path: Path, symbols: Path) -> None:
    """0x7F: the double fault is handled on a stack of the TSS; the thread's stack pointer is below its StackLimit."""
    limit, trap = STACK_BASE - 0x6000, PROCESSOR_BASE - 0x190
    start = trap - 0x148

    def plant(image: Image) -> None:
        write_words(image, start, "nt!KiBugCheckDispatch+0x69")
        write_words(image, trap - 8, "nt!KiPageFault+0x469")
        trap_frame64(image, trap, "faulty!Work+0x2c", limit - 0x20)
        write_words(image, limit + 0x38, "faulty!Dispatch+0x60")

    code: dict[Address, Code] = {**CODE, "faulty!Dispatch+0x5b": (b"\xe8", Relative("faulty!Work"))}
    crash = Crash(0x7F, (8, 0, 0, 0), "nt!KeBugCheckEx", start, (start, PROCESSOR_BASE))
    stack = walk(tmp_path, symbols, crash, plant, code=code, thread={"stack_pages": 6})
    assert shown(stack.frames) == [
        (StackKind.OTHER, How.SAVED, "nt!KeBugCheckEx"),
        (StackKind.OTHER, How.SCANNED, "nt!KiBugCheckDispatch+0x69"),
        (StackKind.OTHER, How.SCANNED, "nt!KiPageFault+0x469"),
        (OWN, How.INTERRUPTED, "faulty!Work+0x2c"),
        (OWN, How.SCANNED, "faulty!Dispatch+0x60"),
    ]


def test_a_stack_of_unknown_use(tmp_path: Path, symbols: Path) -> None:
    """The stack that the triage header gives is walked though the thread and the processor name another."""

    def plant(image: Image) -> None:
        plant_dpc(image)
        image.memory.write(image.address_of["kprcb:0"], "_KPRCB", "DpcStack", 0)

    stack = walk(tmp_path, symbols, DPC_CRASH, plant, minidump=True)
    expected = [(StackKind.OTHER if kind is DPC else kind, how, text) for kind, how, text in DPC_FRAMES[:8]]
    scanned = [text for _, how, text in expected[:7] if how is How.SCANNED]
    assert unnamed(shown(stack.frames)) == unnamed(marked(expected, *scanned))
    assert stack.start.endswith(", on a stack that is not known to be the thread's or its processor's")
