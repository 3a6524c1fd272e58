"""Volatility's physical layer of a kernel minidump, and the stacker that recognises one.

Stock Volatility refuses DumpType 4. This layer gives it page tables, made up so that they map what the dump holds,
and names the kernel, so that any plugin reads a minidump as far as its memory goes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import ClassVar

from volatility3.framework import constants, exceptions, interfaces
from volatility3.framework.configuration import requirements

from .crash_header import DUMP_HEADER64_SIZE, DUMP_TYPE_TRIAGE, CrashHeader, parse_crash_header
from .kernel import find_kernel, unmatched_message
from .kernel_match import KernelSymbols
from .memory import dumped_memory
from .pages import X64, X86, X86_PAE, paged
from .stand_ins import add_stand_ins
from .triage import Minidump, MinidumpError, parse_minidump

vollog = logging.getLogger(__name__)

_MACHINES = (0x014C, 0x8664)  # IMAGE_FILE_MACHINE_I386, IMAGE_FILE_MACHINE_AMD64 (winnt.h)


class MinidumpLayer(interfaces.layers.DataLayerInterface):
    """Physical memory of a kernel minidump: invented frames with genuine bytes, valid byte by byte.

    Reading a byte that neither the dump nor its headers tell raises InvalidAddressException.
    """

    provides: ClassVar[dict[str, str]] = {"type": "physical"}

    crash_header: CrashHeader
    triage: Minidump
    dumped_threads: tuple[int, ...]
    """Virtual addresses of the threads that the dump is about: the one that crashed."""
    prcb_address: int | None
    """Virtual address of the crashed processor's `_KPRCB`."""
    inferred: tuple[str, ...]
    """A sentence on each thing that is not in the file as such."""
    kernel_symbols: KernelSymbols | None

    def __init__(
        self,
        context: interfaces.context.ContextInterface,
        config_path: str,
        name: str,
        progress_callback: constants.ProgressCallback = None,
    ) -> None:
        """Map the minidump in the layer that the configuration calls `base_layer`."""
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
        self.inferred = dumped.inferred
        if self.kernel_symbols is not None:
            self.inferred += add_stand_ins(dump, self.kernel_symbols, dumped.memory, self._read_file)
        x86_mode = X86_PAE if dump.header.pae_enabled else X86
        mode = X64 if dump.header.is_64bit else x86_mode
        self._memory, page_map_offset = paged(dumped.memory, mode, dump.header.directory_table_base)
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
        """The first known address."""
        return self._minimum_address

    @property
    def maximum_address(self) -> int:
        """The last known address."""
        return self._maximum_address

    @property
    def dependencies(self) -> list[str]:
        """The layer of the file."""
        return [self._base_layer]

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """Tell whether all of `length` bytes are known."""
        return self._memory.is_known(offset, offset + length)

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """Read known bytes; with `pad`, unknown ones come out as zeros, else they raise."""
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
        """Refuse."""
        raise exceptions.LayerException(self.name, "a minidump cannot be written to")

    @classmethod
    def get_requirements(cls) -> list[interfaces.configuration.RequirementInterface]:
        """Require the layer of the file."""
        return [requirements.TranslationLayerRequirement(name="base_layer", optional=False)]

    def _read_file(self, offset: int, length: int) -> bytes:
        # As much as the file has, as file objects do; FileLayer itself fails at the end of the file.
        layer = self.context.layers[self._base_layer]
        length = min(length, layer.maximum_address + 1 - offset)
        return layer.read(offset, length) if length > 0 else b""

    def _scan_iterator(
        self, scanner: interfaces.layers.ScannerInterface, sections: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[list[tuple[str, int, int]], int]]:
        # Only known bytes: the frames lie terabytes above the page directory.
        for start, size in sections:
            for run_start, run_end in self.known_runs(start, start + size):
                for chunk in range(run_start, run_end, scanner.chunk_size):
                    end = min(run_end, chunk + scanner.chunk_size + scanner.overlap)
                    yield [(self.name, chunk, end - chunk)], end

    def known_runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges [start, end) within one that are known."""
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
    """Make the layer of a file that begins as a crash dump; None unless it is a kernel minidump.

    What keeps a minidump from being read is logged as a warning, since vol swallows what a stacker raises.
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
    for sentence in (*layer.triage.defects, *layer.inferred):
        vollog.info(f"Minidump: {sentence}")
    if layer.kernel_symbols is None:
        vollog.warning(unmatched_message(layer.triage, layer.kernel_match))
    else:
        names = ", ".join(layer.kernel_match.agreeing)
        vollog.info(
            f"Minidump: inferred from the addresses of {names}: its kernel is that of {layer.kernel_symbols.url}"
        )
    return layer
