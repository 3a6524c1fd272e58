"""The machines whose memory is damaged: every situation, and APCs whose origin takes reading, on one kernel."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import volatility3.plugins
import volatility3.symbols
from volatility3 import framework
from volatility3.framework import automagic, constants, contexts, interfaces, plugins
from volatility3.framework.configuration import requirements

from apcaudit.synthetic import situations
from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import Kernel, load_kernel
from apcaudit.synthetic.scene import Apc, IoStackLocation, Irp, Scene, Thread
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL
from apcaudit.synthetic.situations.situation import SERVICE

ROOT = Path(__file__).resolve().parent.parent

PLUGIN = "windows.apcaudit.ApcAudit"

_cache = tempfile.TemporaryDirectory(prefix="apcaudit-fuzz-")
"""Where this process's vol keeps its index of symbol files: making it takes longer than many audits."""

_IRP = Irp(
    stack=(IoStackLocation("disk.sys", major=0xE, completion_routine="fltMgr!FltSendMessage", control=0xE0),),
    user_iosb="stack-0x80",
    file_name="secret.txt",
)


def scene(kernel: Kernel) -> Scene:
    """Declare the machine."""
    whole = situations.of(kernel)
    more = (
        Thread(0x400, kernel_apcs=(Apc(irp=_IRP, label="irp"),), wait_irql=1, kernel_apc_pending=True),
        Thread(0x404, attached_to=SERVICE, kernel_apcs=(Apc(irp=_IRP, label="attached"),), wait_irql=1),
        Thread(0x408, user_apcs=tuple(Apc("nt!IopDeallocateApc", normal_routine=0x401000) for _ in range(4))),
        Thread(0x40C, state="Running", running_on=0),
    )
    system, *others = whole.processes
    # Start routines that return at once: thousands of audits of blank code would all be reading of code.
    drivers = tuple(replace(each, code={0x1000: b"\xc3" * 0x400}) for each in whole.drivers if each.name != FLTMGR.name)
    return replace(
        whole,
        processes=(replace(system, threads=system.threads + more), *others),
        drivers=(*drivers, HAL, FLTMGR, DISK),
    )


def machine(kernel: str) -> Image:
    """Build the machine for a kernel by name."""
    loaded = load_kernel(kernel)
    return build(scene(loaded), loaded)


def open_image(path: Path, symbols: tuple[Path, ...] = ()) -> tuple[Any, str]:
    """Open an image as vol does; return the context and the name of the kernel's module in it."""
    ours = str(ROOT / "vol_plugins")
    if ours not in volatility3.plugins.__path__:
        volatility3.plugins.__path__.insert(0, ours)
    before = list(volatility3.symbols.__path__)
    volatility3.symbols.__path__[:] = [str(ROOT / "symbols"), *map(str, symbols), *before]
    constants.OFFLINE = True
    constants.CACHE_PATH = _cache.name
    try:
        framework.import_files(volatility3.plugins, True)
        chosen = framework.list_plugins()[PLUGIN]
        context = contexts.Context()
        location = requirements.URIRequirement.location_from_file(str(path))
        context.config["automagic.LayerStacker.single_location"] = location
        # Vol's own types say that these two want what they are never given.
        choose: Any = automagic.choose_automagic
        make: Any = plugins.construct_plugin
        plugin: interfaces.plugins.PluginInterface = make(
            context, choose(automagic.available(context), chosen), chosen, "plugins", None, None
        )
    finally:
        volatility3.symbols.__path__[:] = before
    return context, str(plugin.config["kernel"])
