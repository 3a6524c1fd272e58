"""Who queued an APC: one thread a producer, on every kernel, and the phrase that names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import OWN, Kernel, load_kernel
from apcaudit.synthetic.scene import Apc, Thread
from tests.origin_image import built, origins, place
from tests.volatility import alone

ASKER = 900
"""TID of the thread that waits for another's context."""


def _wait_for_context(image: Image) -> None:
    """Put an event behind the KAPC, as PsGetContextThread has it, and make the asking thread wait on it."""
    memory = image.memory
    event = image.address_of["apc:context"] + memory.size("_KAPC")
    asker = image.address_of[ASKER]
    memory.write(event, "_KEVENT", "Header.Type", 1)
    block = asker + memory.offset("_ETHREAD", "Tcb.WaitBlock[0]")
    memory.write(block, "_KWAIT_BLOCK", "Object", event)
    head = event + memory.offset("_KEVENT", "Header.WaitListHead")
    memory.link(head, [block + memory.offset("_KWAIT_BLOCK", "WaitListEntry")])


def _wrap(image: Image) -> None:
    """Write what System Informer keeps behind its KAPC: its driver object, then the routine to call."""
    behind = image.address_of["apc:system-informer"] + image.memory.size("_KAPC")
    image.memory.write_pointer(behind + image.memory.pointer_size, image.resolve("SystemInformer!KphCapture"))


def _no_timer(image: Image) -> None:
    """Overwrite the timer's type."""
    start = image.address_of["apc:no-timer"] - image.memory.offset("_ETIMER", "TimerApc")
    image.memory.write(start, "_ETIMER", "KeTimer.Header.Type", 0x42)


@dataclass(frozen=True)
class Case:
    """An APC, the phrase that its origin must be, and what the kernel needs to have it.

    `needs` are symbols, or members as `_KTHREAD.SchedulerApc`. `own_page` gives the KAPC a page outside of the pool.
    In `text`, {apc} is the KAPC's address, {timer} that of the timer around it.
    """

    name: str
    apc: Apc
    text: str
    needs: tuple[str, ...] = ()
    queue: str = "kernel_apcs"
    own_page: bool = False
    after: Callable[[Image], None] | None = None


CASES = (
    Case(
        "suspend",
        Apc("nt!KiSuspendNop", "nt!KiSuspendThread", holder="suspend"),
        "SuspendApc of this thread: suspension?",
        ("KiSuspendNop",),
    ),
    Case(
        "scheduler",
        Apc("nt!KiSchedulerApcNop", "nt!KiSchedulerApc", holder="suspend"),
        "SchedulerApc of this thread: suspension, freezing, preemption or termination?",
        ("KiSchedulerApcNop",),
    ),
    # The same routines in a KAPC that is no member of the thread are still suspension's, by their NormalRoutine.
    Case("suspend-copied", Apc("nt!KiSuspendNop", "nt!KiSuspendThread"), "suspension of the thread", ("KiSuspendNop",)),
    # The folded empty routine alone says nothing.
    Case(
        "empty-routine",
        Apc("nt!KiSchedulerApcNop"),
        "attributed: routine only (nt!KiSchedulerApcNop)",
        ("KiSchedulerApcNop",),
    ),
    Case(
        "timer", Apc("nt!ExpTimerApcRoutine", 0x401230, holder="timer"), "timer {timer:#x} expired", queue="user_apcs"
    ),
    Case(
        "no-timer",
        Apc("nt!ExpTimerApcRoutine", holder="timer"),
        "timer {timer:#x}? (KeTimer.Header.Type is 66, no timer's)",
        after=_no_timer,
    ),
    Case(
        "context",
        Apc("nt!PspGetSetContextSpecialApc", system_argument1=0),
        "get context? by System (4)?",
        own_page=True,
        after=_wait_for_context,
    ),
    # Nothing waits behind this one.
    Case("set-context", Apc("nt!PspGetSetContextSpecialApc", system_argument1=1), "set context?", own_page=True),
    Case(
        "queue-apc-17763",
        Apc("nt!PspUserApcKernelRoutine", 0x401230, pool_tag=b"Psap"),
        "NtQueueApcThread",
        ("PspUserApcKernelRoutine",),
        queue="user_apcs",
    ),
    Case("queue-apc", Apc("nt!IopDeallocateApc", 0x401230), "NtQueueApcThread", queue="user_apcs"),
    Case(
        "queue-apc-xp-to-7",
        Apc("nt!PspQueueApcSpecialApc", 0x401230),
        "NtQueueApcThread",
        ("PspQueueApcSpecialApc",),
        queue="user_apcs",
    ),
    # The routine that frees a user APC frees others too: in kernel mode it names nobody.
    Case(
        "freeing-routine", Apc("nt!IopDeallocateApc", pool_tag=None), "attributed: routine only (nt!IopDeallocateApc)"
    ),
    # ... but the NormalRoutine does.
    Case("freeing-routine-of-driver", Apc("nt!IopDeallocateApc", "avhook!AvApcNormalRoutine"), "avhook?"),
    Case(
        "special-user-apc",
        Apc("nt!KeSpecialUserApcKernelRoutine", 0x401230),
        "NtQueueApcThreadEx, special user APC",
        ("KeSpecialUserApcKernelRoutine",),
        queue="user_apcs",
    ),
    Case("hard-error", Apc("nt!IopDeallocateApc", "nt!IopRaiseHardError"), "I/O hard error"),
    Case("registry", Apc("nt!CmpPostApc", pool_tag=b"CMpa"), "registry change notification"),
    Case(
        "etw", Apc("nt!EtwpThreadRundownApc", pool_tag=b"EtwA"), "ETW thread rundown with stack", ("EtwpStackWalkApc",)
    ),
    Case(
        "etw-entry",
        Apc("nt!EtwpStackWalkApc", pool_tag=b"EtwA"),
        "_ETW_APC_ENTRY {apc:#x}?",
        ("EtwpStackWalkApc", "_ETW_APC_ENTRY.Apc"),
    ),
    Case("exit", Apc("nt!PsExitSpecialApc", "nt!PspExitNormalApc"), "termination of the thread", ("PsExitSpecialApc",)),
    Case("swapping", Apc("nt!ExpSetSwappingKernelApc"), "stack swapping switched on or off for a worker thread"),
    Case("live-dump", Apc("nt!DbgkpLkmdSnapThreadApc"), "live kernel dump of the thread", ("DbgkpLkmdSnapThreadApc",)),
    Case("driver", Apc("avhook!AvApcKernelRoutine", "avhook!AvApcNormalRoutine"), "avhook?"),
    Case("rundown-of-driver", Apc("nt!KeBalanceSetManager", rundown_routine="avhook!AvTable"), "avhook?"),
    Case("system-informer", Apc("ksi+0x1800"), "SystemInformer?", own_page=True, after=_wrap),
    Case("other-routine", Apc("nt!KeBalanceSetManager"), "attributed: routine only (nt!KeBalanceSetManager)"),
    Case("unbacked", Apc("avhook-0x800"), "unknown: KernelRoutine is in no loaded module"),
)


def _has(kernel: Kernel, need: str) -> bool:
    if need.startswith("_"):
        structure, _, member = need.partition(".")
        return kernel.layout.has_type(structure) and kernel.layout.has(structure, member)
    return kernel.has(need)


def _cases(kernel: Kernel) -> dict[int, Case]:
    able = (case for case in CASES if all(_has(kernel, need) for need in case.needs))
    return {100 + 4 * number: case for number, case in enumerate(able)}


def _thread(kernel: Kernel, tid: int, case: Case) -> Thread:
    apc = replace(case.apc, label=case.name)
    if case.own_page:
        apc = replace(apc, pool_tag=None, address=place(kernel, tid))
    return Thread(tid, state="Running", **{case.queue: (apc,)})


#: XP's PspNullSpecialApc, which starts a user thread, has the code of the two routines, and so one address with them.
ON_XP = dict.fromkeys(("queue-apc", "queue-apc-xp-to-7"), "NtQueueApcThread or start of a user thread?")


@pytest.fixture(scope="module", params=OWN)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One thread a producer, on one kernel: its cases, the image, and the origins that the audit gives."""
    kernel = load_kernel(request.param)
    cases = _cases(kernel)
    threads = tuple(_thread(kernel, tid, case) for tid, case in cases.items())
    image = built(kernel, (*threads, Thread(ASKER)), tuple(case.after for case in cases.values() if case.after))
    return {
        "image": image,
        "tid": {case.name: tid for tid, case in cases.items()},
        "origins": origins(image, tmp_path_factory.mktemp(request.param)),
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_producer(found: dict[str, Any], case: Case) -> None:
    """The phrase names the producer that was planted, and what is inferred of it carries a question mark."""
    tid, image = found["tid"].get(case.name), found["image"]
    if tid is None:
        pytest.skip(f"{image.kernel.name} lacks {', '.join(case.needs)}")
    apc = image.address_of[f"apc:{case.name}"]
    timer = apc - image.memory.offset("_ETIMER", "TimerApc")
    text = ON_XP.get(case.name, case.text) if "PspNullSpecialApc" in image.kernel.addresses else case.text
    assert found["origins"][tid].text == text.format(apc=apc, timer=timer)


def test_every_case_is_tried() -> None:
    """Each case fits one of our kernels at least: one that fits none would be skipped on all of them."""
    fitting = {case.name for name in OWN for case in _cases(load_kernel(name)).values()}
    assert [case.name for case in CASES if case.name not in fitting] == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("context", "thread {asker:#x} (TID 900) of System (4) asked for it"),
        ("driver", "avhook queued it: its code is what the APC runs (KernelRoutine)"),
        ("rundown-of-driver", "avhook queued it: its code is what the APC runs (RundownRoutine)"),
        ("queue-apc", "attributed by the routine only"),
    ],
)
def test_inference_is_said(found: dict[str, Any], name: str, sentence: str) -> None:
    """What follows from the evidence is a sentence of its own, apart from the evidence."""
    expected = sentence.format(asker=found["image"].address_of[ASKER])
    assert expected in found["origins"][found["tid"][name]].inferred


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("registry", "the KAPC's pool tag is 'CMpa' (a registry change notification)"),
        ("driver", "the KAPC's pool tag is 'KAPC' (an I/O hard error, and many drivers)"),
        ("system-informer", "System Informer's wrapper calls SystemInformer!KphCapture, noted behind the KAPC"),
    ],
)
def test_evidence_is_said(found: dict[str, Any], name: str, evidence: str) -> None:
    """What the image shows is a sentence with its values."""
    assert evidence in found["origins"][found["tid"][name]].evidence


def test_no_pool_header_no_tag(found: dict[str, Any]) -> None:
    """A KAPC outside of the pool has no tag, and none is made up for it."""
    origin = found["origins"][found["tid"]["system-informer"]]
    assert not [fact for fact in origin.evidence if "pool tag" in fact]


def test_update_teb_apc(tmp_path: Path) -> None:
    """A KAPC that only the symbol table shows to be a member of the thread is named by that member."""
    kernel = load_kernel("11-26100-x64")
    thread = place(kernel, 1)
    apc = Apc(
        "nt!KeBalanceSetManager",
        address=thread + kernel.layout.offset("_ETHREAD", "UpdateTebApc"),
        pool_tag=None,
    )
    image = built(kernel, (Thread(200, address=thread, state="Running", kernel_apcs=(apc,)),))
    origin = origins(image, tmp_path)[200]
    assert origin is not None
    assert origin.text == "UpdateTebApc of this thread: update of the TEB?"


def test_nothing_pending_has_no_origin(tmp_path: Path) -> None:
    """A dequeued KAPC in the thread, with its stale links, is no APC that anybody queued."""
    kernel = load_kernel("8.1-x64")
    image = built(kernel, (Thread(200, suspend_count=0),))
    assert origins(image, tmp_path) == {}


def test_attached(tmp_path: Path) -> None:
    """On ApcState at index 1 it was queued during the attachment; on SavedApcState or at index 0 nothing is said."""
    kernel = load_kernel("xp-sp3-x86")
    apc = Apc("avhook!AvApcKernelRoutine")
    user = Apc("nt!PspQueueApcSpecialApc", 0x401230)
    image = built(
        kernel,
        (
            Thread(200, state="Running", attached_to="BAVSvc.exe", kernel_apcs=(apc,)),
            Thread(204, state="Running", attached_to="BAVSvc.exe", saved_kernel_apcs=(apc,)),
            Thread(208, state="Running", kernel_apcs=(apc,)),
            Thread(212, state="Running", attached_to="BAVSvc.exe", user_apcs=(user,)),
        ),
    )
    found = origins(image, tmp_path)
    assert {tid: origin.text for tid, origin in found.items() if origin is not None} == {
        200: "avhook?, queued while attached to BAVSvc.exe (1264)?",
        204: "avhook?",
        208: "avhook?",
        212: "NtQueueApcThread or start of a user thread?, queued while attached to BAVSvc.exe (1264)?",
    }
    # NtQueueApcThread uses the original environment: here, the image contradicts itself and that is said.
    assert found[212] is not None
    assert "which its routine contradicts" in found[212].inferred[-1]


def test_hard_error_of_genuine_kernel(shared: Path, tmp_path: Path) -> None:
    """IoRaiseHardError's arguments name the device; the names are those of the genuine 19041 kernel."""
    symbols = shared / "symbols" / "windows" / "ntkrnlmp.pdb" / "5278AFF86C341677D7D7835C85B7B844-1.json.xz"
    if not symbols.is_file():
        pytest.skip(f"{symbols} is missing")
    kernel = load_kernel(symbols)
    apc = Apc("nt!IopDeallocateApc", "nt!IopRaiseHardError", label="error")

    def name_device(image: Image) -> None:
        device = image.address_of["device:Harddisk0\\DR0"]
        image.memory.write(image.address_of["apc:error"], "_KAPC", "SystemArgument2", device)

    image = built(kernel, (Thread(200, state="Running", kernel_apcs=(apc,)),), (name_device,))
    origin = origins(image, tmp_path, (alone(symbols, tmp_path),))[200]
    assert origin is not None
    assert origin.text == "I/O hard error on \\Driver\\disk?"
