"""Minidumps as Volatility layers: what is mapped, what is made up, what stays unknown."""

from __future__ import annotations

import json
import logging
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import volatility3.symbols
from volatility3.framework import constants, contexts, exceptions
from volatility3.framework.layers import intel, physical, scanners
from volatility3.plugins.windows.apcaudit.dumps.minidump_layer import MinidumpLayer, find_kernel
from volatility3.plugins.windows.apcaudit.formats.triage import Minidump, parse_minidump
from volatility3.plugins.windows.apcaudit.vol.automagic import MinidumpStacker

from tests.minidump_builder import MinidumpScene, write_minidump
from tests.minidump_machine import APC_PROCESS, GUID, MACHINES, RVAS, Machine

SHARED = Path(__file__).parents[1] / ".." / "shared"


@pytest.fixture
def symbols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory of kernel symbol files, the only one, and a cache of its own."""
    folder = tmp_path / "symbols" / "windows" / "ntkrnlmp.pdb"
    folder.mkdir(parents=True)
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(volatility3.symbols, "__path__", [str(tmp_path / "symbols")])
    monkeypatch.setattr(constants, "CACHE_PATH", str(tmp_path / "cache"))
    return folder


def add_isf(symbols: Path, isf: dict[str, Any], guid: str = GUID) -> Path:
    path = symbols / f"{guid}-1.json"
    path.write_text(json.dumps(isf))
    return path


def parse(data: bytes) -> Minidump:
    return parse_minidump(lambda offset, length: data[offset : offset + length], len(data))


class Opened:
    """A dump behind the layers that Volatility would stack on it."""

    def __init__(self, data: bytes) -> None:
        self.context = contexts.Context()
        self.context.add_layer(physical.BufferDataLayer(self.context, "file", "file", data))
        layer = MinidumpStacker.stack(self.context, "file")
        assert isinstance(layer, MinidumpLayer)
        self.physical = layer
        self.context.add_layer(layer)
        self.context.config["virtual.memory_layer"] = layer.name
        self.context.config["virtual.page_map_offset"] = layer.metadata["page_map_offset"]
        if layer.metadata["architecture"] == "Intel64":
            kind: type[intel.Intel] = intel.WindowsIntel32e
        else:
            kind = intel.WindowsIntelPAE if layer.metadata["pae"] else intel.WindowsIntel
        self.virtual = kind(self.context, "virtual", "virtual", metadata={"os": "Windows"})
        self.context.add_layer(self.virtual)

    def pointer(self, machine: Machine, address: int) -> int:
        """The pointer at a virtual address."""
        (value,) = struct.unpack(machine.pointer, self.virtual.read(address, machine.pointer_size))
        return int(value)

    def text(self, machine: Machine, address: int) -> str:
        """The text of the UNICODE_STRING at a virtual address."""
        length = int.from_bytes(self.virtual.read(address, 2), "little")
        buffer = self.pointer(machine, address + machine.pointer_size)
        return self.virtual.read(buffer, length).decode("utf-16-le")


@pytest.mark.parametrize("machine", MACHINES)
def test_dumped_memory_is_mapped(machine: Machine, symbols: Path) -> None:
    """Each dumped range reads at its virtual address, also where it goes over a page's end."""
    opened = Opened(write_minidump(machine.scene()))
    assert opened.virtual.read(machine.base + 0x3FFE, 17) == b"over a page's end"
    assert opened.virtual.read(machine.stack, 12) == b"kernel stack"


@pytest.mark.parametrize("machine", MACHINES)
def test_unknown_is_never_zero(machine: Machine, symbols: Path) -> None:
    """A byte that the dump does not hold raises, next to known ones in the same page too."""
    opened = Opened(write_minidump(machine.scene()))
    for address in (machine.base + 0x3FFD, machine.base + 0x3FFE + 17, machine.base + 0x200000):
        with pytest.raises(exceptions.InvalidAddressException):
            opened.virtual.read(address, 1)
    with pytest.raises(exceptions.InvalidAddressException):
        opened.virtual.read(machine.base + 0x3FFE, 18)


@pytest.mark.parametrize("machine", MACHINES)
def test_scene_of_the_crash(machine: Machine, symbols: Path) -> None:
    """Thread, process and processor block lie where the dump's pointers lead, and are told as inferred."""
    opened = Opened(write_minidump(machine.scene()))
    layer = opened.physical
    assert layer.dumped_threads == (machine.thread,)
    assert layer.prcb_address == machine.prcb
    assert opened.virtual.read(machine.thread, APC_PROCESS) == b"t" * APC_PROCESS
    assert opened.virtual.read(machine.process, 0x80) == b"e" * 0x80
    assert opened.virtual.read(machine.prcb, 8) == b"p" * 8
    for type_name, address in (("_ETHREAD", machine.thread), ("_EPROCESS", machine.process), ("_KPRCB", machine.prcb)):
        assert any(type_name in sentence and f"{address:#x}" in sentence for sentence in layer.inferred)


@pytest.mark.parametrize("machine", MACHINES)
def test_page_directory_of_the_crash(machine: Machine, symbols: Path) -> None:
    """The made-up page map lies at the header's DirectoryTableBase, so that processes find it too."""
    expected = 0x1AD000 if machine.is_64bit or machine.pae else 0xB1C0000
    scene = machine.scene()
    scene = replace(scene, header={**scene.header, "DirectoryTableBase": expected})
    assert Opened(write_minidump(scene)).physical.metadata["page_map_offset"] == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_module_list(machine: Machine, symbols: Path) -> None:
    """PsLoadedModuleList leads through an entry for each driver and back, both ways; members without a source raise."""
    add_isf(symbols, machine.isf())
    opened = Opened(write_minidump(machine.scene()))
    size = machine.pointer_size
    head = machine.base + RVAS["PsLoadedModuleList"]
    first = opened.pointer(machine, head)
    second = opened.pointer(machine, first)
    assert opened.pointer(machine, second) == head
    assert [opened.pointer(machine, link + size) for link in (head, second, first)] == [second, first, head]
    assert opened.pointer(machine, second + 2 * size) == machine.base + 0x1000000
    assert opened.virtual.read(second + 4 * size, 4) == struct.pack("<I", 0x9000)
    assert opened.text(machine, second + 6 * size) == r"\SystemRoot\System32\Drivers\Bfilter.sys"
    assert opened.text(machine, second + 8 * size) == "Bfilter.sys"
    with pytest.raises(exceptions.InvalidAddressException):
        opened.pointer(machine, second + 10 * size)


@pytest.mark.parametrize("machine", MACHINES)
def test_genuine_bytes_are_never_replaced(machine: Machine, symbols: Path) -> None:
    """A list head that the dump holds stays as it is; the entries go where it points."""
    add_isf(symbols, machine.isf())
    first, last = machine.stack + 0x100000, machine.stack + 0x200000
    scene = machine.scene()
    head = machine.base + RVAS["PsLoadedModuleList"]
    memory = {**scene.memory, head: struct.pack(machine.pointer, first) + struct.pack(machine.pointer, last)}
    opened = Opened(write_minidump(replace(scene, memory=memory)))
    assert opened.pointer(machine, head) == first
    assert opened.pointer(machine, first) == last
    assert opened.text(machine, last + 8 * machine.pointer_size) == "Bfilter.sys"


@pytest.mark.parametrize("machine", MACHINES)
def test_unloaded_drivers(machine: Machine, symbols: Path) -> None:
    """MmUnloadedDrivers points to what the dump lists, MmLastUnloadedDriver counts it."""
    add_isf(symbols, machine.isf())
    opened = Opened(write_minidump(machine.scene()))
    assert opened.pointer(machine, machine.base + RVAS["MmLastUnloadedDriver"]) == 1
    entry = opened.pointer(machine, machine.base + RVAS["MmUnloadedDrivers"])
    assert opened.text(machine, entry) == "Cdaudio.SYS"
    assert opened.pointer(machine, entry + 2 * machine.pointer_size) == machine.base + 0x2000000


@pytest.mark.parametrize("machine", MACHINES)
def test_pdb_record(machine: Machine, symbols: Path) -> None:
    """An MZ header and, close behind, the matched kernel's PDB record are found by scanning from the kernel's base."""
    add_isf(symbols, machine.isf())
    opened = Opened(write_minidump(machine.scene()))
    assert opened.virtual.read(machine.base, 2) == b"MZ"
    section = (machine.base & opened.virtual.address_mask, 0x400000)
    (found,) = opened.virtual.scan(opened.context, scanners.BytesScanner(b"RSDS"), sections=[section])
    # GUID: a ULONG and two USHORTs little-endian, then bytes; then the age.
    stored = struct.pack("<IHH", 0xA9CA0D17, 0xA9CA, 0x0D17) + bytes.fromhex(GUID[16:])
    assert opened.virtual.read(found, 37) == b"RSDS" + stored + struct.pack("<I", 1) + b"ntkrnlmp.pdb\0"
    physical_hits = list(opened.physical.scan(opened.context, scanners.BytesScanner(b"KDBG")))
    assert len(physical_hits) == 1
    assert opened.physical.read(physical_hits[0], 4) == b"KDBG"


def test_unmatched_kernel_is_told_once(symbols: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a fitting symbol file one warning gives the image's key on the symbol server; memory still reads."""
    machine = Machine(True)
    isf = machine.isf()
    isf["symbols"]["PspCidTable"]["address"] += 8
    add_isf(symbols, isf)
    with caplog.at_level(logging.WARNING):
        opened = Opened(write_minidump(machine.scene()))
    (record,) = caplog.records
    assert "build 19041" in record.message
    assert "https://msdl.microsoft.com/download/symbols/ntoskrnl.exe/4802516A214000/ntoskrnl.exe" in record.message
    assert opened.physical.kernel_symbols is None
    assert opened.virtual.read(machine.stack, 6) == b"kernel"


@pytest.mark.parametrize(
    "data",
    [
        bytes(0x4000),
        b"PAGEDU64",
        write_minidump(MinidumpScene(is_64bit=True, kern_base=1 << 63, header={"DumpType": 1})),
        write_minidump(MinidumpScene(is_64bit=False, kern_base=1 << 31, header={"DumpType": 2})),
    ],
)
def test_other_files_are_left_alone(data: bytes, symbols: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The stacker takes minidumps only and says nothing about other files."""
    context = contexts.Context()
    context.add_layer(physical.BufferDataLayer(context, "file", "file", data))
    with caplog.at_level(logging.INFO):
        assert MinidumpStacker.stack(context, "file") is None
    assert not caplog.records


def test_only_the_file_itself_is_looked_at(symbols: Path) -> None:
    """A minidump inside another layer, as in the memory of a machine that opened one, is not stacked on."""
    opened = Opened(write_minidump(Machine(True).scene()))
    assert MinidumpStacker.stack(opened.context, opened.physical.name) is None


def test_damaged_symbol_file_is_no_kernel(symbols: Path) -> None:
    """A symbol file that cannot be decoded matches nothing and does not end the search."""
    machine = Machine(True)
    (symbols / "00-1.json.xz").write_bytes(b"no archive")
    (symbols / "01-1.json").write_text("[]")
    add_isf(symbols, machine.isf())
    found = Opened(write_minidump(machine.scene())).physical.kernel_symbols
    assert found is not None
    assert found.guid == GUID


def test_the_search_shows_its_progress(symbols: Path) -> None:
    """The search says which of how many symbol files it reads, once: later it knows what is in them."""
    machine = Machine(True)
    for guid in (GUID, "B" * 32, "C" * 32):
        add_isf(symbols, machine.isf() | {"symbols": {}}, guid)
    shown: list[str] = []
    for _ in range(2):
        find_kernel(parse(write_minidump(machine.scene())), lambda _, text: shown.append(text))
    assert [text.partition(": ")[2] for text in shown] == ["1 of 3", "2 of 3", "3 of 3"]


def test_genuine_minidump(symbols: Path) -> None:
    """A genuine minidump's crashing thread is TID 264 of process 4, with empty APC lists that point to themselves."""
    sample = SHARED / "samples" / "triage_x64.dmp"
    isf = SHARED / "symbols" / "windows" / "ntkrnlmp.pdb" / "5278AFF86C341677D7D7835C85B7B844-1.json.xz"
    if not sample.exists() or not isf.exists():
        pytest.skip("the genuine minidump or its symbols are missing")
    (symbols / isf.name).symlink_to(isf.resolve())
    opened = Opened(sample.read_bytes())
    assert opened.physical.kernel_symbols is not None
    assert opened.physical.kernel_symbols.guid == "5278AFF86C341677D7D7835C85B7B844"
    (thread,) = opened.physical.dumped_threads
    assert thread == 0xFFFFC08BDE9E1640
    # Offsets of this build (_ETHREAD.Cid 0x478, _KTHREAD.ApcState 0x98), as WinDbg's dt shows them.
    assert struct.unpack("<2Q", opened.virtual.read(thread + 0x478, 16)) == (4, 264)
    for head in (thread + 0x98, thread + 0xA8):
        assert struct.unpack("<2Q", opened.virtual.read(head, 16)) == (head, head)
