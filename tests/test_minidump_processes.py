"""What is made up so that the process list of a minidump leads to the crashing process, and its version is known."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import volatility3.symbols
from volatility3.framework import constants, exceptions

from tests.minidump_builder import MinidumpScene, write_minidump
from tests.minidump_machine import APC_PROCESS, MACHINES, RVAS, Machine
from tests.test_minidump_layer import Opened, add_isf

# Offsets of our own kernel, beside those of tests.minidump_machine.
STATE_INDEX, SAVED_STATE, CID = 0x80, 0x90, 0xB8
LINKS, PID, NAME, PAGE_MAP, PROCESS_SIZE = 0x20, 0x30, 0x40, 0x8, 0x80
VERSION = {"NtMajorVersion": 0x26C, "NtMinorVersion": 0x270, "SystemTime": 0x14, "InterruptTime": 0x8}
SHARED_DATA = {True: 0xFFFFF78000000000, False: 0xFFDF0000}


@pytest.fixture
def symbols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory of kernel symbol files, the only one, and a cache of its own."""
    folder = tmp_path / "symbols" / "windows" / "ntkrnlmp.pdb"
    folder.mkdir(parents=True)
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(volatility3.symbols, "__path__", [str(tmp_path / "symbols")])
    monkeypatch.setattr(constants, "CACHE_PATH", str(tmp_path / "cache"))
    return folder


def isf(machine: Machine) -> dict[str, Any]:
    """The machine's symbol file with the structures of threads and processes too."""
    made = machine.isf()

    def layout(size: int, **members: int) -> dict[str, Any]:
        return {"size": size, "fields": {name: {"offset": offset} for name, offset in members.items()}}

    made["user_types"] |= {
        "_CLIENT_ID": layout(2 * machine.pointer_size, UniqueProcess=0, UniqueThread=machine.pointer_size),
        "_EPROCESS": layout(PROCESS_SIZE, Pcb=0, ActiveProcessLinks=LINKS, UniqueProcessId=PID, ImageFileName=NAME),
        "_ETHREAD": layout(0x100, Cid=CID),
        "_KAPC_STATE": layout(0x30, Process=0x10),
        "_KPROCESS": layout(0x20, DirectoryTableBase=PAGE_MAP),
        "_KTHREAD": layout(0x100, ApcState=APC_PROCESS - 0x10, ApcStateIndex=STATE_INDEX, SavedApcState=SAVED_STATE),
        "_KUSER_SHARED_DATA": layout(0x300, **VERSION),
    }
    return made


def scene(machine: Machine, *, owner: int | None = None, pid: int = 668, **changes: Any) -> MinidumpScene:
    """The machine's minidump; its thread belongs to `owner`, where that is given, and is attached to the process."""
    made = machine.scene()
    thread = bytearray(made.thread)
    thread[STATE_INDEX] = owner is not None
    struct.pack_into(machine.pointer, thread, SAVED_STATE + 0x10, owner or 0)
    struct.pack_into(machine.pointer, thread, CID, pid)
    return replace(made, thread=bytes(thread), **changes)


def opened(machine: Machine, symbols: Path, dump: MinidumpScene) -> Opened:
    add_isf(symbols, isf(machine))
    return Opened(write_minidump(dump))


def head_of(machine: Machine) -> int:
    return machine.base + RVAS["PsActiveProcessHead"]


def links_in(machine: Machine, *links: int) -> bytes:
    return b"".join(struct.pack(machine.pointer, each) for each in links)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_list_of_the_crashing_process(machine: Machine, symbols: Path) -> None:
    """Where the dump lacks PsActiveProcessHead, it leads to the dump's copy of the process, whose bytes stay."""
    found = opened(machine, symbols, scene(machine))
    head, size = head_of(machine), machine.pointer_size
    assert found.pointer(machine, head) == found.pointer(machine, head + size) == machine.process + LINKS
    assert found.virtual.read(machine.process, PROCESS_SIZE) == b"e" * PROCESS_SIZE
    assert "PsActiveProcessHead" in found.physical.made_up


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("pid", "name"), [(4, b"System"), (668, b"(not in dump)")], ids=["System", "another"])
def test_the_process_of_an_attached_thread(machine: Machine, pid: int, name: bytes, symbols: Path) -> None:
    """A thread that is attached belongs to a process that the dump lacks: its address and ID are the thread's."""
    owner = machine.process + 0x10000
    found = opened(machine, symbols, scene(machine, owner=owner, pid=pid))
    head, size = head_of(machine), machine.pointer_size
    assert found.pointer(machine, head) == owner + LINKS
    assert found.pointer(machine, owner + LINKS) == machine.process + LINKS
    assert found.pointer(machine, owner + LINKS + size) == head
    assert found.pointer(machine, owner + PID) == pid
    assert found.virtual.read(owner + NAME, 15) == name.ljust(15, b"\0")
    assert found.pointer(machine, owner + PAGE_MAP) == found.physical.crash_header.directory_table_base
    with pytest.raises(exceptions.InvalidAddressException):
        found.virtual.read(owner + 0x70, 1)
    assert f"_EPROCESS {owner:#x} of PID {pid}" in found.physical.made_up


@pytest.mark.parametrize("machine", MACHINES)
def test_a_head_that_the_dump_has(machine: Machine, symbols: Path) -> None:
    """The head of the dump stays; the first process of the list, which is System, leads on to the crashing one."""
    first, last = machine.process + 0x20000, machine.process + 0x30000
    head = head_of(machine)
    memory = machine.scene().memory | {head: links_in(machine, first + LINKS, last + LINKS)}
    found = opened(machine, symbols, scene(machine, memory=memory))
    assert found.virtual.read(head, 2 * machine.pointer_size) == links_in(machine, first + LINKS, last + LINKS)
    assert found.pointer(machine, first + LINKS) == machine.process + LINKS
    assert found.pointer(machine, first + PID) == 4
    assert found.virtual.read(first + NAME, 7) == b"System\0"
    with pytest.raises(exceptions.InvalidAddressException):
        found.virtual.read(last + LINKS, 1)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_list_that_leads_to_the_process(machine: Machine, symbols: Path) -> None:
    """Nothing is made up where the dump's own head leads to the crashing process."""
    links = machine.process + LINKS
    memory = machine.scene().memory | {head_of(machine): links_in(machine, links, links)}
    found = opened(machine, symbols, scene(machine, memory=memory))
    made_up = " ".join(found.physical.made_up)
    assert "PsActiveProcessHead" not in made_up
    assert "_EPROCESS" not in made_up


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("where", ["itself", "nowhere", "user space", "misaligned", "end", "known"])
def test_a_head_that_leads_nowhere(machine: Machine, where: str, symbols: Path) -> None:
    """A head that cannot lead to a process of the kernel, or leads to memory of the dump, gets no process behind it."""
    head, top = head_of(machine), (1 << 8 * machine.pointer_size) - 8
    flink = {
        "itself": head,
        "nowhere": 0,
        "user space": 0x401000,
        "misaligned": machine.process + 0x20001,
        "end": top,
        "known": machine.stack,
    }[where]
    memory = machine.scene().memory | {head: links_in(machine, flink, flink)}
    found = opened(machine, symbols, scene(machine, memory=memory))
    assert "_EPROCESS" not in " ".join(found.physical.made_up)
    assert found.virtual.read(head, 2 * machine.pointer_size) == links_in(machine, flink, flink)
    with pytest.raises(exceptions.InvalidAddressException):
        found.virtual.read(0x401000, 1)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("owner", "pid"), [(0x401000, 4), (8, 4), (0, 4), (None, 0), (None, 3)])
def test_an_owner_that_is_none(machine: Machine, owner: int | None, pid: int, symbols: Path) -> None:
    """A thread whose process or ID is impossible, or an idle one, has no process made up."""
    found = opened(machine, symbols, scene(machine, owner=owner, pid=pid))
    assert "_EPROCESS" not in " ".join(found.physical.made_up)
    assert found.pointer(machine, head_of(machine)) == machine.process + LINKS


@pytest.mark.parametrize("machine", MACHINES)
def test_the_version_of_the_build(machine: Machine, symbols: Path) -> None:
    """NtMajorVersion and NtMinorVersion are those of the header's build; the uptime is the header's too."""
    made = scene(machine)
    made = replace(made, header={**made.header, "MinorVersion": 7601, "SystemUpTime": 0x1234567890})
    found = opened(machine, symbols, made)
    data = SHARED_DATA[machine.is_64bit]
    assert struct.unpack("<II", found.virtual.read(data + VERSION["NtMajorVersion"], 8)) == (6, 1)
    assert int.from_bytes(found.virtual.read(data + VERSION["InterruptTime"], 8), "little") == 0x1234567890
    # The optional header's MajorOperatingSystemVersion and MinorOperatingSystemVersion (winnt.h), which vol shows too.
    e_lfanew = int.from_bytes(found.virtual.read(machine.base + 0x3C, 4), "little")
    version = found.virtual.read(machine.base + e_lfanew + 24 + 40, 4)
    assert struct.unpack("<HH", version) == (6, 1)


def test_what_is_made_up_is_a_warning(symbols: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning names all that the file does not hold."""
    machine = Machine(True)
    with caplog.at_level(logging.WARNING):
        opened(machine, symbols, scene(machine, owner=machine.process + 0x10000, pid=4))
    (record,) = [each for each in caplog.records if "Made up" in each.message]
    for name in (
        "the kernel's image headers",
        "its PDB record",
        "2 entries of PsLoadedModuleList",
        "1 entry of MmUnloadedDrivers",
        "PsActiveProcessHead",
        "of PID 4",
        "NtMajorVersion",
        "SystemTime",
    ):
        assert name in record.message


def test_nothing_is_made_up_without_symbols(symbols: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without the kernel's symbol file nothing is made up, and there is no such warning."""
    (symbols / "other.json").write_text(json.dumps({}))
    with caplog.at_level(logging.WARNING):
        found = Opened(write_minidump(Machine(True).scene()))
    assert found.physical.made_up == ()
    assert not [each for each in caplog.records if "Made up" in each.message]
