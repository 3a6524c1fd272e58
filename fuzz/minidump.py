"""A genuine minidump that is mutated: its header, its tables, and the memory it holds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import volatility3.symbols
from volatility3.framework import exceptions
from volatility3.framework.layers import intel, physical

from fuzz.findings import Result, audit
from fuzz.ground import Mutation
from fuzz.machine import open_image

_HEADER = 0x2000
_TRIAGE_HEADER = 0x100  # TRIAGE_DUMP_HEADER64 follows the crash dump header

KINDS = ("header numbers", "header bytes", "tables", "memory", "file truncated", "bytes anywhere", "ranges overlap")


class MinidumpSubject:
    """A minidump's mutations, and the audits of them through the layer that reads minidumps."""

    def __init__(self, path: Path, symbols: Path | None) -> None:
        self.name = path.name
        self._data = path.read_bytes()
        self._symbols = () if symbols is None else (symbols.resolve(),)
        self._sorted: dict[str, Any] = {}
        self._context, self._module = open_image(path, self._symbols)
        kernel = self._context.modules[self._module]
        self._offset, self._table = kernel.offset, kernel.symbol_table_name
        self._layer = type(self._context.layers[kernel.layer_name])
        self._made = self._data
        self._number = 0
        self._undamaged = {scan: self._needed(self.after(scan=scan)) for scan in (False, True)}

    @staticmethod
    def _needed(result: Result | None) -> Result:
        if result is None:
            raise SystemExit("the undamaged minidump cannot be audited: is its symbol file below --symbols?")
        return result

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """Let vol find the symbol files, and the kernel's symbols be sorted once: every mutation has the same.

        Both are of the process, in which other images are audited too: what was there before is put back.
        """
        from volatility3.plugins.windows.apcaudit.image.symbols import KernelSymbols

        sort, known = KernelSymbols._sort, self._sorted
        before = list(volatility3.symbols.__path__)

        def sorted_once(symbols: Any) -> Any:
            if symbols.table_name not in known:
                known[symbols.table_name] = sort(symbols)
            return known[symbols.table_name]

        # The layer of a minidump looks for the kernel's symbols each time.
        volatility3.symbols.__path__[:] = [*map(str, self._symbols), *before]
        KernelSymbols._sort = sorted_once  # type: ignore[method-assign]
        try:
            yield
        finally:
            KernelSymbols._sort = sort  # type: ignore[method-assign]
            volatility3.symbols.__path__[:] = before

    def mutation(self, seed: int, index: int) -> Mutation:
        """Make a mutation of the file; the kinds take turns."""
        chance = random.Random(f"{seed}:{index}")  # noqa: S311 - the same damage each time is wanted
        made = Mutation(KINDS[index % len(KINDS)])
        if made.kind == "file truncated":
            made.end = chance.randrange(len(self._data))
            made.told.append(f"cut to {made.end:#x} bytes")
            return made
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            address, data = self._patch(made.kind, chance)
            made.patches.append((address, data))
            made.told.append(f"{address:#x} = {data[:16].hex()}")
        return made

    def _patch(self, kind: str, chance: random.Random) -> tuple[int, bytes]:
        if kind == "header numbers":
            address = _HEADER + 4 * chance.randrange(_TRIAGE_HEADER // 4)
            if chance.random() < 0.3:
                address = chance.choice((0x10, 0x20, 0x28, 0x30, 0x34, 0x38, 0x40, 0x80, 0xF98, 0x1038))
            size = len(self._data)
            values = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, size, size - 1, size - 0x10, 0x10000, address)
            return address, chance.choice(values).to_bytes(4, "little")
        if kind == "header bytes":
            return chance.randrange(_HEADER + _TRIAGE_HEADER), bytes([chance.randrange(256)])
        if kind in ("tables", "ranges overlap"):
            # The data blocks' table: (address, offset, size) of each range of memory.
            offset = int.from_bytes(self._data[_HEADER + 0x80 : _HEADER + 0x84], "little")
            blocks = self._blocks()
            if kind == "ranges overlap":
                one, two = chance.choice(blocks), chance.choice(blocks)
                field, size = chance.choice(((0, 8), (8, 4), (12, 4)))
                value = int.from_bytes(self._data[two + field : two + field + size], "little")
                value = max(0, value + chance.choice((0, 0, 1, -1, 0x10, 0x1000, -0x1000)))
                return one + field, value.to_bytes(8, "little")[:size]
            start = chance.choice((blocks[0], offset)) if offset < len(self._data) else blocks[0]
            return start + 4 * chance.randrange(0x400), chance.randbytes(4)
        if kind == "memory":
            block = chance.choice(self._blocks())
            at, size = (int.from_bytes(self._data[block + each : block + each + 4], "little") for each in (8, 12))
            return at + 8 * chance.randrange(max(1, size // 8)), self._pointer(chance)
        return chance.randrange(len(self._data)), chance.randbytes(chance.choice((1, 4, 64)))

    def _pointer(self, chance: random.Random) -> bytes:
        """Choose a pointer: to some memory that the file holds, or to nowhere."""
        block = chance.choice(self._blocks())
        address = int.from_bytes(self._data[block : block + 8], "little") + 8 * chance.randrange(64)
        return chance.choice((address, address + 1, 0, 0x41414141, (1 << 64) - 8, 1 << 63)).to_bytes(8, "little")

    def _blocks(self) -> list[int]:
        """Return the file offsets of the entries of the data blocks' table."""
        from volatility3.plugins.windows.apcaudit.formats.triage_header import parse_triage_header

        header = parse_triage_header(self._data[_HEADER : _HEADER + 0x1000], True)
        if header is None:
            raise SystemExit("no minidump")
        first = header.data_blocks_offset
        return [first + 16 * number for number in range(header.data_blocks_count)]

    def before(self, *, scan: bool) -> Result:
        """Return the audit of the undamaged file."""
        return self._undamaged[scan]

    def apply(self, made: Mutation) -> None:
        """Do the damage."""
        data = bytearray(self._data)
        for address, patch in made.patches:
            if address < len(data):
                data[address : address + len(patch)] = patch[: len(data) - address]
        self._made = bytes(data[: made.end])

    def is_local(self, made: Mutation) -> bool:  # noqa: ARG002 - the same promise for all
        """Tell that nothing is promised of other threads: a minidump is of one."""
        return False

    def after(self, *, scan: bool, everything: bool = True) -> Result | None:
        """Open the damaged file and audit it; None where it is refused."""
        with self._prepared():
            return self._audit(scan=scan, everything=everything)

    def _audit(self, *, scan: bool, everything: bool) -> Result | None:
        from volatility3.plugins.windows.apcaudit.dumps.minidump_layer import stack_minidump

        for remembered in (intel.Intel._get_valid_table, intel.Intel._translate_entry):
            remembered.cache_clear()
        context = self._context
        self._number += 1
        file, upper = f"file{self._number}", f"kernel{self._number}"
        context.layers.add_layer(physical.BufferDataLayer(context, file, file, self._made or b"\0"))
        try:
            dump = stack_minidump(context, file)
            if dump is None:
                return None
            context.layers.add_layer(dump)
            context.config[f"{upper}.memory_layer"] = dump.name
            context.config[f"{upper}.page_map_offset"] = dump.metadata["page_map_offset"]
            try:
                context.layers.add_layer(self._layer(context, upper, upper))
            except exceptions.LayerException:
                return None
            module = context.module(self._table, upper, self._offset)
            return audit(context, module.name, scan=scan, everything=everything)
        finally:
            for name in [upper, *(each for each in list(context.layers) if each.startswith("MinidumpLayer")), file]:
                context.layers._layers.pop(name, None)
            for name in list(context.modules):
                if name != self._module:
                    del context.modules._modules[name]
