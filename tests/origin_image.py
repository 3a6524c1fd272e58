"""Builds scenes and gives what the audit says of the origin of each thread's first APC."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.model import Apc, Origin

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import Kernel
from apcaudit.synthetic.scene import Driver, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL, NTFS
from tests import volatility

#: A call to somewhere ends right before 0x2100, none before 0x2200.
AVHOOK = Driver(
    "avhook.sys",
    exports={"AvApcKernelRoutine": 0x1000, "AvApcNormalRoutine": 0x1100, "AvSend": 0x2080, "AvTable": 0x2180},
    code={0x2080: b"\x90" * 0x7B + b"\xe8\x01\x02\x03\x04" + b"\x90" * 0x100},
    devices=("AvHook",),
)
#: System Informer's kernel library, and its driver. A call ends one byte before 0x1103, none right before it.
KSI = Driver(
    "ksi.dll",
    exports={"KsiInitializeApc": 0x1000},
    code={0x10F8: b"\x90" * 8 + b"\xff\x10\x90"},
    driver_object=False,
)
INFORMER = Driver("SystemInformer.sys", exports={"KphCapture": 0x1000})

After = Callable[[Image], None]


def place(kernel: Kernel, number: int) -> int:
    """Give an address of our choice that nothing else uses, in the middle of a page of its own."""
    return (0xFFFFFA8010000000 if kernel.is_64bit else 0x89000000) + number * 0x4000 + 0x800


def built(kernel: Kernel, threads: tuple[Thread, ...], after: tuple[After, ...] = ()) -> Image:
    """Build a machine with these threads in System, and a process BAVSvc.exe to attach to."""
    processes = (Process("System", 4, threads), Process("BAVSvc.exe", 1264, (Thread(1268, start=0x401000),)))
    drivers = (HAL, FLTMGR, NTFS, DISK, AVHOOK, KSI, INFORMER)
    image = build(Scene("origin", "One producer of APCs a thread", kernel.name, processes, drivers), kernel)
    for change in after:
        change(image)
    return image


def give_handle(image: Image, process: int, header: int) -> None:
    """Give a process a handle to an object, by the address of its header."""
    memory = image.memory
    table = memory.read(process, "_EPROCESS", "ObjectTable")
    leaf = memory.read(table, "_HANDLE_TABLE", "TableCode") & ~7
    entry = leaf + 3 * memory.size("_HANDLE_TABLE_ENTRY")
    if memory.has("_HANDLE_TABLE_ENTRY", "ObjectPointerBits"):
        # The zeros of its alignment, and the copies of bit 47, are left out.
        bits = header >> 4 & (1 << 44) - 1 if image.kernel.is_64bit else header >> 3 & (1 << 29) - 1
        memory.write(entry, "_HANDLE_TABLE_ENTRY", "ObjectPointerBits", bits)
    else:
        memory.write(entry, "_HANDLE_TABLE_ENTRY", "Object", header | 1)


def origins(
    image: Image, folder: Path, symbols: tuple[Path, ...] = (), of: Callable[[Apc], bool] = lambda _: True
) -> dict[int, Origin | None]:
    """Audit an image; give the origin of each thread's first APC, of those that are asked for, by TID."""
    path = folder / "origin.dmp"
    image.write_dump(path)
    plugin = volatility.construct(
        path,
        "windows.apcaudit.ApcAudit",
        cache=volatility.CACHE,
        symbols=(*symbols, volatility.REPOSITORY_SYMBOLS),
        kernel=image.kernel,
    )
    audit = Audit(plugin.context, plugin.config["kernel"])
    found: dict[int, Origin | None] = {}
    for each in audit.run(Selection()):
        asked = next((apc for queue in each.thread.queues for apc in queue.apcs if of(apc)), None)
        if asked is not None and each.thread.members.tid is not None:
            found[each.thread.members.tid] = each.get(asked).origin
    return found
