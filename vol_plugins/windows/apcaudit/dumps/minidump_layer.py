"""A Volatility layer for kernel minidumps, and the stacker function that recognizes one.

Stock Volatility refuses DumpType 4. This layer adds synthesized page tables that map the memory in the dump, and
identifies the kernel, so that any plugin can read a minidump as far as its memory goes.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, ClassVar, cast

from volatility3.framework import constants, exceptions, interfaces
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import resources
from volatility3.framework.symbols import intermed

from ..formats.crash_header import DUMP_HEADER64_SIZE, DUMP_TYPE_TRIAGE, CrashHeader, parse_crash_header
from ..formats.files import path_of, reader_of
from ..formats.text import printable
from ..formats.triage import Minidump, MinidumpError, parse_minidump
from .kernel_match import CACHE_FOLDER, KernelMatch, KernelSymbolFile, SymbolCache, match_kernel
from .minidump_memory import dumped_memory
from .pages import X64, X86, X86_PAE, build_page_tables
from .synthesized import add_synthesized_structures

vollog = logging.getLogger(__name__)

SEARCH = "Looking for the minidump's kernel in symbol files"
"""How the search's progress begins."""

_MACHINES = (0x014C, 0x8664)  # IMAGE_FILE_MACHINE_I386, IMAGE_FILE_MACHINE_AMD64 (winnt.h)


@dataclass(frozen=True, slots=True)
class Opening:
    """How this process opens minidumps.

    `cache_folder` is where the contents of symbol files are cached, None for a folder below vol's cache folder.
    `without_symbols` is whether a minidump whose kernel has no symbol file is opened: then vol searches all of its
    memory for a kernel, which takes seconds and finds none.
    """

    cache_folder: str | None = None
    without_symbols: bool = True


opening = Opening()


class MinidumpLayer(interfaces.layers.DataLayerInterface):
    """Physical memory of a kernel minidump: genuine bytes in synthesized page frames, valid byte by byte.

    Reading a byte that is neither in the dump nor synthesized from its headers raises InvalidAddressException.
    """

    provides: ClassVar[dict[str, str]] = {"type": "physical"}

    crash_header: CrashHeader
    triage: Minidump
    dumped_threads: tuple[int, ...]
    """Virtual address of the _ETHREAD that crashed; empty where it is unknown."""
    prcb_address: int | None
    """Virtual address of the crashed processor's `_KPRCB`."""
    crash_stack: tuple[int, int] | None
    """Virtual addresses [start, end) of the stack that the context is on; None where the dump has none."""
    inferred: tuple[str, ...]
    """A sentence on each address that was inferred and each structure that was synthesized."""
    defects: tuple[str, ...]
    """A sentence on each defect of the file, with what is missing for it."""
    made_up: tuple[str, ...]
    """The names of what was synthesized."""
    kernel_symbols: KernelSymbolFile | None

    def __init__(
        self,
        context: interfaces.context.ContextInterface,
        config_path: str,
        name: str,
        progress_callback: constants.ProgressCallback = None,
    ) -> None:
        """Map the minidump in the layer `base_layer` of the configuration.

        Raises:
            MinidumpError: it is not a kernel minidump of x86 or x64, or contains no memory.
        """
        super().__init__(context, config_path, name)
        self._base_layer = str(self.config["base_layer"])
        dump = parse_minidump(self._read_file, context.layers[self._base_layer].maximum_address + 1)
        if dump.header.machine_image_type not in _MACHINES:
            raise MinidumpError(f"machine type {dump.header.machine_image_type:#x} is neither x86 nor x64")
        self.triage = dump
        self.crash_header = dump.header
        self.kernel_match = find_kernel(dump, progress_callback)
        self.kernel_symbols = self.kernel_match.kernel
        dumped = dumped_memory(dump, self._read_file, self.kernel_symbols)
        self.dumped_threads = () if dumped.thread is None else (dumped.thread,)
        self.prcb_address = dumped.prcb
        self.crash_stack = dumped.stack
        self.inferred = dumped.inferred
        self.defects = dump.defects + dumped.defects
        self.made_up = ()
        if self.kernel_symbols is not None:
            made = add_synthesized_structures(dump, self.kernel_symbols, dumped, self._read_file)
            self.inferred += made.sentences
            self.made_up = made.names
        x86_mode = X86_PAE if dump.header.pae_enabled else X86
        mode = X64 if dump.header.is_64bit else x86_mode
        self._memory, page_map_offset = build_page_tables(dumped.memory, mode, dump.header.directory_table_base)
        extents = list(self._memory)
        if not extents:
            raise MinidumpError("the minidump holds no memory")
        self._minimum_address, self._maximum_address = extents[0].address, extents[-1].end - 1
        self._metadata = {
            "os": "Windows",
            "architecture": "Intel64" if dump.header.is_64bit else "Intel32",
            "pae": bool(dump.header.pae_enabled),
            "page_map_offset": page_map_offset,
        }

    @property
    def minimum_address(self) -> int:
        """The lowest address of a known byte."""
        return self._minimum_address

    @property
    def maximum_address(self) -> int:
        """The highest address of a known byte."""
        return self._maximum_address

    @property
    def dependencies(self) -> list[str]:
        """The file's layer."""
        return [self._base_layer]

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """Return whether all of `length` bytes are known."""
        return self._memory.is_known(offset, offset + length)

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """Read bytes; unknown ones are zeros with `pad`, else raise InvalidAddressException."""
        data = self._memory.read(offset, length, self._read_file)
        if data is not None:
            return data
        if length <= 0:
            return b""
        gaps = list(self._memory.gaps(offset, offset + length))
        if not pad:
            unknown = gaps[0][0] if gaps else offset
            raise exceptions.InvalidAddressException(self.name, unknown, f"{unknown:#x} is not in the minidump")
        padded = bytearray(length)
        for extent in self._memory.within(offset, offset + length):
            part = extent.part(max(offset, extent.address), min(offset + length, extent.end))
            known = part.data if part.file_offset is None else self._read_file(part.file_offset, part.size)
            padded[part.address - offset : part.address - offset + len(known)] = known
        return bytes(padded)

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - the interface's parameters
        """Raise: a minidump is read-only."""
        raise exceptions.LayerException(self.name, "a minidump cannot be written to")

    @classmethod
    def get_requirements(cls) -> list[interfaces.configuration.RequirementInterface]:
        """Require the file's layer."""
        return [requirements.TranslationLayerRequirement(name="base_layer", optional=False)]

    def _read_file(self, offset: int, length: int) -> bytes:
        return reader_of(self.context.layers[self._base_layer])(offset, length)

    def _scan_iterator(
        self, scanner: interfaces.layers.ScannerInterface, sections: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[list[tuple[str, int, int]], int]]:
        # Scan only known bytes: the synthesized frames are terabytes above the page directory.
        for start, size in sections:
            for run_start, run_end in self.known_runs(start, start + size):
                for chunk in range(run_start, run_end, scanner.chunk_size):
                    end = min(run_end, chunk + scanner.chunk_size + scanner.overlap)
                    yield [(self.name, chunk, end - chunk)], end

    def known_runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the known ranges [start, end) within a range."""
        position = start
        for gap_start, gap_end in self._memory.gaps(start, end):
            if gap_start > position:
                yield position, gap_start
            position = gap_end
        if position < end:
            yield position, end


def stack_minidump(
    context: interfaces.context.ContextInterface,
    layer_name: str,
    progress_callback: constants.ProgressCallback = None,
) -> MinidumpLayer | None:
    """Create the layer of a kernel minidump; None if the file is something else or cannot be read as one.

    Errors are logged as warnings, since vol ignores exceptions of a stacker.
    """
    base = context.layers[layer_name]
    header = parse_crash_header(base.read(0, min(DUMP_HEADER64_SIZE, base.maximum_address + 1)))
    if header is None or header.dump_type != DUMP_TYPE_TRIAGE:
        return None
    new_name = context.layers.free_layer_name(MinidumpLayer.__name__)
    context.config[interfaces.configuration.path_join(new_name, "base_layer")] = layer_name
    try:
        layer = MinidumpLayer(context, new_name, new_name, progress_callback)
    except MinidumpError as error:
        vollog.warning(f"The minidump cannot be read: {error}")
        return None
    for sentence in layer.defects:
        vollog.warning(sentence)
    for sentence in layer.inferred:
        vollog.info(f"Minidump: {sentence}")
    if layer.made_up:
        vollog.warning(f"Made up from the minidump's headers, since the file lacks it: {', '.join(layer.made_up)}")
    if layer.kernel_symbols is None:
        unknown = not _relative_addresses(layer.triage)
        vollog.warning(NO_KERNEL if unknown else unmatched_message(layer.triage, layer.kernel_match))
        if not opening.without_symbols:
            return None
    else:
        names = ", ".join(layer.kernel_match.agreeing)
        vollog.info(
            f"Minidump: inferred from the addresses of {names}: its kernel is that of {layer.kernel_symbols.url}"
        )
    return layer


def find_kernel(dump: Minidump, progress_callback: constants.ProgressCallback = None) -> KernelMatch:
    """Search Volatility's kernel symbol files for the one of the dump's kernel."""
    cache = SymbolCache(opening.cache_folder or os.path.join(constants.CACHE_PATH, CACHE_FOLDER))
    return match_kernel(_relative_addresses(dump), _symbol_files(cache, progress_callback))


NO_KERNEL = (
    "The minidump's kernel cannot be identified: the file lacks both the kernel's addresses and the list of drivers."
    " Copy it from the machine again (C:\\Windows\\Minidump)"
)


def unmatched_message(dump: Minidump, match: KernelMatch) -> str:
    """Describe the dump's kernel as precisely as the dump allows, and how to get its symbols."""
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
        f"file. Put it in windows/<PDB>/<GUID>-<age>.json.xz below a symbol directory (vol -s)"
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


def _symbol_files(cache: SymbolCache, progress_callback: constants.ProgressCallback) -> Iterator[KernelSymbolFile]:
    urls = [url for url in intermed.IntermediateSymbolTable.file_symbol_url("windows") if _is_kernel_file(url)]
    accessor = resources.ResourceAccessor()

    for number, url in enumerate(urls, 1):

        def opener(url: str, number: int = number) -> IO[bytes]:
            # Of the files that the cache lacks only: the others take no time.
            if progress_callback is not None:
                progress_callback(100 * number / len(urls), f"{SEARCH}: {number} of {len(urls)}")
            vollog.debug(f"Reading kernel symbols: {url}")
            return cast("IO[bytes]", accessor.open(url))

        stamp = _stamp(url)
        kernel = cache.symbols(url, stamp, opener) if stamp is not None else None
        if kernel is not None:
            yield kernel


def _is_kernel_file(url: str) -> bool:
    lowered = url.casefold()
    return any(f"{name}.pdb" in lowered for name in constants.windows.KERNEL_MODULE_NAMES)


def _stamp(url: str) -> list[int] | None:
    # For a member of an archive, the archive's stamp. Paths that are not regular files have none and are not opened.
    path = path_of(url)
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else None
