"""Crashes with the stacks that Windows leaves: as full dumps and as minidumps of the same machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.dumps.minidump_layer import MinidumpLayer
from volatility3.plugins.windows.apcaudit.unwind import Frame, How, Stack, StackKind

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Address, Scene
from tests import volatility
from tests.minidump_builder import DriverEntry, MinidumpScene, write_minidump
from tests.stack_image import Change

# Offsets of CONTEXT in DUMP_HEADER and DUMP_HEADER64, and its size there (Dump.h; Volatility's crash.json).
_CONTEXT = {False: (0x320, 1200), True: (0x348, 3000)}
_VARIABLES = ("PsLoadedModuleList", "PsActiveProcessHead", "PspCidTable", "KiProcessorBlock", "MmUnloadedDrivers")


@dataclass(frozen=True)
class Dumped:
    """What a minidump holds beside the crashed thread, its process and its processor.

    `stack` is the range that the header's TopOfStack begins, `ranges` are further memory as (address, size).
    """

    stack: tuple[int, int]
    ranges: tuple[tuple[Address, int], ...] = ()
    triage: Mapping[str, int] = field(default_factory=dict)


def audit_crash(
    scene: Scene, folder: Path, symbols: Path, *changes: Change, minidump: Dumped | None = None
) -> tuple[Audit, Image]:
    """Audit a scene's full dump, or a minidump of it; its kernel is that of a symbol file."""
    image = build(scene, load_kernel(symbols))
    for change in changes:
        change(image)
    path = folder / "crash.dmp"
    if minidump is None:
        image.write_dump(path)
    else:
        path.write_bytes(write_minidump_of(image, minidump))
    plugin = volatility.construct(
        path,
        "windows.apcaudit.ApcAudit",
        cache=volatility.CACHE,
        symbols=(symbols.parents[2],),
        kernel=image.kernel,
        dump_layer=None if minidump is None else MinidumpLayer,
    )
    return Audit(plugin.context, plugin.config["kernel"]), image


def write_minidump_of(image: Image, dumped: Dumped) -> bytes:
    """Write a minidump of a scene's crash, whose context and bugcheck are those of its full dump."""
    kernel, scene, memory = image.kernel, image.scene, image.memory
    bugcheck, is_64bit, size = scene.bugcheck, kernel.is_64bit, image.memory.pointer_size
    assert bugcheck is not None
    prcb, thread = image.address_of["kprcb:0"], image.address_of[f"thread:{scene.crashing_thread}"]
    process = memory.read(thread, "_ETHREAD", "Tcb.ApcState.Process")
    sizes = {name: memory.size(name) for name in ("_KPRCB", "_ETHREAD", "_EPROCESS")}
    modules = [("ntoskrnl.exe", kernel.base, kernel.image_size)]
    modules += [(each.name, image.address_of[f"driver:{each.name}"], each.size) for each in scene.drivers]
    ranges = {image.resolve(address): count for address, count in dumped.ranges}
    blocks = {address: image.read(address, count) for address, count in ranges.items()}
    mini = MinidumpScene(
        is_64bit=is_64bit,
        kern_base=kernel.base,
        memory={**blocks, kernel.address("KiProcessorBlock"): prcb.to_bytes(size, "little")},
        drivers=tuple(
            DriverEntry(f"\\SystemRoot\\System32\\drivers\\{name}", base, count) for name, base, count in modules
        ),
        prcb=image.read(prcb, sizes["_KPRCB"]),
        thread=image.read(thread, sizes["_ETHREAD"]),
        process=image.read(process, sizes["_EPROCESS"]),
        stack=(dumped.stack[0], image.read(dumped.stack[0], dumped.stack[1] - dumped.stack[0])),
        debugger_data={
            **{name: kernel.address(name) for name in _VARIABLES},
            "OffsetPrcbCurrentThread": memory.offset("_KPRCB", "CurrentThread"),
            "OffsetPrcbNumber": memory.offset("_KPRCB", "Number"),
            "OffsetKThreadApcProcess": memory.offset("_KTHREAD", "ApcState") + memory.offset("_KAPC_STATE", "Process"),
            "SizePrcb": sizes["_KPRCB"],
            "SizeEThread": sizes["_ETHREAD"],
            "SizeEProcess": sizes["_EPROCESS"],
        },
        header={
            "DirectoryTableBase": 0x1AD000,
            "BugCheckCode": bugcheck.code,
            **{f"BugCheckParameter{at}": image.resolve(each) for at, each in enumerate(bugcheck.parameters, 1)},
            "KdDebuggerDataBlock": kernel.address("KdDebuggerDataBlock"),
            **({} if is_64bit else {"PaeEnabled": int(kernel.is_pae)}),
        },
        triage=dumped.triage,
    )
    data = bytearray(write_minidump(mini))
    at, length = _CONTEXT[is_64bit]
    data[at : at + length] = image.dump()[at : at + length]
    return bytes(data)


def crash_stack(audit: Audit, tid: int) -> Stack:
    """Give the stack of a thread by its TID."""
    selection = Selection(tids=frozenset({tid}), clean_too=True, stacks=True)
    (stack,) = [each.stack for each in audit.run(selection)]
    assert stack is not None
    return stack


def shown(frames: Iterable[Frame]) -> list[tuple[StackKind, How, str]]:
    """Give of each frame its stack, how it was found, and its text with the mark."""
    return [(each.stack, each.how, str(each)) for each in frames]


def write_words(image: Image, address: int, *values: Address) -> None:
    """Write pointers at an address, which is mapped where it is not yet."""
    size = image.memory.pointer_size
    image.memory.space.map(address, len(values) * size)
    for position, value in enumerate(values):
        image.memory.write_pointer(address + position * size, image.resolve(value))


def write_members(image: Image, address: int, structure: str, members: Mapping[str, Address]) -> None:
    """Write members of a structure."""
    image.memory.space.map(address, image.memory.size(structure))
    for name, value in members.items():
        image.memory.write(address, structure, name, image.resolve(value))


# Selectors of x64's kernel and user mode (ReactOS, sdk/include/ndk/amd64/ketypes.h), and flags with interrupts enabled.
KERNEL64 = {"SegCs": 0x10, "SegSs": 0x18, "EFlags": 0x10246}
USER64 = {"SegCs": 0x33, "SegSs": 0x2B, "EFlags": 0x246}


def trap_frame64(image: Image, address: int, rip: Address, rsp: int, **members: Address) -> None:
    """Write an x64 _KTRAP_FRAME of kernel mode."""
    write_members(image, address, "_KTRAP_FRAME", {"Rip": rip, "Rsp": rsp, **KERNEL64, **members})


def context64(image: Image, address: int, rip: Address, rsp: int, **members: Address) -> None:
    """Write an x64 CONTEXT with CONTEXT_FULL (winnt.h)."""
    flags = {"ContextFlags": 0x10000B, "SegCs": 0x10, "SegSs": 0x18, "EFlags": 0x10246}
    write_members(image, address, "_CONTEXT", {"Rip": rip, "Rsp": rsp, **flags, **members})
