"""Failures that damaged images have brought to light, each by name, so that none comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.dumps.kernel_match import KernelMatch
from volatility3.plugins.windows.apcaudit.dumps.minidump_layer import unmatched_message
from volatility3.plugins.windows.apcaudit.formats.triage import parse_minidump
from volatility3.plugins.windows.apcaudit.image import Memory

from apcaudit.synthetic import adversaries
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Apc, Driver, Thread
from apcaudit.synthetic.scenes.common import FLTMGR, HAL
from fuzz.findings import unprintable
from fuzz.subject import Subject
from fuzz.symbol_file import SymbolFileSubject
from tests.minidump_builder import DriverEntry, write_minidump
from tests.minidump_machine import Machine
from tests.views_image import audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])


def test_pages_beyond_the_end_cost_one_read_each() -> None:
    """A page that is mapped but lies beyond the file's end is one failed read, not one for each of its bytes."""
    subject = Subject("xp-sp3-x86")
    made = subject.mutation(20261122, 462)
    subject.apply(made)
    assert subject.after(scan=False) is not None
    assert subject.reads < 5_000


def test_a_page_that_the_file_ends_in(tmp_path: Path) -> None:
    """Of the page that a cut file ends in, what is there is read, and the rest is the hole."""
    threads = audited("10-19041-x64", tmp_path, (Thread(0x400),))
    memory: Memory = threads.audit.kernel.memory
    end = memory.physical_layer.maximum_address + 1
    body = threads.image.address_of[0x400]
    whole, holes = memory.read_sparse(body, 0x20)
    assert (len(whole), holes) == (0x20, ())
    assert memory.read_physical(end - 1, 2) is None


@KERNELS
def test_a_cid_table_that_cannot_be_read_is_noted(kernel: str, tmp_path: Path) -> None:
    """Where the CID table is gone, threads that only it holds may be missing, and a note says so."""

    def lose(image: Image) -> None:
        image.memory.write_pointer(image.kernel.address("PspCidTable"), 0)

    found = audited(kernel, tmp_path, (Thread(0x400),), changes=(lose,))
    assert any("PspCidTable was not read whole" in note for note in found.audit.notes)


@KERNELS
def test_a_module_list_that_is_cut_is_noted(kernel: str, tmp_path: Path) -> None:
    """Where the module list does not close, an address in no module is of unknown backing, and a note says so."""

    def cut(image: Image) -> None:
        image.memory.write_pointer(image.address_of["module:ntoskrnl.exe"], 0)

    found = audited(kernel, tmp_path, (Thread(0x400),), changes=(cut,))
    assert any("PsLoadedModuleList was not read whole" in note for note in found.audit.notes)


@KERNELS
def test_a_module_skipped_one_way_is_still_a_module(kernel: str, tmp_path: Path) -> None:
    """A module that only the Flinks of the module list pass by backs its code: the Blinks lead to it."""

    def skip(image: Image) -> None:
        image.memory.write_pointer(image.address_of["module:hal.dll"], image.kernel.address("PsLoadedModuleList"))

    found = audited(kernel, tmp_path, (Thread(0x400, start="fltMgr!FltSendMessage"),), changes=(skip,))
    assert found.codes(0x400) == {}


@KERNELS
def test_a_module_entry_without_an_image(kernel: str, tmp_path: Path) -> None:
    """An entry of the module list for memory that holds no image does not silence a thread that starts there."""

    def wipe(image: Image) -> None:
        image.write(image.address_of["driver:fltMgr.sys"], bytes(0x400))

    found = audited(kernel, tmp_path, (Thread(0x400, start="fltMgr!FltSendMessage"),), changes=(wipe,))
    assert found.codes(0x400) == {"module-conflict": "medium"}
    assert any("where no image begins" in note for note in found.audit.notes)


@KERNELS
def test_a_thread_list_tied_into_a_kapc(kernel: str, tmp_path: Path) -> None:
    """What a thread list leads to is no thread because of that: its would-be list head ends no other thread's list."""

    def tie(image: Image) -> None:
        offset = image.memory.offset
        head = offset("_ETHREAD", "Tcb.ApcState.ApcListHead[0]")
        entry = image.address_of["apc:1028:kernel_apcs:0"] + offset("_KAPC", "ApcListEntry")
        links = offset("_ETHREAD", "ThreadListEntry")
        image.memory.write_pointer(image.address_of[0x400] + links, entry - head + links)

    running = {"state": "Running", "wait_reason": "Executive", "kernel_apc_pending": True}
    threads = (Thread(0x400), Thread(0x404, kernel_apcs=(Apc("fltMgr!FltSendMessage"),), **running))
    found = audited(kernel, tmp_path, threads, changes=(tie,))
    assert found.codes(0x404) == {}
    assert len(found.of[0x404].thread.queues[0].apcs) == 1


@KERNELS
def test_own_heads_without_the_process(kernel: str, tmp_path: Path) -> None:
    """A list that leads to the other head of its own thread is broken there, also where the process is gone."""

    def hang_on_both(image: Image) -> None:
        user = image.address_of[0x404] + image.memory.offset("_ETHREAD", "Tcb.ApcState.ApcListHead[1]")
        entry = image.address_of["apc:1028:kernel_apcs:0"] + image.memory.offset("_KAPC", "ApcListEntry")
        image.memory.link(user, [entry])

    def lose(image: Image) -> None:
        image.memory.space.unmap(image.address_of["process:System"] & ~0xFFF)

    running = {"state": "Running", "wait_reason": "Executive", "kernel_apc_pending": True}
    threads = (Thread(0x400), Thread(0x404, kernel_apcs=(Apc("fltMgr!FltSendMessage"),), **running))
    for changes in ((hang_on_both,), (hang_on_both, lose)):
        found = audited(kernel, tmp_path, threads, changes=changes)
        assert "list-broken" in found.codes(0x404)
        assert "bad-object" not in found.codes(0x404)


@KERNELS
@pytest.mark.parametrize("loss", ["the page is gone", "another PID"])
def test_a_thread_of_system_without_its_process(kernel: str, loss: str, tmp_path: Path) -> None:
    """A thread of System whose flag was cleared starts nowhere also where System itself is damaged."""

    def clear(image: Image) -> None:
        memory, body = image.memory, image.address_of[0x400]
        for path in ("Tcb.SystemThread", "SystemThread"):
            memory.write(body, "_ETHREAD", path, 0, optional=True)

    def lose(image: Image) -> None:
        process = image.address_of["process:System"]
        if loss == "another PID":
            image.memory.write(process, "_EPROCESS", "UniqueProcessId", 0x4444)
        else:
            image.memory.space.unmap(process & ~0xFFF)

    threads = (Thread(0x400, start="Ghost+0x1100"),)
    drivers = (HAL, FLTMGR, Driver("Ghost.sys", listed=False, driver_object=False))
    for changes in ((clear,), (clear, lose)):
        found = audited(kernel, tmp_path, threads, changes=changes, drivers=drivers)
        assert found.codes(0x400).get("orphan-start") == "high"


@KERNELS
def test_kernel_space_that_is_said_to_begin_higher(kernel: str, tmp_path: Path) -> None:
    """MmSystemRangeStart amid the pool makes no KAPC one of user space, and the scan loses no thread."""

    def raise_it(image: Image) -> None:
        start = (image.address_of["process:System"] + 0x100000) & ~0xFFFF
        image.memory.write_pointer(image.kernel.address("MmSystemRangeStart"), start)

    running = {"state": "Running", "wait_reason": "Executive", "kernel_apc_pending": True}
    hidden = Thread(0x404, in_thread_list=False, in_cid_table=False)
    threads = (Thread(0x400, kernel_apcs=(Apc("fltMgr!FltSendMessage"),), **running), hidden)
    found = audited(kernel, tmp_path, threads, changes=(raise_it,), scan=True)
    assert found.codes(0x400) == {}
    assert found.codes(0x404) == {"hidden-thread": "high"}


@KERNELS
def test_headers_that_cannot_be_read_are_noted(kernel: str, tmp_path: Path) -> None:
    """Where the page with a driver's headers is gone, nothing contradicts its entry any more, and a note says so."""

    def enlarge(image: Image) -> None:
        base = image.address_of["driver:fltMgr.sys"]
        adversaries.claim_range(image, "fltMgr.sys", base, FLTMGR.size + 0x3000)

    def lose(image: Image) -> None:
        image.memory.space.unmap(image.address_of["driver:fltMgr.sys"])

    def start_behind(image: Image) -> None:
        end = image.address_of["driver:fltMgr.sys"] + FLTMGR.size
        image.memory.write(image.address_of[0x400], "_ETHREAD", "StartAddress", end + 0x10)

    found = audited(kernel, tmp_path, (Thread(0x400),), changes=(enlarge, start_behind))
    assert found.codes(0x400) == {"module-conflict": "medium", "orphan-start": "high"}
    found = audited(kernel, tmp_path, (Thread(0x400),), changes=(enlarge, start_behind, lose))
    assert found.codes(0x400) == {}
    assert any("the headers of fltMgr cannot be read" in note for note in found.audit.notes)


LIES = [
    ("user_types", "_HANDLE_TABLE_ENTRY", "size", -8),
    ("user_types", "_HANDLE_TABLE_ENTRY", "size", 1 << 40),
    ("user_types", "_POOL_HEADER", "size", 1),
    ("base_types", "unsigned long", "size", 8),
    ("base_types", "unsigned short", "size", 8),
    ("base_types", "unsigned short", "size", 16),
    ("base_types", "unsigned char", "size", 0),
    ("base_types", "pointer", "size", 2),
    ("user_types", "_KAPC", "size", 8),
    ("user_types", "_KAPC", "size", 0x1000),
    ("user_types", "_ETHREAD", "size", 1 << 40),
    ("user_types", "_LIST_ENTRY", "fields", {}),
    (
        "user_types",
        "_KAPC_STATE",
        "fields",
        {"ApcListHead": {"offset": 0, "type": {"kind": "struct", "name": "_KAPC"}}},
    ),
]


@pytest.fixture(scope="module")
def subjects() -> dict[str, SymbolFileSubject]:
    """Machines of two kernels, whose symbol files are changed."""
    return {kernel: SymbolFileSubject(kernel) for kernel in ("xp-sp3-x86", "10-19041-x64")}


def test_symbol_files_that_lie(subjects: dict[str, SymbolFileSubject]) -> None:
    """What a symbol file says about sizes and kinds ends no audit otherwise than with rows or one clear error."""
    for subject in subjects.values():
        for *path, value in LIES:
            subject.lie(*path, value=value)
            result = subject.after(scan=True)
            assert result is None or unprintable(result) is None, path
        # The same machine by a file that does not lie.
        subject.lie("user_types", "_KAPC", "kind", value="struct")
        assert subject.after(scan=True) == subject.before(scan=True)


@pytest.mark.parametrize("part", ["symbols", "user_types"])
def test_a_symbol_file_of_another_kernel(part: str, subjects: dict[str, SymbolFileSubject]) -> None:
    """Addresses or structures of another kernel under this one's name: rows or one clear error, within bounds."""
    other, subject = subjects.values()
    subject.lie(part, value=other.document[part])
    result = subject.after(scan=True)
    assert result is None or unprintable(result) is None


def test_the_name_of_a_minidumps_kernel_is_only_text() -> None:
    """The kernel's name out of a minidump reaches the log without what a terminal acts on."""
    machine = Machine(True)
    scene = machine.scene()
    driver = DriverEntry("\\\x1b[2Jnt\u202eexe.sys", machine.base, 0x214000, 1, 2)
    data = write_minidump(type(scene)(**{**_fields(scene), "drivers": (driver,)}))
    dump = parse_minidump(lambda offset, size: data[offset : offset + size], len(data))
    text = unmatched_message(dump, KernelMatch(None, (), (), 0))
    assert text.isprintable()
    assert "\\x1b[2Jnt\\u202eexe.sys" in text


def _fields(scene: object) -> dict[str, object]:
    return {name: getattr(scene, name) for name in type(scene).__dataclass_fields__}  # type: ignore[attr-defined]
