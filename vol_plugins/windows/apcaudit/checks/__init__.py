"""The registry: one row for each finding that the audit can report, with its check; pages and tests are held to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from .. import windows
from ..findings import Checked, Finding, Severity
from ..formats.layout import Layout
from ..members import PrefilterMembers
from ..model import Apc, Facts, Thread
from ..targets import Target
from . import apcs, embedded, pending, routines, threads, user_apcs
from .embedded import usual_bytes

ThreadCheck = Callable[[Thread, Facts], "Finding | None"]
ApcCheck = Callable[[Apc, Thread, Facts], "Finding | None"]
TargetCheck = Callable[[Target, Apc, Thread, Facts], "Finding | None"]

_CRITICAL, _HIGH, _MEDIUM, _LOW = Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM, Severity.LOW


class Subject(str, Enum):
    """What a finding is about."""

    THREAD = "thread"
    LIST = "APC list"
    APC = "APC"
    CODE = "start routine"


@dataclass(frozen=True, slots=True)
class Rule:
    """A finding: its code, its subject, its meaning in one line, and its possible severities, the highest first.

    `thread`, `apc` and `target` are the checks that report it; one of a target looks only at what a user APC would run,
    and not at how the APC is queued. A finding about a start routine has none of them, since code/ makes all of those
    in one pass over the code. `when_idle` is whether the thread check can report it for a thread with nothing queued:
    the prefilter must not leave out such a thread.
    """

    code: str
    subject: Subject
    title: str
    severities: tuple[Severity, ...]
    thread: ThreadCheck | None = None
    apc: ApcCheck | None = None
    target: TargetCheck | None = None
    when_idle: bool = False


RULES = (
    Rule(
        "detach-bugcheck",
        Subject.THREAD,
        "attached with something queued or in progress: if it detaches so, the machine stops with 0x6",
        (_CRITICAL, _HIGH, _LOW),
        thread=pending.detach_bugcheck,
        when_idle=True,
    ),
    Rule(
        "undelivered",
        Subject.THREAD,
        "queued and signalled, and a reason not to deliver is visible",
        (_HIGH, _MEDIUM, _LOW),
        thread=pending.undelivered,
    ),
    Rule(
        "stuck-deliverable",
        Subject.THREAD,
        "nothing forbids delivery, and the thread still waits",
        (_HIGH, _MEDIUM),
        thread=pending.stuck_deliverable,
    ),
    Rule(
        "pending-empty",
        Subject.THREAD,
        "KernelApcPending is set and nothing is queued",
        (_MEDIUM,),
        thread=pending.pending_empty,
        when_idle=True,
    ),
    Rule(
        "pending-lost",
        Subject.THREAD,
        "a deliverable special APC is queued and KernelApcPending is not set",
        (_MEDIUM,),
        thread=pending.pending_lost,
    ),
    Rule(
        "lost-apc",
        Subject.THREAD,
        "an APC is queued where nothing is delivered, and the next attach overwrites the list",
        (_HIGH,),
        thread=pending.lost_apc,
        when_idle=True,
    ),
    Rule(
        "exit-bugcheck",
        Subject.THREAD,
        "ended with an APC queued or APCs disabled: 0x20",
        (_CRITICAL, _HIGH),
        thread=threads.exit_bugcheck,
        when_idle=True,
    ),
    Rule(
        "state-mismatch",
        Subject.THREAD,
        "ApcStateIndex contradicts the processes in the APC states",
        (_MEDIUM,),
        thread=threads.state_mismatch,
        when_idle=True,
    ),
    Rule(
        "not-queueable",
        Subject.THREAD,
        "a live thread refuses APCs",
        (_MEDIUM,),
        thread=threads.not_queueable,
        when_idle=True,
    ),
    Rule(
        "apc-disabled-in-user-wait",
        Subject.THREAD,
        "a program's thread waits with APCs disabled: if it returns so, 0x1",
        (_MEDIUM,),
        thread=threads.apc_disabled_in_user_wait,
        when_idle=True,
    ),
    Rule(
        "orphan-start",
        Subject.THREAD,
        "a live system thread began in no loaded module",
        (_HIGH,),
        thread=routines.orphan_start,
        when_idle=True,
    ),
    Rule(
        "unloaded-start",
        Subject.THREAD,
        "... and in the former range of an unloaded driver",
        (_HIGH,),
        thread=routines.unloaded_start,
        when_idle=True,
    ),
    Rule(
        "routine-unbacked",
        Subject.APC,
        "the kernel will call code of no loaded module",
        (_HIGH,),
        apc=routines.routine_unbacked,
    ),
    Rule(
        "routine-unloaded",
        Subject.APC,
        "... and of a driver that has been unloaded",
        (_CRITICAL,),
        apc=routines.routine_unloaded,
    ),
    Rule(
        "routine-user-address",
        Subject.APC,
        "the kernel will call a user address",
        (_CRITICAL,),
        apc=routines.routine_user_address,
    ),
    Rule(
        "routine-not-code",
        Subject.APC,
        "the kernel will call, or a system thread began, where its module has no function",
        (_HIGH, _MEDIUM),
        thread=routines.start_not_code,
        apc=routines.routine_not_code,
        when_idle=True,
    ),
    Rule(
        "module-conflict",
        Subject.THREAD,
        "starts, or an APC's routine lies, where the module list contradicts itself",
        (_HIGH, _MEDIUM),
        thread=routines.start_conflict,
        apc=routines.routine_conflict,
        when_idle=True,
    ),
    Rule(
        "embedded-apc-altered",
        Subject.THREAD,
        "the thread's own KAPC would run something else",
        (_HIGH,),
        thread=embedded.embedded_apc_altered,
        when_idle=True,
    ),
    Rule(
        "suspended-but-not",
        Subject.THREAD,
        "counted as suspended, and nothing holds it",
        (_LOW,),
        thread=embedded.suspended_but_not,
        when_idle=True,
    ),
    Rule(
        "list-broken",
        Subject.LIST,
        "a link is unreadable, misaligned, or does not come back",
        (_HIGH,),
        thread=threads.list_broken,
    ),
    Rule(
        "list-cycle",
        Subject.LIST,
        "the list closes without its head",
        (_HIGH,),
        thread=threads.list_cycle,
    ),
    Rule(
        "list-truncated",
        Subject.LIST,
        "longer than the audit follows",
        (_MEDIUM,),
        thread=threads.list_truncated,
    ),
    Rule(
        "hidden-thread",
        Subject.THREAD,
        "a live thread that a view misses",
        (_HIGH, _LOW),
        thread=threads.hidden_thread,
        when_idle=True,
    ),
    Rule(
        "hidden-process",
        Subject.THREAD,
        "a live thread whose process is on no list",
        (_HIGH,),
        thread=threads.hidden_process,
        when_idle=True,
    ),
    Rule(
        "kernel-normal-in-user-apc",
        Subject.APC,
        "a user APC would run a kernel address",
        (_HIGH,),
        apc=apcs.kernel_normal_in_user_apc,
    ),
    Rule("mode-mismatch", Subject.APC, "ApcMode is not the list's", (_HIGH,), apc=apcs.mode_mismatch),
    Rule("thread-mismatch", Subject.APC, "KAPC.Thread is another thread", (_HIGH,), apc=apcs.thread_mismatch),
    Rule("bad-object", Subject.APC, "no KAPC's Type or Size", (_HIGH,), apc=apcs.bad_object),
    Rule("not-inserted", Subject.APC, "linked, but Inserted is 0", (_MEDIUM,), apc=apcs.not_inserted),
    Rule(
        "environment-mismatch",
        Subject.APC,
        "KAPC.ApcStateIndex does not fit the list",
        (_MEDIUM,),
        apc=apcs.environment_mismatch,
    ),
    Rule("order-violation", Subject.APC, "a special APC behind a normal one", (_MEDIUM,), apc=apcs.order_violation),
    Rule("duplicate-apc", Subject.APC, "on two lists at once", (_HIGH,), apc=apcs.duplicate_apc),
    Rule("off-list-apc", Subject.APC, "says it is queued, and no list holds it", (_HIGH,), apc=apcs.off_list_apc),
    Rule(
        "apc-outside-pool",
        Subject.APC,
        "the KAPC lies in user space, on a stack, in the HAL heap or the like",
        (_HIGH,),
        apc=apcs.apc_outside_pool,
    ),
    Rule(
        "user-apc-private-code",
        Subject.APC,
        "a user APC would run private memory, which no file backs",
        (_HIGH, _MEDIUM),
        target=user_apcs.private_code,
    ),
    Rule(
        "user-apc-gadget",
        Subject.APC,
        "a user APC would run a function that forwards control or writes memory",
        (_HIGH,),
        target=user_apcs.used_gadget,
    ),
    Rule("user-apc-loader", Subject.APC, "a user APC would load a DLL", (_MEDIUM, _LOW), target=user_apcs.used_loader),
    Rule(
        "user-apc-nowhere",
        Subject.APC,
        "a user APC would run where nothing executable is mapped",
        (_MEDIUM,),
        target=user_apcs.nowhere,
    ),
    Rule(
        "user-apc-early",
        Subject.APC,
        "a user APC would run before its program does",
        (_HIGH, _LOW),
        apc=user_apcs.early,
    ),
    Rule(
        "special-user-apc",
        Subject.APC,
        "a user APC that needs no alertable wait",
        (_HIGH, _MEDIUM, _LOW),
        apc=user_apcs.special_user,
    ),
    Rule(
        "user-apc-wow64",
        Subject.APC,
        "a user APC would run code of the wrong bits for its process",
        (_HIGH, _MEDIUM),
        target=user_apcs.wow64,
    ),
    Rule(
        "user-apc-patched-image",
        Subject.APC,
        "a user APC would run a page of an image that its process has changed",
        (_MEDIUM,),
        target=user_apcs.patched_image,
    ),
    Rule(
        "flt-send-under-fast-mutex",
        Subject.CODE,
        "its start routine sends to a process with a fast mutex held",
        (_MEDIUM,),
    ),
    Rule("flt-send-loop", Subject.CODE, "its start routine sends to a process in a loop", (_LOW,)),
    Rule("apc-disabled-across-wait", Subject.CODE, "its start routine waits with APCs disabled", (_LOW,)),
)
"""In the order in which a thread's findings are listed, and an APC's."""

_OF_THREADS = tuple(rule.thread for rule in RULES if rule.thread is not None)
_OF_APCS = tuple((rule.apc, rule.target) for rule in RULES if rule.apc is not None or rule.target is not None)
_OF_TARGETS = tuple(rule.target for rule in RULES if rule.target is not None)


def check_thread(thread: Thread, facts: Facts) -> tuple[Finding, ...]:
    """Return every finding about a thread and its lists."""
    return tuple(finding for check in _OF_THREADS if (finding := check(thread, facts)) is not None)


def check_apc(apc: Apc, thread: Thread, facts: Facts) -> tuple[Finding, ...]:
    """Return every finding about one APC of a thread."""
    target = thread.target(apc)
    found = []
    for of_apc, of_target in _OF_APCS:
        finding = None
        if of_apc is not None:
            finding = of_apc(apc, thread, facts)
        elif of_target is not None and target is not None:
            finding = of_target(target, apc, thread, facts)
        if finding is not None:
            found.append(finding)
    return tuple(found)


def check_target(target: Target | None, apc: Apc, thread: Thread, facts: Facts) -> tuple[Finding, ...]:
    """Return the findings about what a user APC would run, queued already or not; none where that is not known."""
    if target is None:
        return ()
    return tuple(each for check in _OF_TARGETS if (each := check(target, apc, thread, facts)) is not None)


def check(thread: Thread, facts: Facts) -> Checked:
    """Check a thread, its lists and every APC on them."""
    apc_findings = {apc.key: check_apc(apc, thread, facts) for queue in thread.queues for apc in queue.apcs}
    return Checked(thread, check_thread(thread, facts), apc_findings)


_NOT_LIVE = (None, windows.TERMINATED)


class Prefilter:
    """Recognises, by a few members, threads in which no check can find anything: nearly all threads of an image."""

    def __init__(self, layout: Layout, facts: Facts) -> None:
        self._kernel_head = layout.kernel_head
        self._user_head = layout.user_head
        self._embedded_usual = usual_bytes(layout.embedded_kapcs, layout.pointer_size, facts)

    def __call__(self, address: int, members: PrefilterMembers, data: bytes) -> bool:
        """Tell whether no check can find anything in a thread that every view holds and that starts in a module.

        False is no finding: the checks have to look at the thread. A test compares this with the checks. The lists of
        an unused SavedApcState are not looked at here.

        Args:
            address: virtual address of the _ETHREAD.
            members: its members.
            data: its bytes.
        """
        return (
            members.apc_kernel_flink == address + self._kernel_head == members.apc_kernel_blink
            and members.apc_user_flink == address + self._user_head == members.apc_user_blink
            and members.apc_state_index == 0
            and members.kernel_apc_pending == 0
            and members.apc_queueable != 0
            and members.saved_process == 0
            and members.process is not None
            and members.apc_process == members.process
            and members.state not in _NOT_LIVE
            and not members.suspend_count
            and (members.wait_mode == 0 or not (members.kernel_apc_disable or members.special_apc_disable))
            and self._embedded_usual(address, data)
        )
