"""What the audit says of minidumps: lists whose entries the file lacks, by thread, kernel and architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.checks import check
from volatility3.plugins.windows.apcaudit.dumps.bugcheck_parameters import BugcheckReferences, crash_sentence
from volatility3.plugins.windows.apcaudit.findings import Severity
from volatility3.plugins.windows.apcaudit.model import Backing, BugCheck, Code, Ending, Facts, QueueName
from volatility3.plugins.windows.apcaudit.model import Process as ProcessModel
from volatility3.plugins.windows.apcaudit.model import Thread as ThreadModel

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Bugcheck, Process, Scene, Thread
from apcaudit.synthetic.scenes import seed
from apcaudit.synthetic.scenes.common import FLTMGR, HAL
from tests.minidump_builder import write_minidump
from tests.minidump_of_image import Opened, audit_minidump, minidump_scene
from tests.situations_pure import (
    ABSENT,
    ABSENT_ENTRY,
    APC_SIZE,
    ATTACHED,
    RUNNING,
    THREAD,
    absent_queue,
    case,
    severities,
)
from tests.situations_pure import thread as pure_thread

MINIDUMP = Facts(APC_SIZE, partial=True)


def stopped_by(code: int, *parameters: int) -> Facts:
    """Return the facts of a minidump of a machine that stopped on the thread of these tests."""
    bugcheck = BugCheck(code, (*parameters, 0, 0, 0, 0)[:4], "dump header")
    return replace(MINIDUMP, bugcheck=bugcheck, crashing_thread=THREAD)


KERNEL_HEAD_ONLY = {"apc_kernel_flink": ABSENT_ENTRY, "damaged": (absent_queue(),)}
USER_HEAD_ONLY = {"apc_user_flink": ABSENT_ENTRY, "damaged": (absent_queue(name=QueueName.USER),)}

FROM_THE_HEAD = [
    case(
        "detached with a kernel APC queued, and 0x6 stopped it",
        pure_thread(**ATTACHED, **RUNNING, **KERNEL_HEAD_ONLY, kernel_apc_pending=1),
        {"detach-bugcheck": "critical"},
        stopped_by(0x6),
    ),
    case(
        "the same with a user APC",
        pure_thread(**ATTACHED, **RUNNING, **USER_HEAD_ONLY),
        {"detach-bugcheck": "critical"},
        stopped_by(0x6),
    ),
    case(
        "attached, another bugcheck",
        pure_thread(**ATTACHED, **RUNNING, **KERNEL_HEAD_ONLY, kernel_apc_pending=1),
        {"detach-bugcheck": "high"},
        stopped_by(0xA),
    ),
    case(
        "attached, about to run: it is delivered first, whatever it is",
        pure_thread(**ATTACHED, state=1, **KERNEL_HEAD_ONLY, kernel_apc_pending=1),
        {"detach-bugcheck": "low"},
        MINIDUMP,
    ),
    case(
        "attached, about to run in a critical region: a normal APC would stay",
        pure_thread(**ATTACHED, state=1, **KERNEL_HEAD_ONLY, kernel_apc_pending=1, kernel_apc_disable=-1),
        {"detach-bugcheck": "high"},
        MINIDUMP,
    ),
    case(
        "signalled at APC_LEVEL",
        pure_thread(**KERNEL_HEAD_ONLY, kernel_apc_pending=1, wait_irql=1),
        {"undelivered": "medium"},
        MINIDUMP,
    ),
    case(
        "in a guarded region",
        pure_thread(**KERNEL_HEAD_ONLY, kernel_apc_pending=1, special_apc_disable=-1),
        {"undelivered": "medium"},
        MINIDUMP,
    ),
    case(
        "in a critical region: only a normal APC would be held back",
        pure_thread(**KERNEL_HEAD_ONLY, kernel_apc_pending=1, kernel_apc_disable=-1),
        {},
        MINIDUMP,
    ),
    case(
        "waiting with kernel APCs enabled: an APC of either kind should have ended the wait",
        pure_thread(**KERNEL_HEAD_ONLY, kernel_apc_pending=1),
        {"stuck-deliverable": "high"},
        stopped_by(0xA),
    ),
    case(
        "exiting",
        pure_thread(**RUNNING, **KERNEL_HEAD_ONLY, terminated=1, apc_queueable=0),
        {"exit-bugcheck": "critical"},
        stopped_by(0x20, ABSENT_ENTRY),
    ),
    case(
        "running, nothing else",
        pure_thread(**RUNNING, **KERNEL_HEAD_ONLY, kernel_apc_pending=1),
        {},
        MINIDUMP,
    ),
]


@pytest.mark.parametrize(("subject", "facts", "expected"), FROM_THE_HEAD)
def test_what_follows_from_the_head(subject: ThreadModel, facts: Facts, expected: dict[str, str]) -> None:
    """A head that points elsewhere is a list with something on it, which is all that the kernel tests."""
    checked = check(subject, facts)
    assert severities(checked.findings) == expected
    assert all(not findings for findings in checked.apc_findings.values())


def test_an_absent_apc_is_named_by_its_address() -> None:
    """The sentence gives the KAPC's address, and says that the dump lacks it."""
    (finding,) = check(pure_thread(**ATTACHED, **RUNNING, **KERNEL_HEAD_ONLY), stopped_by(0x6)).findings
    assert finding.severity is Severity.CRITICAL
    assert f"not empty (KAPC {ABSENT:#x}, which is not in this dump)" in finding.explanation


NOWHERE = Code(0xFFFFF80001231000, Backing.MODULE, "Bfilter!Send")


@pytest.mark.parametrize(
    ("subject", "facts", "said"),
    [
        (pure_thread(**ATTACHED), stopped_by(0x6), "another process: what it stopped for is not in this dump"),
        (
            pure_thread(**ATTACHED),
            replace(stopped_by(0x6), partial=False),
            "another process: what it stopped for is not in this image",
        ),
        (pure_thread(**ATTACHED, **KERNEL_HEAD_ONLY), stopped_by(0x6), "its kernel APC list shows why"),
        (
            pure_thread(),
            stopped_by(0x20, ABSENT_ENTRY),
            f"with an APC queued, whose LIST_ENTRY {ABSENT_ENTRY:#x} is no KAPC's in this dump",
        ),
        (pure_thread(), stopped_by(0xC8, 0x20100, NOWHERE.address, ABSENT), "; this dump holds no KAPC there"),
    ],
)
def test_the_crash_sentence(subject: ThreadModel, facts: Facts, said: str) -> None:
    """What a minidump lacks was never in it: that memory has changed since is not known of it."""
    named = BugcheckReferences(lambda _: NOWHERE, lambda address: ProcessModel(address, None, None))
    assert facts.bugcheck is not None
    text = crash_sentence(replace(subject, attached=None), facts.bugcheck, named, facts)
    assert text is not None
    assert said in text
    assert "any more" not in text


def seed_minidump(tmp_path: Path, memory: dict[int, int] | None = None) -> Opened:
    """Audit the seed's crash as an XP minidump."""
    kernel = load_kernel("xp-sp3-x86")
    image = build(seed.scene(), kernel)
    return audit_minidump(write_minidump(minidump_scene(image, 340, memory=memory)), kernel)


def test_the_seeds_crash_as_a_minidump(tmp_path: Path) -> None:
    """Where the file lacks the KAPC, its address and the verdict follow from the thread; nothing is invented."""
    opened = seed_minidump(tmp_path)
    assert opened.layer.defects == ()
    assert opened.codes(340) == {"detach-bugcheck": "critical"}
    (queue,) = opened.of[340].thread.queues
    (apc,) = queue.apcs
    assert (queue.name, queue.ending, apc.address) == (QueueName.KERNEL, Ending.ABSENT, seed.KAPC)
    assert (apc.kernel_routine, apc.normal_routine, apc.inserted, apc.kind) == (None, None, None, None)
    assert opened.of[340].get(apc).origin is None
    assert opened.of[340].crash is not None
    assert "its kernel APC list shows why" in opened.of[340].crash


def test_the_seeds_crash_with_its_apc(tmp_path: Path) -> None:
    """Where the file has the memory around the KAPC, its routine and its IRP are named too."""
    opened = seed_minidump(tmp_path, {seed.KAPC - 0x100: 0x200})
    assert opened.codes(340)["detach-bugcheck"] == "critical"
    (queue,) = opened.of[340].thread.queues
    assert (queue.ending, str(queue.apcs[0].kernel_routine)) == (Ending.CLOSED, "nt!IopCompleteRequest")
    origin = opened.of[340].get(queue.apcs[0]).origin
    assert origin is not None
    assert origin.text.startswith(f"completion of IRP {seed.KAPC - 0x40:#x}")


KERNELS = pytest.mark.parametrize("name", ["xp-sp3-x86", "7-sp1-x86", "7-sp1-x64", "10-19041-x64", "11-26100-x64"])

#: _KAPC.ApcListEntry, the same in every version: x64, x86.
ENTRY = {True: 0x10, False: 0xC}


def attached_machine(name: str) -> Image:
    """Build a machine that 0x6 stopped on thread 8, which has two kernel APCs and a user APC where it is attached."""
    running = Thread(
        8,
        state="Running",
        running_on=0,
        attached_to="svchost.exe",
        kernel_apc_pending=True,
        kernel_apcs=(Apc(label="first"), Apc(label="second")),
        user_apcs=(Apc(mode="user", normal_routine=0x1000, label="user"),),
        stack=("nt!KeBugCheck+0x14",),
    )
    processes = (
        Process("System", 4, (running, Thread(12)), parent=0),
        Process("svchost.exe", 1000, (Thread(1004, start=0x1000, system=False),)),
    )
    scene = Scene(
        "attached", "0x6", name, processes, (HAL, FLTMGR), bugcheck=Bugcheck(0x6), crashing_thread=8, processors=1
    )
    return build(scene, load_kernel(name))


@KERNELS
def test_lists_that_leave_the_file(name: str) -> None:
    """Each list is read as far as the file goes; the entry behind that has a row with its address and nothing else."""
    image = attached_machine(name)
    first, second, user = (image.address_of[f"apc:{label}"] for label in ("first", "second", "user"))
    blocks = {first: image.memory.size("_KAPC")}
    opened = audit_minidump(write_minidump(minidump_scene(image, 8, memory=blocks)), image.kernel)
    queues = {queue.name: queue for queue in opened.of[8].thread.queues}
    assert [(apc.address, apc.absent) for apc in queues[QueueName.KERNEL].apcs] == [(first, False), (second, True)]
    assert [(apc.address, apc.absent) for apc in queues[QueueName.USER].apcs] == [(user, True)]
    assert opened.codes(8)["detach-bugcheck"] == "critical"
    text = opened.explanation(8, "detach-bugcheck")
    assert f"KAPC {first:#x}, KernelRoutine nt!IopCompleteRequest" in text
    assert f"its user APC list is not empty (KAPC {user:#x}, which is not in this dump)" in text
    assert "list-broken" not in opened.codes(8)


@KERNELS
@pytest.mark.parametrize("flink", [0, 0x1230])
def test_a_head_that_leads_to_no_kernel_memory(name: str, flink: int) -> None:
    """A null or user-space Flink in a head that the file has is damage, not memory that the file lacks."""
    image = attached_machine(name)
    head = image.address_of["thread:8"] + image.memory.offset("_ETHREAD", "Tcb.ApcState.ApcListHead")
    image.memory.write_pointer(head, flink)
    opened = audit_minidump(write_minidump(minidump_scene(image, 8)), image.kernel)
    assert opened.codes(8)["list-broken"] == "high"
    assert f"(Flink {flink:#x})" in opened.explanation(8, "list-broken")
    assert [apc for queue in opened.of[8].thread.queues for apc in queue.apcs if queue.name is QueueName.KERNEL] == []


@KERNELS
def test_a_head_whose_links_disagree(name: str) -> None:
    """A head with an entry ahead of it and none behind it contradicts itself, whatever the file lacks."""
    image = attached_machine(name)
    head = image.address_of["thread:8"] + image.memory.offset("_ETHREAD", "Tcb.ApcState.ApcListHead")
    image.memory.write_pointer(head + image.memory.pointer_size, head)
    opened = audit_minidump(write_minidump(minidump_scene(image, 8)), image.kernel)
    assert opened.codes(8)["list-broken"] == "high"
    assert opened.codes(8)["detach-bugcheck"] == "critical"


@KERNELS
def test_the_apc_of_an_exit(name: str) -> None:
    """0x20 names the LIST_ENTRY of an APC: where the file lacks it, it has a row by its address."""
    exiting = Thread(8, state="Running", running_on=0, terminated=True, kernel_apcs=(Apc(label="one", linked=False),))
    image = build(
        Scene(
            "exit",
            "0x20",
            name,
            (Process("System", 4, (exiting, Thread(12)), parent=0),),
            (HAL,),
            bugcheck=Bugcheck(0x20, (f"apc:one+{ENTRY[name.endswith('x64')]}", 0, 0, 0)),
            crashing_thread=8,
        ),
        load_kernel(name),
    )
    opened = audit_minidump(write_minidump(minidump_scene(image, 8)), image.kernel)
    apc = image.address_of["apc:one"]
    assert [each.address for queue in opened.of[8].thread.queues for each in queue.apcs] == [apc]
    assert f"exited with the KAPC {apc:#x} (not in this dump) queued" in (opened.of[8].crash or "")
    assert opened.codes(8) == {"exit-bugcheck": "critical"}
