"""The crash itself: from which source it is known, and the thread, KAPC or routine that it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.audit import Audit
from volatility3.plugins.windows.apcaudit.dumps import HEADER, KERNEL, reconcile
from volatility3.plugins.windows.apcaudit.dumps.bugcheck_parameters import BugcheckReferences, crash_sentence
from volatility3.plugins.windows.apcaudit.model import Backing, BugCheck, Code, Facts, QueueName
from volatility3.plugins.windows.apcaudit.model import Process as ProcessModel

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Bugcheck, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import HAL
from tests import volatility
from tests.situations_pure import WINDOWS_10, WINDOWS_XP
from tests.situations_pure import thread as pure_thread
from tests.views_image import Audits, audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "7-sp1-x64", "10-19041-x86", "11-26100-x64"])

RUNNING = Thread(8, state="Running", running_on=1)
SERVICE = Process("svchost.exe", 1000, (Thread(1004, start=0x1000, system=False),))
ENTRY = {True: 0x10, False: 0xC}  # _KAPC.ApcListEntry, the same in every version: x64, x86


def wide(kernel: str) -> bool:
    return kernel.endswith("x64")


def crash(
    kernel: str,
    folder: Path,
    threads: tuple[Thread, ...],
    bugcheck: Bugcheck,
    *changes: object,
    processors: int = 2,
) -> Audits:
    """Audit a machine that a bugcheck stopped on thread 8, with the idle thread on another processor."""
    return audited(
        kernel,
        folder,
        (*threads, Thread(12)),
        others=(SERVICE,),
        changes=changes,  # type: ignore[arg-type]
        processors=processors,
        bugcheck=bugcheck,
        crashing_thread=8,
    )


def sentence(found: Audits, tid: int = 8) -> str:
    text = found.of[tid].crash
    assert text is not None
    return text


def off_list(found: Audits, tid: int = 8) -> list[int]:
    """Return the addresses of the KAPCs that the thread's row reports on no list."""
    queue = found.of[tid].thread.queue(QueueName.OFF_LIST)
    return [] if queue is None else [apc.address for apc in queue.apcs]


@pytest.mark.parametrize(
    ("kernel", "header", "code", "source", "differ"),
    [
        (None, None, None, None, False),
        (0x6, None, 0x6, KERNEL, False),
        (None, 0x6, 0x6, HEADER, False),
        (0x6, 0x6, 0x6, f"{HEADER} and {KERNEL}", False),
        (0, 0, None, None, False),
        (0, None, None, None, False),
        # An acquisition tool's header over a machine that ran: DumpIt writes 0x4d415454 there.
        (0, 0x4D415454, None, None, True),
        (0x6, 0x20, 0x6, KERNEL, True),
    ],
)
def test_two_sources(
    kernel: int | None, header: int | None, code: int | None, source: str | None, differ: bool
) -> None:
    """Either source will do; where they differ the kernel's variable is believed and the difference is told."""
    sources = [
        None if value is None else BugCheck(value, (0, 0, 0, 0), name)
        for value, name in ((kernel, KERNEL), (header, HEADER))
    ]
    bugcheck, difference = reconcile(*sources)
    assert (bugcheck.code if bugcheck else None) == code
    assert source is None or (bugcheck is not None and bugcheck.source.startswith(source))
    assert (difference is not None) is differ


@KERNELS
def test_header_and_kernel_agree_in_a_dump(kernel: str, tmp_path: Path) -> None:
    """A crash dump tells its bugcheck twice, code and parameters."""
    found = crash(kernel, tmp_path, (RUNNING,), Bugcheck(0x20, (0, 0xFFFF, 1, 1)))
    assert found.audit.facts.bugcheck == BugCheck(0x20, (0, 0xFFFF, 1, 1), f"{HEADER} and {KERNEL}")
    assert found.audit.notes == ()


@KERNELS
def test_header_and_kernel_differ(kernel: str, tmp_path: Path) -> None:
    """Where they differ, the audit says so."""

    def running(image: Image) -> None:
        image.memory.write_pointer(image.kernel.address("KiBugCheckData"), 0)

    found = crash(kernel, tmp_path, (RUNNING,), Bugcheck(0x6), running)
    assert found.audit.facts.bugcheck is None
    assert "the dump header says 0x6" in found.audit.notes[0]
    assert found.of[8].crash is None


@KERNELS
def test_the_crashed_thread_of_several(kernel: str, tmp_path: Path) -> None:
    """Of the threads on processors, the one whose stack the dump's context is on stopped the machine."""
    beside = Thread(16, state="Running", running_on=0)
    found = crash(kernel, tmp_path, (beside, RUNNING), Bugcheck(0x6))
    assert found.audit.facts.crashing_thread == found.image.address_of[8]
    assert {tid for tid, each in found.of.items() if each.crash is not None} == {8}


@KERNELS
def test_detach(kernel: str, tmp_path: Path) -> None:
    """0x6 has no parameters: it is tied to the thread that was detaching and to what it has queued."""
    attached = replace(RUNNING, attached_to="svchost.exe", kernel_apcs=(Apc(),), kernel_apc_pending=True)
    found = crash(kernel, tmp_path, (attached,), Bugcheck(0x6))
    assert "when this thread detached from svchost.exe (1000): its kernel APC list shows why" in sentence(found)
    assert found.codes(8)["detach-bugcheck"] == "critical"


@KERNELS
def test_exit_with_the_list_left_as_it_was(kernel: str, tmp_path: Path) -> None:
    """0x20 names a LIST_ENTRY: the KAPC around it, here still on its list."""
    exiting = replace(RUNNING, terminated=True, kernel_apcs=(Apc(label="left"),))
    found = crash(kernel, tmp_path, (exiting,), Bugcheck(0x20, (f"apc:left+{ENTRY[wide(kernel)]:#x}", 0, 1, 0)))
    apc = found.image.address_of["apc:left"]
    assert f"exited with the KAPC {apc:#x} (KernelRoutine nt!IopCompleteRequest) queued, on its kernel list" in (
        sentence(found)
    )
    assert "IRQL 1" in sentence(found)
    assert off_list(found) == []
    assert found.codes(8)["exit-bugcheck"] == "critical"


@KERNELS
def test_exit_with_the_list_taken_off(kernel: str, tmp_path: Path) -> None:
    """KeFlushQueueApc leaves a ring without a head and Inserted 0: its KAPCs are the crashed thread's all the same."""
    gone = (Apc(label="one"), Apc("fltmgr+0x1200", label="two"))
    exiting = replace(RUNNING, terminated=True, kernel_apcs=gone)
    bugcheck = Bugcheck(0x20, (f"apc:one+{ENTRY[wide(kernel)]:#x}", 0, 0, 0))
    found = crash(kernel, tmp_path, (exiting,), bugcheck, _flush)
    one, two = (found.image.address_of[f"apc:{label}"] for label in ("one", "two"))
    assert f"the KAPC {one:#x} (KernelRoutine nt!IopCompleteRequest) queued, which the exit has taken off" in (
        sentence(found)
    )
    assert off_list(found) == [one, two]
    # Not off-list-apc: it was the exit that took them off.
    assert found.codes(8) == {"exit-bugcheck": "critical"}


def _flush(image: Image) -> None:
    """Take thread 8's kernel APCs off their list as KeFlushQueueApc does."""
    memory, thread = image.memory, image.address_of[8]
    offset = memory.offset("_KAPC", "ApcListEntry")
    entries = [image.address_of[f"apc:{label}"] + offset for label in ("one", "two")]
    for entry, other in (entries, entries[::-1]):
        memory.write_pointer(entry, other)
        memory.write_pointer(entry + memory.pointer_size, other)
        memory.write(entry - offset, "_KAPC", "Inserted", 0)
    head = thread + memory.offset("_ETHREAD", "Tcb.ApcState.ApcListHead")
    memory.write_pointer(head, head)
    memory.write_pointer(head + memory.pointer_size, head)


@KERNELS
def test_exit_with_apcs_disabled(kernel: str, tmp_path: Path) -> None:
    """0x20 without an APC is about the counters: two 16-bit ones, or XP's one of 32 bits."""
    exiting = replace(RUNNING, terminated=True, kernel_apc_disable=-1)
    count = 0xFFFFFFFF if kernel.startswith("xp") else 0xFFFF
    found = crash(kernel, tmp_path, (exiting,), Bugcheck(0x20, (0, count, 0, 1)))
    assert "when this thread exited with APCs disabled: KernelApcDisable was -1" in sentence(found)
    assert ("SpecialApcDisable 0" in sentence(found)) is not kernel.startswith("xp")


@KERNELS
def test_index_mismatch(kernel: str, tmp_path: Path) -> None:
    """0x1 names the worker routine that came back with APCs disabled."""
    count = 0xFFFFFFFE if kernel.startswith("xp") else 0xFFFE
    found = crash(kernel, tmp_path, (RUNNING,), Bugcheck(0x1, ("fltmgr+0x1200", 0, count, 1)))
    assert "when the worker routine fltmgr" in sentence(found).lower()
    assert "ApcStateIndex was 0, KernelApcDisable was -2" in sentence(found)


SYSTEM_CALL = Code(
    0xFFFFF80000401000, Backing.MODULE, "nt!NtQueryInformationProcess", "nt", "NtQueryInformationProcess"
)
SERVICE_EXIT = Code(0xFFFFF80000402000, Backing.MODULE, "nt!KiSystemServiceExit+0x20", "nt", "KiSystemServiceExit")
IN_PROGRAM = Code(0x00007FF612341000, Backing.USER, "0x7ff612341000")


@pytest.mark.parametrize(
    ("code", "parameters", "facts", "said"),
    [
        pytest.param(
            SYSTEM_CALL,
            (0, 0xFFFE, 0),
            WINDOWS_10,
            "returned from the system call nt!NtQueryInformationProcess: ApcStateIndex was 0, KernelApcDisable was -2",
            id="a system call",
        ),
        pytest.param(
            IN_PROGRAM,
            (0, 0xFFFF, 0xFFFFF80000400000),
            WINDOWS_10,
            "returned to user mode at 0x7ff612341000 from a system call: ApcStateIndex was 0, KernelApcDisable was -1",
            id="x64 since 8: parameter 1 is where it returned to, parameter 4 a kernel address",
        ),
        pytest.param(
            SERVICE_EXIT,
            (1, 0, 0),
            WINDOWS_10,
            "left nt!KiSystemServiceExit+0x20, a system call, work item or callback: ApcStateIndex was 1",
            id="type 0 also comes from work items and callbacks",
        ),
        pytest.param(
            SYSTEM_CALL,
            (0x100, 0xFFFFFFFE, 0xFFFFFFFF),
            WINDOWS_XP,
            "ApcStateIndex was 1, KernelApcDisable was -2 (before the call 0, KernelApcDisable -1)",
            id="XP packs the index and the one before",
        ),
        pytest.param(
            SYSTEM_CALL,
            (0, 0xFFFFFFFE, 0),
            WINDOWS_XP,
            "ApcStateIndex was 0, KernelApcDisable was -2 (before the call 0, KernelApcDisable 0)",
            id="XP, not attached",
        ),
    ],
)
def test_what_0x1_says(code: Code, parameters: tuple[int, int, int], facts: Facts, said: str) -> None:
    """The parameters of 0x1 mean what that Windows and that way out of the kernel put there (WDK, ReactOS)."""
    bugcheck = BugCheck(0x1, (code.address, *parameters), "nt!KiBugCheckData")
    named = BugcheckReferences(lambda _: code, lambda address: ProcessModel(address, None, None))
    assert said in (crash_sentence(pure_thread(), bugcheck, named, facts) or "")


@KERNELS
def test_the_crashed_thread_of_several_without_a_header(kernel: str, tmp_path: Path) -> None:
    """In a raw image the crashed thread is the only one on a processor whose stack is inside of KeBugCheck."""
    image = build(
        Scene(
            "stopped",
            "a raw image of a stopped machine",
            kernel,
            (
                Process(
                    "System",
                    4,
                    (
                        Thread(16, state="Running", running_on=0),
                        replace(RUNNING, stack=("nt!KeBugCheck+0x14", "nt!KeUnstackDetachProcess+0x118")),
                    ),
                    parent=0,
                ),
            ),
            (HAL,),
            bugcheck=Bugcheck(0x6),
            processors=2,
        ),
        load_kernel(kernel),
    )
    path = tmp_path / "stopped.raw"
    image.write_raw(path)
    plugin = volatility.construct(
        path,
        "windows.apcaudit.ApcAudit",
        cache=volatility.CACHE,
        kernel=image.kernel,
        page_tables=image.memory.space.mode.root,
    )
    audit = Audit(plugin.context, plugin.config["kernel"])
    assert audit.facts.crashing_thread == image.address_of[8]


@KERNELS
def test_attach(kernel: str, tmp_path: Path) -> None:
    """0x5 names the process attached to and the one attached already."""
    parameters = ("process:svchost.exe", "process:System", 1, 0)
    found = crash(kernel, tmp_path, (RUNNING,), Bugcheck(0x5, parameters))
    assert "attached to svchost.exe (1000) while attached to System (4) (ApcStateIndex 1)" in sentence(found)
    in_dpc = crash(kernel, tmp_path, (RUNNING,), Bugcheck(0x5, (*parameters[:2], 0, 1)))
    assert "attached to svchost.exe (1000) with a DPC running" in sentence(in_dpc)


@KERNELS
def test_irql_after_an_apc(kernel: str, tmp_path: Path) -> None:
    """0xC8 names KernelRoutine, KAPC and NormalRoutine of an APC, which has been taken off its list to be delivered."""
    thread = replace(RUNNING, kernel_apcs=(Apc("fltmgr+0x1200", label="run", linked=False),))
    parameters = (0x20100, "fltmgr+0x1200", "apc:run", 0)
    found = crash(kernel, tmp_path, (thread,), Bugcheck(0xC8, parameters))
    apc = found.image.address_of["apc:run"]
    assert f"at irql 2 instead of 1: kapc {apc:#x}, kernelroutine fltmgr" in (sentence(found).lower())
    assert off_list(found) == [apc]
    assert found.codes(8) == {}


@KERNELS
def test_irql_unexpected_without_an_apc(kernel: str, tmp_path: Path) -> None:
    """Any other lowest byte of 0xC8's first parameter is about something else than an APC."""
    found = crash(kernel, tmp_path, (RUNNING,), Bugcheck(0xC8, (0x20102, "fltmgr+0x1200", 0, 0)))
    assert sentence(found).startswith("bugcheck 0xc8 (IRQL_UNEXPECTED_VALUE) stopped the machine on this thread")


@KERNELS
def test_corrupt_list(kernel: str, tmp_path: Path) -> None:
    """0x139 with 3 names a trap frame: the routine that failed, and the KAPC that a register points to."""
    base = 0xFFFFF880009A9000 if wide(kernel) else 0xF8AF2000
    frame = base - 0x800
    thread = replace(RUNNING, stack_base=base, kernel_apcs=(Apc(label="bad"),))

    def fault(image: Image) -> None:
        rip, rdx = ("Rip", "Rdx") if wide(kernel) else ("Eip", "Edx")
        entry = image.address_of["apc:bad"] + ENTRY[wide(kernel)]
        image.memory.write(frame, "_KTRAP_FRAME", rip, image.kernel.address("KiDeliverApc") + 8)
        image.memory.write(frame, "_KTRAP_FRAME", rdx, entry)

    found = crash(kernel, tmp_path, (thread,), Bugcheck(0x139, (3, frame, 0, 0)), fault)
    register = "Rdx" if wide(kernel) else "Edx"
    assert "found a LIST_ENTRY corrupt at nt!KiDeliverApc+0x8" in sentence(found)
    assert f"{register} points to the LIST_ENTRY of the KAPC {found.image.address_of['apc:bad']:#x}" in sentence(found)
    other = crash(kernel, tmp_path, (thread,), Bugcheck(0x139, (2, frame, 0, 0)), fault)
    assert "0x139 (KERNEL_SECURITY_CHECK_FAILURE) stopped the machine on this thread" in sentence(other)


@KERNELS
def test_the_explanation_tells_it(kernel: str, tmp_path: Path) -> None:
    """The row of a thread that the bugcheck names says `crash:`, and exists though nothing else is wrong."""
    found = crash(kernel, tmp_path, (RUNNING,), Bugcheck(0x6))
    assert found.codes(8) == {}
    rows = volatility.rows(tmp_path / "views.raw", cache=volatility.CACHE)
    assert [row["TID"] for row in rows] == [8]
    assert rows[0]["Explanation"].startswith("crash: bugcheck 0x6 (INVALID_PROCESS_DETACH_ATTEMPT) stopped")
