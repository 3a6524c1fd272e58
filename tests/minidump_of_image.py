"""Kernel minidumps of synthetic machines, as Windows writes them, and their audit within this process."""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volatility3.framework import constants, contexts
from volatility3.framework.layers import intel, physical
from volatility3.framework.symbols.windows import WindowsKernelIntermedSymbols
from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.dumps.minidump_layer import MinidumpLayer
from volatility3.plugins.windows.apcaudit.findings import Audited
from volatility3.plugins.windows.apcaudit.vol.automagic import MinidumpStacker

from apcaudit.synthetic import isf
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import Kernel
from tests import volatility
from tests.minidump_builder import DriverEntry, MinidumpScene

#: KDDEBUGGER_DATA64 of XP ends before the offsets of structures; the size is that of a dump of XP SP3 (WinDbg).
_XP_DEBUGGER_DATA = 0x290
_SIZE = 0x14

_HEADER_SIZE = {True: 0x2000, False: 0x1000}


def minidump_scene(image: Image, tid: int, *, memory: Mapping[int, int] | None = None, **changes: Any) -> MinidumpScene:
    """Declare the minidump that Windows would write of a machine that stopped on a thread.

    It has the processor's KPRCB, the thread, the process that it was attached to, its stack from KernelStack on, the
    debugger data block and the drivers; `memory` adds blocks: size in bytes by address.
    """
    kernel, read = image.kernel, image.read
    built = image.memory
    thread = image.address_of[f"thread:{tid}"]
    process = built.read(thread, "_ETHREAD", "Tcb.ApcState.Process") & built.layout.pointer_mask
    top = built.read(thread, "_ETHREAD", "Tcb.KernelStack") & built.layout.pointer_mask
    base = built.read(thread, "_ETHREAD", "Tcb.StackBase" if built.has("_ETHREAD", "Tcb.StackBase") else "StackBase")
    data = bytearray(read(kernel.address("KdDebuggerDataBlock"), 0x340))
    if kernel.version < (5, 2):
        data = data[:_XP_DEBUGGER_DATA]
        struct.pack_into("<I", data, _SIZE, len(data))
    drivers = [DriverEntry(r"\SystemRoot\system32\ntoskrnl.exe", kernel.base, kernel.image_size)]
    drivers += [
        DriverEntry(f"\\SystemRoot\\System32\\drivers\\{each.name}", image.address_of[f"driver:{each.name}"], each.size)
        for each in image.scene.drivers
    ]
    declared: dict[str, Any] = {
        "is_64bit": kernel.is_64bit,
        "kern_base": kernel.base,
        "memory": {address: read(address, size) for address, size in (memory or {}).items()},
        "drivers": tuple(drivers),
        "prcb": read(image.address_of["kprcb:0"], built.size("_KPRCB")),
        "process": read(process, built.size("_EPROCESS")),
        "thread": read(thread, built.size("_ETHREAD")),
        "stack": (top, read(top, (base & built.layout.pointer_mask) - top)),
        "debugger_bytes": bytes(data),
        "header_bytes": image.dump()[: _HEADER_SIZE[kernel.is_64bit]],
    }
    bugcheck = image.scene.bugcheck
    header = {
        "MinorVersion": kernel.version[2],
        "DirectoryTableBase": built.space.mode.root,
        "PsLoadedModuleList": kernel.address("PsLoadedModuleList"),
        "PsActiveProcessHead": kernel.address("PsActiveProcessHead"),
        "KdDebuggerDataBlock": kernel.address("KdDebuggerDataBlock"),
        "BugCheckCode": bugcheck.code if bugcheck else 0,
        **{
            f"BugCheckParameter{number}": image.resolve(value) & built.layout.pointer_mask
            for number, value in enumerate(bugcheck.parameters if bugcheck else (), 1)
        },
        **({} if kernel.is_64bit else {"PaeEnabled": int(kernel.is_pae)}),
    }
    return MinidumpScene(**(declared | {"header": header} | changes))


@dataclass(frozen=True)
class Opened:
    """A minidump's layers, its audit, and what was audited by TID."""

    layer: MinidumpLayer
    audit: Audit
    of: dict[int | None, Audited]

    def codes(self, tid: int) -> dict[str, str]:
        """Return a thread's codes and those of its APCs, each with its severity."""
        return {finding.code: str(finding.severity) for finding in self.of[tid].all_findings}

    def explanation(self, tid: int, code: str) -> str:
        """Return the explanation of one finding about a thread."""
        return next(each.explanation for each in self.of[tid].all_findings if each.code == code)


@contextmanager
def symbol_files(*folders: Path) -> Iterator[None]:
    """Search these folders for symbol files, with the cache of all these tests."""
    volatility.CACHE.mkdir(exist_ok=True, parents=True)
    constants.CACHE_PATH = str(volatility.CACHE)
    with volatility.searching(folders):
        yield


_folders: dict[str, tempfile.TemporaryDirectory[str]] = {}


def only_symbols_of(kernel: Kernel) -> Path:
    """Return a folder with the symbol file of one kernel: some of ours have the same addresses, as no real ones do."""
    if kernel.name not in _folders:
        _folders[kernel.name] = tempfile.TemporaryDirectory(prefix="apcaudit-tests-")
        file = Path(_folders[kernel.name].name) / isf.relative_path(kernel)
        file.parent.mkdir(parents=True)
        shutil.copyfile(volatility.REPOSITORY_SYMBOLS / isf.relative_path(kernel), file)
    return Path(_folders[kernel.name].name)


def audit_minidump(data: bytes, kernel: Kernel, folder: Path | None = None) -> Opened:
    """Open a minidump of a kernel with the layers that vol stacks on it, and audit it.

    `folder` holds the kernel's symbol file, for a kernel that is not one of ours.
    """
    folder = only_symbols_of(kernel) if folder is None else folder
    context = contexts.Context()
    context.add_layer(physical.BufferDataLayer(context, "file", "file", data))
    with symbol_files(folder):
        layer = MinidumpStacker.stack(context, "file")
    assert isinstance(layer, MinidumpLayer)
    context.add_layer(layer)
    context.config["virtual.memory_layer"] = layer.name
    context.config["virtual.page_map_offset"] = layer.metadata["page_map_offset"]
    paging = intel.WindowsIntelPAE if kernel.is_pae else intel.WindowsIntel
    kind = intel.WindowsIntel32e if kernel.is_64bit else paging
    context.add_layer(kind(context, "virtual", "virtual", metadata={"os": "Windows"}))
    url = (folder / isf.relative_path(kernel)).resolve().as_uri()
    table = WindowsKernelIntermedSymbols(context, "symbols", "symbols", isf_url=url)
    context.symbol_space.append(table)
    base = kernel.base & ((1 << 48) - 1)
    contexts.Module.create(context, "kernel", "virtual", offset=base, symbol_table_name="symbols")
    audit = Audit(context, "kernel")
    return Opened(layer, audit, {each.thread.members.tid: each for each in audit.run(Selection(clean_too=True))})
