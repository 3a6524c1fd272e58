"""The search for a minidump's kernel in Volatility's symbol path, and what to tell when it fails."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from typing import IO, cast

from volatility3.framework import constants
from volatility3.framework.layers import resources
from volatility3.framework.symbols import intermed

from ..regular import path_of
from ..text import printable
from .kernel_match import KernelMatch, KernelSymbols, SymbolMemory, match_kernel
from .triage import Minidump

vollog = logging.getLogger(__name__)

_MEMORY_FILENAME = "apcaudit_kernel_symbols.json"


def find_kernel(dump: Minidump, progress_callback: constants.ProgressCallback = None) -> KernelMatch:
    """Look for the dump's kernel among the kernel symbol files that Volatility knows."""
    memory = SymbolMemory(os.path.join(constants.CACHE_PATH, _MEMORY_FILENAME))
    try:
        return match_kernel(_relative_addresses(dump), _symbol_files(memory, progress_callback))
    finally:
        memory.save()


def unmatched_message(dump: Minidump, match: KernelMatch) -> str:
    """Say which kernel a dump comes from, as exactly as it tells, and how to get its symbols."""
    header, kernel = dump.header, dump.kernel
    image = key = "unknown"
    if kernel is not None:
        image = f"timestamp {kernel.timestamp:08X}, size of image {kernel.size:#x}, checksum {kernel.checksum:#x}"
        # The symbol server's key of an image: TimeDateStamp with eight digits, then SizeOfImage without padding.
        file = printable((kernel.name or "ntoskrnl.exe").rsplit("\\")[-1])
        key = f"https://msdl.microsoft.com/download/symbols/{file}/{kernel.timestamp:08X}{kernel.size:x}/{file}"
    if match.candidates:
        reason = "several symbol files fit it equally well: " + ", ".join(found.url for found in match.candidates)
    else:
        reason = f"none of the {match.files_seen} kernel symbol files in the symbol path belongs to it"
    return (
        f"The minidump's kernel (build {header.minor_version}, {'x64' if header.is_64bit else 'x86'}, {image}) "
        f"has no symbols: {reason}. Its image is at {key}: the debug directory in there names PDB and GUID, then "
        f"`python -m volatility3.framework.symbols.windows.pdbconv -p ntkrnlmp.pdb -g <GUID><age>` makes the symbol "
        f"file. Put it in windows/<PDB>/<GUID>-<age>.json.xz below a symbol directory (vol -s)."
    )


def _relative_addresses(dump: Minidump) -> dict[str, int]:
    header, data = dump.header, dump.debugger_data
    if data is not None:
        base = data.kern_base
    elif dump.drivers:
        base = dump.drivers[0].base
    else:
        return {}
    addresses = {
        "PsLoadedModuleList": header.ps_loaded_module_list,
        "PsActiveProcessHead": header.ps_active_process_head,
        "KdDebuggerDataBlock": header.kd_debugger_data_block,
        **(data.variables if data is not None else {}),
    }
    return {name: address - base for name, address in addresses.items() if address > base}


def _symbol_files(memory: SymbolMemory, progress_callback: constants.ProgressCallback) -> Iterator[KernelSymbols]:
    urls = [url for url in intermed.IntermediateSymbolTable.file_symbol_url("windows") if _is_kernel_file(url)]
    accessor = resources.ResourceAccessor()

    def opener(url: str) -> IO[bytes]:
        vollog.debug(f"Reading kernel symbols: {url}")
        return cast("IO[bytes]", accessor.open(url))

    for number, url in enumerate(urls):
        if progress_callback is not None:
            progress_callback(100 * number / len(urls), "Looking for the minidump's kernel among the symbol files")
        stamp = _stamp(url)
        kernel = memory.symbols(url, stamp, opener) if stamp is not None else None
        if kernel is not None:
            yield kernel


def _is_kernel_file(url: str) -> bool:
    lowered = url.casefold()
    return any(f"{name}.pdb" in lowered for name in constants.windows.KERNEL_MODULE_NAMES)


def _stamp(url: str) -> list[int] | None:
    # Of a member of an archive the archive's; what is no file has none, and is not opened.
    path = path_of(url)
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else None
