"""What the scan takes for a thread: every one that there is, and nothing of what lies in ordinary pool."""

from __future__ import annotations

from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.threads.kernel_views import read_processors

from apcaudit.synthetic import damage
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import OWN
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.scene import Process, Thread
from fuzz.symbol_file import SymbolFileSubject
from tests.views_image import Change, audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "10-19041-x86"])

CALM, DEEP, ENDED = 8, 16, 20
OWNERS = ("Tcb.Process", "ThreadsProcess", "Tcb.ApcState.Process")
RINGS = (
    "Tcb.Header.WaitListHead",
    "Tcb.MutantListHead",
    "Tcb.ApcState.ApcListHead[0]",
    "Tcb.ApcState.ApcListHead[1]",
    "ActiveTimerListHead",
    "IrpList",
)
BACKS = ("Tcb.SchedulerApc.Thread", "Tcb.SuspendApc.Thread", *(f"Tcb.WaitBlock[{index}].Thread" for index in range(4)))


def _only_scanned(tid: int = DEEP, **more: object) -> Thread:
    return Thread(tid, in_thread_list=False, in_cid_table=False, **more)  # type: ignore[arg-type]


def _write(path: str, value: int, tid: int = DEEP) -> Change:
    def change(image: Image) -> None:
        image.memory.write(image.address_of[tid], "_ETHREAD", path, value, optional=True)

    return change


def _addresses(threads: list[int], image: Image) -> set[int]:
    return {image.address_of[tid] for tid in threads}


@pytest.mark.parametrize("kernel", sorted(OWN))
def test_garbage_is_no_thread(kernel: str, tmp_path: Path) -> None:
    """What ordinary pool holds is no thread and worth no note; threads that nothing else holds are found beside it."""
    threads = (Thread(CALM), _only_scanned(), _only_scanned(ENDED, state="Terminated", terminated=True))
    found = audited(kernel, tmp_path, threads, scan=True)
    idle = {each.idle for each in read_processors(found.audit.kernel)}
    of_rows = {each.thread.address for each in found.of.values()}
    assert of_rows - idle == _addresses([CALM, DEEP, ENDED], found.image)
    assert {tid: found.views(tid) for tid in (CALM, DEEP, ENDED)} == {
        CALM: "cid+list+scan",
        DEEP: "scan",
        ENDED: "scan",
    }
    assert found.audit.notes == ()


@KERNELS
def test_a_thread_of_no_process(kernel: str, tmp_path: Path) -> None:
    """What would be a thread if it named a process is counted in one note, and is no row."""

    def misname(image: Image) -> None:
        for path in OWNERS:
            image.memory.write(image.address_of[DEEP], "_ETHREAD", path, image.address_of[DEEP] & -PAGE, optional=True)

    found = audited(kernel, tmp_path, (Thread(CALM), _only_scanned()), changes=(misname,), scan=True)
    assert DEEP not in found.of
    # A copy of it as it was before lies on a page that its address does not lead to.
    assert [note for note in found.audit.notes if "process" in note] == [
        "1 candidates of the scan name no process and are left out"
    ]


@KERNELS
def test_ended_thread_of_an_ended_process(kernel: str, tmp_path: Path) -> None:
    """A terminated thread of a process that no list holds is found as long as the process object is there."""
    gone = Process("gone.exe", 600, (_only_scanned(604, state="Terminated", terminated=True),), in_process_list=False)
    found = audited(kernel, tmp_path, (Thread(CALM),), others=(gone,), scan=True)
    assert found.views(604) == "scan"
    assert found.of[604].thread.owner is not None
    assert found.of[604].thread.owner.name == "gone.exe"


@KERNELS
def test_wiped_dispatcher_header(kernel: str, tmp_path: Path) -> None:
    """A thread with another Type in its header is found by its pool tag, unless the block is too small for one."""

    def shrink(image: Image) -> None:
        memory = image.memory
        block = image.address_of[DEEP] - memory.offset("_OBJECT_HEADER", "Body") - memory.size("_POOL_HEADER")
        memory.write(block, "_POOL_HEADER", "BlockSize", 6)

    wiped = _write("Tcb.Header.Type", 0)
    threads = (Thread(CALM), _only_scanned())
    assert audited(kernel, tmp_path, threads, changes=(wiped,), scan=True).views(DEEP) == "scan"
    assert DEEP not in audited(kernel, tmp_path, threads, changes=(wiped, shrink), scan=True).of


def _nothing_own(image: Image) -> None:
    """Let nothing in the thread point to itself, as if every one of its lists were in use."""
    memory, body = image.memory, image.address_of[DEEP]
    for path in RINGS:
        memory.write(body, "_ETHREAD", f"{path}.Flink", body + 0x100000)
        memory.write(body, "_ETHREAD", f"{path}.Blink", body + 0x200000)
    for path in BACKS:
        memory.write(body, "_ETHREAD", path, 0, optional=True)


def _no_headers(image: Image) -> None:
    image.write(image.address_of[DEEP] - 0x40, bytes(0x40))


def _no_process_type(image: Image) -> None:
    image.memory.write(image.address_of["process:System"], "_EPROCESS", "Pcb.Header.Type", 0)


@KERNELS
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((_no_headers,), id="pool and object header wiped"),
        pytest.param((lambda image: damage.overwrite_pool_tag(image, image.address_of[DEEP]),), id="pool tag changed"),
        pytest.param((_nothing_own, _no_headers), id="nothing points to itself"),
        pytest.param((_write("Tcb.ApcStateIndex", 7),), id="ApcStateIndex wrong"),
        pytest.param((_write("Tcb.Process", 0), _write("ThreadsProcess", 0)), id="its process cleared"),
        pytest.param((_write("Tcb.Process", 0x360065), _write("ThreadsProcess", 0x360065)), id="its process wrong"),
        pytest.param((_write("Cid.UniqueProcess", 0x7777),), id="another PID"),
        pytest.param((_no_process_type,), id="the process's Type wiped"),
    ],
)
def test_a_thread_that_hides(kernel: str, changes: tuple[Change, ...], tmp_path: Path) -> None:
    """A hidden thread is found whatever single thing was overwritten that the kernel does not need to run it."""
    found = audited(kernel, tmp_path, (Thread(CALM), _only_scanned()), changes=changes, scan=True)
    assert found.views(DEEP) == "scan"
    assert found.codes(DEEP)["hidden-thread"] == "high"


@KERNELS
def test_a_thread_that_claims_the_ids_of_another(kernel: str, tmp_path: Path) -> None:
    """A hidden thread with a listed thread's IDs is a thread of its own, and hidden."""
    change = _write("Cid.UniqueThread", CALM)
    found = audited(kernel, tmp_path, (_only_scanned(), Thread(CALM)), changes=(change,), scan=True)
    again = Audit(*found.source, scan_memory=True).run(Selection(clean_too=True))
    rows = {each.thread.address: each for each in again}
    codes = {finding.code for finding in rows[found.image.address_of[DEEP]].findings}
    assert codes == {"hidden-thread"}
    assert rows[found.image.address_of[CALM]].findings == ()


@KERNELS
def test_a_thread_on_two_pages(kernel: str, tmp_path: Path) -> None:
    """A thread's second page is read where it is mapped, not where the first one's neighbour lies in the file."""

    def move(image: Image) -> None:
        memory = image.memory
        old, size, width = image.address_of[DEEP], memory.size("_ETHREAD"), memory.pointer_size
        free = (0x8F000000 if width == 4 else 0xFFFFAB8480000000) + PAGE
        # The later page first, so that it lies in front in the file.
        memory.space.map(free, PAGE)
        memory.space.map(free - PAGE, PAGE)
        new = free - 0x40
        content = image.read(old, size)
        image.write(old, bytes(size))
        for at in range(0, size - size % width, width):
            value = int.from_bytes(content[at : at + width], "little")
            moved = value - old + new if old <= value < old + size else value
            memory.write_pointer(new + at, moved)
        image.address_of[DEEP] = new

    found = audited(kernel, tmp_path, (Thread(CALM), _only_scanned()), changes=(_no_headers, move), scan=True)
    assert found.views(DEEP) == "scan"
    assert found.of[DEEP].thread.address == found.image.address_of[DEEP]


@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])
def test_a_symbol_file_without_signal_state(kernel: str) -> None:
    """Where the symbol file does not tell, SignalState is at 4 of the dispatcher header: the scan finds the same."""
    subject = SymbolFileSubject(kernel)
    fields = dict(subject.document["user_types"]["_DISPATCHER_HEADER"]["fields"])
    del fields["SignalState"]
    subject.lie("user_types", "_DISPATCHER_HEADER", "fields", value=fields)
    result = subject.after(scan=True)
    assert result is not None
    assert set(result.threads) == set(subject.before(scan=True).threads)
