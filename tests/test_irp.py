"""Completed IRPs behind APCs: what makes one believed, what contradicts it, and who is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.origin.irp import flag_names, function_name

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import OWN, Kernel, load_kernel
from apcaudit.synthetic.scene import Apc, IoStackLocation, Irp, StackWrite, Thread
from apcaudit.synthetic.scenes import seed
from tests.origin_image import built, origins, place

READ = 3
NTFS_READ = (IoStackLocation("disk.sys", READ), IoStackLocation("Ntfs.sys", READ))


def _irp(name: str, member: str, value: int) -> Callable[[Image], None]:
    """Overwrite a member of an IRP."""
    return lambda image: _write(image, image.address_of[f"irp:{name}"], "_IRP", member, value)


def _write(image: Image, address: int, structure: str, member: str, value: int) -> None:
    image.memory.write(address, structure, member, value)


def _break_list(image: Image) -> None:
    """Make the thread's IrpList unreadable beyond its head."""
    head = image.address_of["thread:list-unreadable"] + image.memory.offset("_ETHREAD", "IrpList")
    image.memory.write_pointer(head, place(image.kernel, 0x300))


def _no_driver(image: Image) -> None:
    """Overwrite the Type of the device that the top stack location names."""
    irp = image.address_of["irp:no-device"]
    top = irp + image.memory.size("_IRP")
    image.memory.write(top, "_IO_STACK_LOCATION", "DeviceObject", irp)


@dataclass(frozen=True)
class Case:
    """An IRP, the phrase that its APC's origin must be, and facts that must or must not be among the evidence."""

    name: str
    irp: Irp | None
    text: str
    evidence: tuple[str, ...] = ()
    inferred: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    frames: tuple[StackWrite, ...] = ()
    routine: str = "nt!IopCompleteRequest"
    queue: str = "kernel_apcs"
    after: Callable[[Image], None] | None = None


CASES = (
    Case(
        "threaded",
        Irp(NTFS_READ, flags=0x900, file_name="\\Windows\\notepad.exe"),
        "completion of IRP {irp:#x}, IRP_MJ_READ to \\Driver\\Ntfs",
        (
            "stack location 1 of 2 is IRP_MJ_READ to \\Driver\\disk (Harddisk0\\DR0)",
            "stack location 2 of 2 is IRP_MJ_READ to \\Driver\\Ntfs",
            "SystemArgument1 is the FileObject {file:#x} \\Windows\\notepad.exe on \\Driver\\Ntfs",
            "its Flags are READ_OPERATION+DEFER_IO_COMPLETION",
            "its pool tag is 'Irp '",
            "it is in the thread's IrpList",
        ),
        ("a threaded IRP: the thread itself made the request",),
        ("UserIosb", "ApcEnvironment"),
    ),
    Case(
        "not-threaded",
        Irp(NTFS_READ, in_irp_list=False),
        "completion of IRP {irp:#x}, IRP_MJ_READ to \\Driver\\Ntfs",
        ("it is not in the thread's IrpList",),
        ("an IRP of IoAllocateIrp or IoBuildAsynchronousFsdRequest that nobody stopped completing",),
    ),
    Case(
        "list-unreadable",
        Irp(NTFS_READ),
        "completion of IRP {irp:#x}, IRP_MJ_READ to \\Driver\\Ntfs",
        ("whether it is in the thread's IrpList is unknown",),
        after=_break_list,
    ),
    # The status block lies on the stack; above it first nt, a pointer that no call precedes, then a return address.
    Case(
        "synchronous",
        Irp(NTFS_READ, user_iosb="stack-0x280", user_event="stack-0x260"),
        "completion of IRP {irp:#x}, IRP_MJ_READ to \\Driver\\Ntfs, issued by avhook?",
        ("UserIosb {iosb:#x} lies on the thread's kernel stack",),
        (
            "a synchronous request, made by a routine that is still on this stack",
            "avhook issued the request: the nearest {caller} lies above UserIosb",
        ),
        frames=(StackWrite("stack-0x240", ("nt!KiSwapThread+0x9c", "fltMgr!FltSendMessage", "avhook+0x2100")),),
    ),
    # A call that ends a byte too early is none: `call [eax]; nop`.
    Case(
        "synchronous-early-call",
        Irp(NTFS_READ, user_event="stack-0x260"),
        "completion of IRP {irp:#x}, IRP_MJ_READ to \\Driver\\Ntfs, issued by avhook?",
        frames=(StackWrite("stack-0x240", ("nt!KiSwapThread+0x9c", "ksi+0x1103", "avhook+0x2100")),),
    ),
    # Without a return address that a call precedes, the nearest pointer is all there is.
    Case(
        "synchronous-pointer",
        Irp(NTFS_READ, user_event="stack-0x260"),
        "completion of IRP {irp:#x}, IRP_MJ_READ to \\Driver\\Ntfs, issued by fltMgr?",
        frames=(StackWrite("stack-0x240", ("nt!KiSwapThread+0x9c", "fltMgr!FltSendMessage")),),
    ),
    # What lies below the status block belongs to routines called since.
    Case(
        "stack-below",
        Irp(NTFS_READ, user_iosb="stack-0x200"),
        "completion of IRP {irp:#x}, IRP_MJ_READ to \\Driver\\Ntfs",
        ("UserIosb {iosb:#x} lies on the thread's kernel stack",),
        frames=(StackWrite("stack-0x240", ("avhook+0x2100",)),),
    ),
    Case(
        "highest-completion-routine",
        Irp((IoStackLocation("Ntfs.sys", READ, completion_routine="fltMgr!FltRegisterFilter"),)),
        "completion of IRP {irp:#x}, IRP_MJ_READ to \\Driver\\Ntfs, issued by fltMgr?",
        ("stack location 1 of 1 is IRP_MJ_READ to \\Driver\\Ntfs, CompletionRoutine fltMgr!FltRegisterFilter",),
    ),
    # Set by Ntfs itself, for what it sent on to disk: it says nothing of who asked Ntfs.
    Case(
        "lower-completion-routine",
        Irp((IoStackLocation("disk.sys", READ, completion_routine="fltMgr!FltRegisterFilter"), NTFS_READ[1])),
        "completion of IRP {irp:#x}, IRP_MJ_READ to \\Driver\\Ntfs",
    ),
    Case(
        "paging-write",
        Irp((IoStackLocation("Ntfs.sys", 4),), flags=0x3, in_irp_list=False),
        "completion of paging write IRP {irp:#x}, IRP_MJ_WRITE to \\Driver\\Ntfs",
        ("its Flags are NOCACHE+PAGING_IO",),
        absent=("IrpList",),
        routine="nt!IopCompletePageWrite",
    ),
    Case(
        "user-completion",
        Irp(NTFS_READ, in_irp_list=False, requestor_mode=1),
        "user completion routine of IRP {irp:#x}, IRP_MJ_READ to \\Driver\\Ntfs",
        absent=("IrpList", "FileObject"),
        routine="nt!IopUserCompletion",
        queue="user_apcs",
    ),
    Case(
        "not-completed",
        Irp(NTFS_READ, current_location=2),
        "completion of IRP {irp:#x}? (CurrentLocation is 2, not 4), IRP_MJ_READ to \\Driver\\Ntfs?",
        ("its Type is 6, but CurrentLocation is 2, not 4",),
    ),
    Case(
        "too-small",
        Irp(NTFS_READ),
        "completion of IRP {irp:#x}? (Size is 0x40, less than {least:#x} for 2 stack locations),"
        " IRP_MJ_READ to \\Driver\\Ntfs?",
        after=_irp("too-small", "Size", 0x40),
    ),
    Case(
        "stack-count",
        Irp(NTFS_READ),
        "completion of IRP {irp:#x}? (StackCount is -1)",
        absent=("stack location",),
        after=_irp("stack-count", "StackCount", 0xFF),
    ),
    Case(
        "type",
        Irp(NTFS_READ),
        "IRP {irp:#x}? (Type is 5, not 6)",
        ("its Type is 5, not 6",),
        ("who asked for it cannot be told",),
        ("stack location",),
        after=_irp("type", "Type", 5),
    ),
    Case(
        "no-device",
        Irp((NTFS_READ[1],)),
        "completion of IRP {irp:#x}, IRP_MJ_READ to device {irp:#x}?",
        after=_no_driver,
    ),
    Case("no-irp", None, "IRP {irp:#x}? (Type is 0, not 6)", absent=("stack location",)),
    Case(
        "environment",
        Irp(NTFS_READ),
        "completion of IRP {irp:#x}, IRP_MJ_READ to \\Driver\\Ntfs",
        ("its ApcEnvironment is 1, the KAPC's ApcStateIndex 0",),
        ("the request was made while the thread was attached",),
        after=_irp("environment", "ApcEnvironment", 1),
    ),
)


def _thread(kernel: Kernel, tid: int, case: Case) -> Thread:
    apc = Apc(case.routine, rundown_routine="nt!IopAbortRequest", irp=case.irp, label=case.name)
    if case.irp is None:
        apc = replace(apc, address=place(kernel, tid), pool_tag=None)
    return Thread(tid, state="Running", frames=case.frames, **{case.queue: (apc,)})


def _name_threads(image: Image) -> None:
    for number, case in enumerate(CASES):
        image.address_of[f"thread:{case.name}"] = image.address_of[100 + 4 * number]


@pytest.fixture(scope="module", params=OWN)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One thread a case, on one kernel: the image, and the origins that the audit gives."""
    kernel = load_kernel(request.param)
    threads = tuple(_thread(kernel, 100 + 4 * number, case) for number, case in enumerate(CASES))
    changes = tuple(case.after for case in CASES if case.after is not None)
    image = built(kernel, threads, (_name_threads, *changes))
    return {"image": image, "origins": origins(image, tmp_path_factory.mktemp(request.param))}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_irp(found: dict[str, Any], case: Case) -> None:
    """An IRP that validates is named without doubt; a deviation is said, and what is inferred is marked."""
    image, memory = found["image"], found["image"].memory
    thread = image.address_of[f"thread:{case.name}"]
    base = memory.read(thread, "_ETHREAD", "Tcb.StackBase") & memory.layout.pointer_mask
    iosb = case.irp.user_iosb if case.irp is not None else 0
    values = {
        "irp": image.address_of[f"apc:{case.name}"] - memory.offset("_IRP", "Tail.Apc"),
        "file": image.address_of.get("file:\\Windows\\notepad.exe"),
        "iosb": base + int(iosb.removeprefix("stack"), 0) if isinstance(iosb, str) else iosb,
        "caller": f"return address avhook!AvSend+0x80 at {base - 0x240 + 2 * memory.pointer_size:#x}",
        "least": memory.size("_IRP") + 2 * memory.size("_IO_STACK_LOCATION"),
    }
    origin = found["origins"][int(memory.read(thread, "_ETHREAD", "Cid.UniqueThread"))]
    assert origin.text == case.text.format(**values)
    assert {fact.format(**values) for fact in case.evidence} <= set(origin.evidence)
    assert {fact.format(**values) for fact in case.inferred} <= set(origin.inferred)
    assert not [fact for fact in origin.evidence for part in case.absent if part in fact]


def test_unreadable_stack_location(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stack locations on a page that is not in memory are counted as unread, and the IRP is still named."""
    kernel = load_kernel("10-19041-x64")
    # The IRP ends with its page; the locations that StackCount claims beyond lie on the next, which nothing maps.
    page_end = place(kernel, 1) + 0x800
    size = kernel.layout.size("_IRP") + kernel.layout.size("_IO_STACK_LOCATION")
    apc = Apc(
        irp=Irp((NTFS_READ[1],), current_location=4),
        address=page_end - size + kernel.layout.offset("_IRP", "Tail.Apc"),
        label="edge",
    )

    def grow(image: Image) -> None:
        _irp("edge", "StackCount", 2)(image)
        _irp("edge", "Size", 0x1000)(image)

    image = built(kernel, (Thread(200, state="Running", kernel_apcs=(apc,)),), (grow,))
    origin = origins(image, tmp_path_factory.mktemp("edge"))[200]
    assert origin is not None
    assert "1 of 2 stack locations could not be read" in origin.evidence
    assert origin.text.endswith("IRP_MJ_READ to \\Driver\\Ntfs")


def test_seed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The question that the case left open: the completion of which IRP, of which driver, queued while attached."""
    image = build(seed.scene(), load_kernel("xp-sp3-x86"))
    origin = origins(image, tmp_path_factory.mktemp("seed"))[340]
    assert origin is not None
    assert origin.text.startswith("completion of IRP 0x8a3f6208, IRP_MJ_DEVICE_CONTROL to \\Driver\\avdisk")
    assert origin.text.endswith(", queued while attached to BAVSvc.exe (1264)?")
    assert "it is in the thread's IrpList" in origin.evidence
    assert "the request was made while the thread was attached" in origin.inferred


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (0x0, "none"),
        (0x43, "NOCACHE+PAGING_IO+SYNCHRONOUS_PAGING_IO"),
        (0x70, "BUFFERED_IO+DEALLOCATE_BUFFER+INPUT_OPERATION"),
        (0x20000004, "SYNCHRONOUS_API+0x20000000"),
    ],
)
def test_flag_names(flags: int, names: str) -> None:
    """Bits are named as wdm.h does; 0x40 means two things, by whether it is paging I/O."""
    assert flag_names(flags) == names


@pytest.mark.parametrize(
    ("major", "name"),
    [(0, "IRP_MJ_CREATE"), (0xE, "IRP_MJ_DEVICE_CONTROL"), (0x1B, "IRP_MJ_PNP"), (0x1C, "IRP_MJ_0x1c")],
)
def test_function_name(major: int, name: str) -> None:
    """Major function codes are named as wdm.h does; beyond the last they stay numbers."""
    assert function_name(major) == name
