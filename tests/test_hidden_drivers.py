"""Code in no listed module: the image that holds it, its name, and what the module list says falsely."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.model import Backing
from volatility3.plugins.windows.apcaudit.signatures.options import RuleOptions
from volatility3.plugins.windows.apcaudit.windows import PAGE_SIZE

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Driver, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL
from tests.driver_objects import unlisted_driver
from tests.views_image import audited
from tests.volatility import CACHE, REPOSITORY_SYMBOLS, rows

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "10-19041-x86"])

GHOST = Driver("Ghost.sys", size=0x9000, exports={"GhostMain": 0x1400}, listed=False, driver_object=False)
# Without exports: the PDB record names it.
SPOOK = Driver("Spook.sys", size=0x9000, listed=False, driver_object=False)
PLAIN = Driver("Plain.sys", size=0x9000)


def _wipe_header(name: str) -> Callable[[Image], None]:
    def change(image: Image) -> None:
        image.memory.space.write(image.address_of[f"driver:{name}"], bytes(0x400))

    return change


def _cut_list(image: Image) -> None:
    image.memory.write_pointer(image.address_of["module:ntoskrnl.exe"], 0)


@KERNELS
def test_a_start_in_a_hidden_image(kernel: str, tmp_path: Path) -> None:
    """The image is found from the address alone, named by its exports or PDB, and is an orphan start all the same."""
    threads = (
        Thread(8, start="Ghost!GhostMain+0x10"),
        Thread(12, start="Spook+0x1230"),
        Thread(16, start="Plain+0x1230", kernel_apc_pending=True),
    )
    found = audited(kernel, tmp_path, threads, drivers=(HAL, FLTMGR, GHOST, SPOOK, PLAIN))
    starts = {tid: found.of[tid].start for tid in (8, 12, 16)}
    assert {tid: start and start.text for tid, start in starts.items()} == {
        8: "Ghost!GhostMain+0x10 (hidden)",
        12: "Spook+0x1230 (.text) (hidden)",
        16: "Plain+0x1230 (.text)",
    }
    assert found.codes(8) == found.codes(12) == {"orphan-start": "high"}
    assert "Ghost!GhostMain+0x10 (hidden)" in found.explanation(8, "orphan-start")
    assert "orphan-start" not in found.codes(16)


@KERNELS
def test_a_routine_in_a_hidden_image(kernel: str, tmp_path: Path) -> None:
    """An APC's routine there is named too, and stays a routine in no listed module."""
    thread = Thread(8, kernel_apc_disable=-1, kernel_apcs=(Apc("Ghost!GhostMain", normal_routine="Ghost!GhostMain"),))
    found = audited(kernel, tmp_path, (thread,), drivers=(HAL, FLTMGR, GHOST))
    apc = found.of[8].thread.queues[0].apcs[0]
    assert (apc.kernel_routine and apc.kernel_routine.text) == "Ghost!GhostMain (hidden)"
    assert found.codes(8)["routine-unbacked"] == "high"


@pytest.mark.parametrize(("cut", "hidden"), [(False, True), (True, None)])
@KERNELS
def test_the_document_has_what_its_code_lies_in(kernel: str, cut: bool, hidden: bool | None, tmp_path: Path) -> None:
    """The image facts list it behind the modules: hidden, or unknown where the list was not read whole."""
    changes = (_cut_list,) if cut else ()
    threads = (Thread(8, start="Ghost!GhostMain+0x10"),)
    found = audited(kernel, tmp_path, threads, drivers=(HAL, FLTMGR, GHOST, SPOOK), changes=changes)
    drivers = found.audit.image.drivers
    assert [(each.name, each.hidden) for each in drivers if each.hidden is not False] == [("Ghost.sys", hidden)]
    assert drivers[-1].base == found.image.address_of["driver:Ghost.sys"]
    assert {"ntoskrnl.exe", "hal.dll", "fltMgr.sys"} == {each.name for each in drivers if each.hidden is False}


@KERNELS
def test_no_image_at_all(kernel: str, tmp_path: Path) -> None:
    """An address that no image holds has no module, whatever listed modules lie below it."""
    thread = Thread(8, start="Plain+0x9800")
    found = audited(kernel, tmp_path, (thread,), drivers=(HAL, FLTMGR, PLAIN))
    start = found.of[8].thread.start
    assert start is not None
    assert (start.module, start.backing) == (None, Backing.NOTHING)
    assert start.text.startswith("0x")


@KERNELS
def test_a_wiped_header(kernel: str, tmp_path: Path) -> None:
    """An image whose header has been wiped is none: nothing is made up."""
    threads = (Thread(8, start="Ghost!GhostMain"),)
    found = audited(kernel, tmp_path, threads, drivers=(HAL, FLTMGR, GHOST), changes=(_wipe_header("Ghost.sys"),))
    start = found.of[8].thread.start
    assert start is not None
    assert start.module is None


@KERNELS
def test_data_of_a_hidden_image(kernel: str, tmp_path: Path) -> None:
    """What lies in a section that cannot be executed is no code of the image: a file's copy has such headers too."""
    found = audited(kernel, tmp_path, (Thread(8, start="Ghost+0x7100"),), drivers=(HAL, FLTMGR, GHOST))
    start = found.of[8].thread.start
    assert start is not None
    assert start.module is None


def _rewrite(name: str, member: str, value: Callable[[Image], int]) -> Callable[[Image], None]:
    """Rewrite what a module's entry says."""

    def change(image: Image) -> None:
        structure = "_LDR_DATA_TABLE_ENTRY"
        if image.memory.layout.has_type("_KLDR_DATA_TABLE_ENTRY"):
            structure = "_KLDR_DATA_TABLE_ENTRY"
        image.memory.write(image.address_of[f"module:{name}"], structure, member, value(image))

    return change


def _claim(name: str, size: int) -> Callable[[Image], None]:
    """Rewrite what a module's entry says of its size."""
    return _rewrite(name, "SizeOfImage", lambda _: size)


def _move(name: str, before: str) -> Callable[[Image], None]:
    """Rewrite where a module's entry says that it lies: two pages before another image, where nothing is mapped."""

    def base(image: Image) -> int:
        found = image.address_of[f"driver:{before}"] - 2 * PAGE_SIZE
        assert not image.memory.space.is_mapped(found)
        return found

    return _rewrite(name, "DllBase", base)


@KERNELS
def test_an_entry_that_moves_before_a_hidden_image(kernel: str, tmp_path: Path) -> None:
    """An entry that claims a hidden image from before its header backs nothing of it."""
    threads = (Thread(8, start="Ghost!GhostMain"), Thread(12, start="Plain+0x1230"))
    changes = [_move("disk.sys", "Ghost.sys")]
    found = audited(kernel, tmp_path, threads, drivers=(HAL, FLTMGR, GHOST, PLAIN, DISK), changes=changes)
    assert found.codes(8) == {"module-conflict": "high"}
    assert found.codes(12) == {}


@KERNELS
def test_a_module_whose_header_is_paged_out(kernel: str, tmp_path: Path) -> None:
    """Of a listed module whose header cannot be read nothing speaks against its code."""
    threads = (Thread(8, start="Plain+0x1230"),)

    def page_out(image: Image) -> None:
        image.memory.space.unmap(image.address_of["driver:Plain.sys"])

    found = audited(kernel, tmp_path, threads, drivers=(HAL, FLTMGR, GHOST, PLAIN, DISK), changes=[page_out])
    assert found.codes(8) == {}


@KERNELS
def test_an_entry_that_claims_more_than_its_image(kernel: str, tmp_path: Path) -> None:
    """What an entry claims beyond its image's own SizeOfImage is nobody's, and the contradiction is a finding."""
    threads = (Thread(8, start="Plain+0x9800"), Thread(12, start="Plain+0x1230"))
    found = audited(
        kernel, tmp_path, threads, drivers=(HAL, FLTMGR, PLAIN, DISK), changes=(_claim("Plain.sys", 0xB000),)
    )
    assert found.codes(8) == {"module-conflict": "medium", "orphan-start": "high"}
    assert found.codes(12) == {}
    assert any("Plain claims 0xb000 bytes" in note for note in found.audit.notes)


@KERNELS
def test_an_entry_that_spans_others(kernel: str, tmp_path: Path) -> None:
    """Inside of an entry that spans other modules these are believed; what only it claims is doubted."""
    span = 0x4000000
    threads = (Thread(8, start="disk+0x1230"), Thread(12, start="Plain+0x9800"), Thread(16))
    changes = (_claim("Plain.sys", span), _wipe_header("Plain.sys"))
    found = audited(kernel, tmp_path, threads, drivers=(HAL, FLTMGR, PLAIN, DISK), changes=changes)
    disk = found.of[8].start
    assert (disk and disk.module, found.codes(8)) == ("disk", {})
    assert found.codes(12) == {"module-conflict": "medium"}
    kernel_start = found.of[16].start
    assert (kernel_start and kernel_start.module, found.codes(16)) == ("nt", {})
    assert any("the entry of Plain claims" in note for note in found.audit.notes)


def _describe(name: str, member: str, value: int) -> Callable[[Image], None]:
    """Rewrite a pointer of a module's entry."""

    def change(image: Image) -> None:
        structure = "_LDR_DATA_TABLE_ENTRY"
        if image.memory.layout.has_type("_KLDR_DATA_TABLE_ENTRY"):
            structure = "_KLDR_DATA_TABLE_ENTRY"
        image.memory.write(image.address_of[f"module:{name}"], structure, member, value)

    return change


def _everything_at_once() -> tuple[Thread, ...]:
    """One thread for each finding that leans on the list of modules, and one in the driver whose entry is altered."""
    return (
        Thread(8, start="Ghost!GhostMain"),
        Thread(12, kernel_apc_disable=-1, kernel_apcs=(Apc("Ghost!GhostMain"),)),
        Thread(16, kernel_apc_disable=-1, kernel_apcs=(Apc("Plain+0x9800"),)),
        Thread(20, start="Plain+0x9800"),
        Thread(24, start="disk+0x1230", kernel_apc_pending=True),
        Thread(28, start="Plain+0x1230"),
        Thread(32),
    )


@pytest.mark.parametrize(
    ("size", "wiped"),
    [(0, False), (0x10001000, False), (0x20000000, False), (0xFFFFFFFF, False), (0, True), (0xFFFFFFFF, True)],
)
@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])
def test_an_entry_of_a_size_that_no_driver_has(kernel: str, size: int, wiped: bool, tmp_path: Path) -> None:
    """Only what the entry could hold becomes doubtful; it is a finding and a note, and every other finding stays."""
    changes = [_claim("Plain.sys", size), *([_wipe_header("Plain.sys")] if wiped else [])]
    # What such an entry has YARA read is the most that a driver is read of, whatever its size beyond that.
    rules = RuleOptions(defaults=size == 0xFFFFFFFF)
    drivers = (HAL, FLTMGR, GHOST, PLAIN, DISK)
    found = audited(kernel, tmp_path, _everything_at_once(), drivers=drivers, changes=changes, rules=rules)
    assert found.codes(8) == {"orphan-start": "high"}
    assert found.codes(12)["routine-unbacked"] == "high"
    # What lies behind the image, which the entry may claim, is told by one finding or the other.
    assert set(found.codes(16)) & {"routine-unbacked", "module-conflict"}
    assert set(found.codes(20)) & {"orphan-start", "module-conflict"}
    assert found.codes(24) == {"pending-empty": "medium"}
    assert found.codes(28) == {"module-conflict": "high"}
    assert found.codes(32) == {}
    base = found.image.address_of["driver:Plain.sys"]
    assert any(f"the entry of Plain claims {size:#x} bytes from {base:#x} on" in note for note in found.audit.notes)
    assert found.audit.kernel.drivers.complete


@pytest.mark.parametrize("base", [0, 0x401000], ids=hex)
@KERNELS
def test_an_entry_whose_base_is_none(kernel: str, base: int, tmp_path: Path) -> None:
    """What the image of its name or size holds is doubtful; every other finding stays."""
    drivers = (HAL, FLTMGR, GHOST, DISK, replace(PLAIN, size=0xB000))
    changes = (_describe("Plain.sys", "DllBase", base),)
    found = audited(kernel, tmp_path, _everything_at_once(), drivers=drivers, changes=changes)
    assert found.codes(8) == {"orphan-start": "high"}
    assert found.codes(12)["routine-unbacked"] == "high"
    assert found.codes(28) == {"module-conflict": "high"}
    assert found.codes(32) == {}
    assert any(f"the entry of Plain says that its 0xb000 bytes lie at {base:#x}" in note for note in found.audit.notes)


@KERNELS
def test_an_entry_moved_over_another_image(kernel: str, tmp_path: Path) -> None:
    """An entry whose image nobody can read does not take over the image that another entry has there."""

    def move(image: Image) -> None:
        base = image.address_of["driver:disk.sys"] - 0x1000
        assert not image.memory.space.is_mapped(base)
        _describe("Plain.sys", "DllBase", base)(image)

    threads = (Thread(8, start="disk+0x1230"), Thread(12), Thread(16, start="fltmgr+0x1230"))
    drivers = (HAL, FLTMGR, DISK, replace(PLAIN, size=DISK.size))
    found = audited(kernel, tmp_path, threads, drivers=drivers, changes=(move,))
    assert found.codes(8) == {"module-conflict": "high"}
    assert (found.codes(12), found.codes(16)) == ({}, {})
    assert any(note.startswith("the headers of Plain cannot be read") for note in found.audit.notes)


@KERNELS
def test_the_kernels_own_entry_with_a_size_of_none(kernel: str, tmp_path: Path) -> None:
    """The kernel has been found without its entry: what starts in it is not doubted, and a note tells of the entry."""
    found = audited(
        kernel,
        tmp_path,
        _everything_at_once(),
        drivers=(HAL, FLTMGR, GHOST, DISK, PLAIN),
        changes=(_claim("ntoskrnl.exe", 0),),
    )
    assert found.codes(32) == {}
    assert found.codes(8) == {"orphan-start": "high"}
    assert any("the entry of nt claims 0x0 bytes" in note for note in found.audit.notes)


@pytest.mark.parametrize(
    ("guid", "pdb"),
    [("5278AFF86C341677D7D7835C85B7B844-1", "ntkrnlmp.pdb"), ("30B5FB31AE7E4ACAABA750AA241FF331-1", "ntkrnlpa.pdb")],
)
def test_a_driver_object_names_an_image_without_header(guid: str, pdb: str, shared: Path, tmp_path: Path) -> None:
    r"""An image whose header is wiped is named by the driver object in \Driver that says where it lies."""
    path = shared / "symbols" / "windows" / pdb / f"{guid}.json.xz"
    dump, symbols, loaded = unlisted_driver(path, tmp_path, changes=(_wipe_header("Ghost.sys"),))
    found = rows(dump, cache=CACHE, symbols=(symbols,), kernel=loaded)
    assert [(row["TID"], row["StartRoutine"], row["Findings"]) for row in found] == [
        (8, "Ghost+0x1230 (hidden)", "orphan-start")
    ]


def test_version_resource_names_an_image() -> None:
    """An image without exports and PDB record is named by its version resource's OriginalFilename."""
    from volatility3.plugins.windows.apcaudit.formats.pe import Header, name_of

    data = bytearray(0x2000)
    at = 0x1000
    # Type 16, name 1, language 0x409; each directory has one entry.
    for level, identifier in enumerate((16, 1, 0x409)):
        struct.pack_into("<HH", data, at + 0x20 * level + 12, 0, 1)
        below = 0x80000000 | 0x20 * (level + 1) if level < 2 else 0x60
        struct.pack_into("<II", data, at + 0x20 * level + 16, identifier, below)
    struct.pack_into("<II", data, at + 0x60, 0x1100, 0x200)
    key = "OriginalFilename\0".encode("utf-16-le")
    data[0x1100 + 6 : 0x1100 + 6 + len(key)] = key
    value = 0x1100 + (6 + len(key) + 3) // 4 * 4
    name = "specter.sys\0".encode("utf-16-le")
    data[value : value + len(name)] = name

    def read(rva: int, length: int) -> bytes | None:
        return bytes(data[rva : rva + length]) if rva + length <= len(data) else None

    header = Header(0x8664, 0x2000, (), ((0, 0), (0, 0), (0x1000, 0x200)))
    assert name_of(read, header) == "specter.sys"


@KERNELS
def test_names_by_a_pdb_that_vol_has(kernel: str, tmp_path: Path) -> None:
    """Where vol has a symbol file of the driver's PDB its names serve, also for code that is not exported."""
    driver = Driver("Plain.sys", size=0x9000, exports={"Exported": 0x1400})
    processes = (Process("System", 4, (Thread(8, start="Plain+0x1730", kernel_apc_pending=True),), parent=0),)
    image = build(Scene("pdb", "a driver's PDB", kernel, processes, (HAL, FLTMGR, driver)), load_kernel(kernel))
    dump = tmp_path / "pdb.dmp"
    image.write_dump(dump)
    base = image.address_of["driver:Plain.sys"]
    data = image.read(base, driver.size - 0x1000)
    at = data.index(b"RSDS")
    guid, age = (
        uuid.UUID(bytes_le=data[at + 4 : at + 20]).hex.upper(),
        int.from_bytes(data[at + 20 : at + 24], "little"),
    )
    assert rows(dump, cache=CACHE, kernel=image.kernel)[0]["StartRoutine"] == "Plain!Exported+0x330"
    folder = tmp_path / "symbols" / "windows" / "Plain.pdb"
    folder.mkdir(parents=True)
    table = {
        "metadata": {
            "format": "6.2.0",
            "producer": {"datetime": "2026-01-01T00:00:00", "name": "test", "version": "1.0"},
            "windows": {"pdb": {"GUID": guid, "age": age, "database": "Plain.pdb", "machine_type": 332}},
        },
        "base_types": {},
        "enums": {},
        "user_types": {},
        "symbols": {"PlainWorker": {"address": 0x1700}, "Exported": {"address": 0x1400}},
    }
    (folder / f"{guid}-{age}.json").write_text(json.dumps(table), encoding="ascii")
    symbols = (tmp_path / "symbols", REPOSITORY_SYMBOLS)
    (row,) = rows(dump, cache=tmp_path / "cache-2", symbols=symbols)
    assert row["StartRoutine"] == "Plain!PlainWorker+0x30"
