"""The audit of one image, stage by stage: threads are found, their lists walked, checked, and reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from volatility3.framework import constants, interfaces

from . import windows
from .checks import Prefilter, check
from .checks.delivery import is_stuck
from .dumps import find_crash_header, read_bugcheck
from .dumps.cut import truncation_note
from .findings import Audited, Checked, Severity
from .image.structures import SystemTime, create_time_shift, read_up_time, read_version
from .image.symbols import KernelSymbols
from .kernel import Kernel, read_kernel
from .members import PrefilterMembers, ThreadMembers
from .model import BugCheck, Facts, FoundThread, QueuedThread, Thread, View
from .output import Reports
from .queues import Queues, Starts
from .queues.apc_lists import ApcLists
from .queues.crash import Crash
from .queues.off_list import OffList
from .queues.placement import PlacementFinder
from .signatures.options import RuleOptions
from .threads import Threads, Views
from .threads.kernel_stacks import read_processor_stacks
from .threads.kernel_views import CidTable, missing_processors, read_cid_table, read_processors
from .windows import version_of_build

if TYPE_CHECKING:
    from .output.document import ImageFacts
    from .threads.scan import Scanned
    from .user import UserStage
    from .user.armed import ArmedApcs

THREADS_KEPT = 1 << 14
"""How many threads with possible findings are kept in memory; with more, all lists are read a second time."""

THREADS_ASKED = 8
"""How many threads of System are read to see whether this image has the KAPCs that are members of threads."""

_NOT_CHECKED = "KAPCs that are members of threads are not checked: no thread of System that can be read has one"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which threads are audited: by PID and by TID (empty: any).

    `clean_too` is whether threads with nothing to report are given too, `stacks` whether all threads get their stack
    and not only suspect ones, `armed` whether they get what will queue user APCs to them later.
    """

    pids: frozenset[int] = frozenset()
    tids: frozenset[int] = frozenset()
    clean_too: bool = False
    stacks: bool = False
    armed: bool = False

    def includes(self, thread: FoundThread) -> bool:
        """Tell whether a thread is to be audited."""
        pid = thread.owner.pid if thread.owner is not None else thread.members.pid
        return (not self.pids or pid in self.pids) and (not self.tids or thread.members.tid in self.tids)


class Audit:
    """The audit of one image: facts about it, read once, and a pass over its threads for each `run`."""

    def __init__(
        self,
        context: interfaces.context.ContextInterface,
        module_name: str,
        *,
        scan_memory: bool = False,
        rules: RuleOptions | None = None,
        progress: constants.ProgressCallback = None,
    ) -> None:
        self.kernel = kernel = read_kernel(context, module_name)
        physical = kernel.memory.physical_layer
        self._cut_note = truncation_note(context, physical.name)
        self._header = find_crash_header(context, physical.name)
        bugcheck, self._bugcheck_note = read_bugcheck(kernel.memory, kernel.symbols, self._header)
        self._system_time = SystemTime(kernel.memory, kernel.symbols)
        partial = kernel.memory.partial_layer
        self._dumped = () if partial is None else partial.dumped_threads
        self._defects = () if partial is None else partial.defects
        prcb = None if partial is None else partial.prcb_address
        self._processors = read_processors(kernel, () if prcb is None else (prcb,))
        self._cid = read_cid_table(kernel)
        self._scans = scan_memory
        self._scanned = _scan(context, kernel, progress) if scan_memory else None
        embedded, self._embedded_unknown = _embedded(kernel)
        self._stopped = bugcheck is not None
        placements = PlacementFinder(kernel, self._listed_threads)
        self.lists = ApcLists(kernel, placements)
        running = {
            each.current: read_processor_stacks(kernel, each.address) if bugcheck is not None else ()
            for each in self._processors
            if each.current
        }
        crash = Crash(kernel, self.lists, bugcheck, running, self._dumped, self._header)
        self._version = read_version(kernel.memory, kernel.symbols)
        self._up_time = read_up_time(kernel.memory, kernel.symbols)
        if self._header is not None:
            self._version = self._version or version_of_build(self._header.minor_version)
            self._up_time = self._header.system_up_time or self._up_time
        self.facts = Facts(
            apc_size=kernel.layout.apc.size,
            lacks=kernel.layout.lacks,
            partial=kernel.memory.partial,
            bugcheck=bugcheck,
            crashing_thread=crash.thread,
            crash=None if bugcheck is None else self._crash_line(bugcheck, crash.thread),
            create_time_shift=create_time_shift(kernel.symbols),
            routines=_routines(kernel.symbols),
            wait_reasons=_wait_reasons(kernel.symbols),
            embedded=embedded,
        )
        self._off_list = OffList(kernel, self.lists, {} if self._scanned is None else self._scanned.apcs)
        self._named_threads = self._off_list.threads | crash.threads
        stack_pointers = {crash.thread: crash.stack_pointer} if crash.thread and crash.stack_pointer else {}
        self._starts = Starts(kernel)
        self.queues = Queues(kernel, self._starts, self.lists, self._off_list, crash, placements, stack_pointers)
        self._user: UserStage | None = None
        self.reports = Reports(
            kernel, self.facts, crash, rules or RuleOptions(), self._header, lambda: self.user_stage().spaces
        )
        self._prefilter = Prefilter(kernel.layout, self.facts)
        self._thread_notes: tuple[str, ...] = ()
        self._threads_seen = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What was wrong with the views and what was left out; complete once all threads have been given."""
        borrowed = self.kernel.symbols.borrowed_from
        return (
            *self._thread_notes,
            *_if(missing_processors(self.kernel, self._processors)),
            *self.kernel.drivers.notes,
            *self.reports.notes,
            *self._defects,
            *_if(self._cut_note),
            *_if(_NOT_CHECKED if self._embedded_unknown else None),
            *_if(self._bugcheck_note),
            *_if(borrowed and f"structures are those of {borrowed}"),
            *(() if self._scanned is None else self._scanned.notes),
            *self._off_list.notes,
            *(() if self._user is None else self._user.notes),
        )

    @property
    def image(self) -> ImageFacts:
        """Facts about the image; `complete` and `drivers` are final once all threads have been given."""
        from .output.document import ImageFacts

        kernel = self.kernel
        return ImageFacts(
            kernel_base=kernel.symbols.base,
            bits=kernel.memory.bits,
            version=self._version,
            symbols=kernel.symbols.file,
            borrowed_types=kernel.symbols.borrowed_from,
            processors=self._processor_count,
            system_time=self._time,
            up_time=self._up_time,
            bugcheck=self.facts.bugcheck,
            crash=self.facts.crash,
            crashing_thread=self.facts.crashing_thread,
            partial=self.facts.partial,
            scanned=self._scans,
            complete={
                "processes": kernel.processes.complete,
                "modules": kernel.drivers.complete,
                "cid": self._cid.evidence,
            },
            lacks=tuple(sorted(self.facts.lacks)),
            drivers=(*kernel.drivers.drivers, *kernel.drivers.unlisted),
            unloaded=kernel.drivers.unloaded,
        )

    @property
    def _time(self) -> int | None:
        return self._system_time.value or (self._header.system_time if self._header is not None else None)

    @property
    def _processor_count(self) -> int:
        # A minidump holds one processor's block, and its header counts all.
        counted = 0 if self._header is None else self._header.number_processors
        return counted if self.kernel.memory.partial and counted else len(self._processors) or counted

    def _crash_line(self, bugcheck: BugCheck, thread: int | None) -> str:
        """Describe the bugcheck, when and where it was, in one line."""
        from .dumps.bugcheck_line import Circumstances, bugcheck_line

        on = [each.number for each in self._processors if thread is not None and each.current == thread]
        at = Circumstances(
            time=self._time,
            up_time=self._up_time,
            version=self._version,
            bits=self.kernel.memory.bits,
            processor=on[0] if on else None,
            processors=self._processor_count,
        )
        line = bugcheck_line(bugcheck, at, self._name_code)
        return line if thread is not None else f"{line}; the thread that stopped it is not known"

    def _name_code(self, address: int) -> str | None:
        code = self.kernel.drivers.code(address)
        return None if code.module is None else code.text

    def run(self, selection: Selection) -> Iterator[Audited]:
        """Yield the selected threads that have findings or queued APCs, or all of them.

        The lists of all threads are walked before the first thread is given, so that of two lists with the same KAPC
        both report it.
        """
        threads = self._all_threads()
        kept: list[FoundThread] = []
        for found in threads.all(self._is_clean):
            self.lists.remember(found)
            if len(kept) <= THREADS_KEPT:
                kept.append(found)
        self._thread_notes, self._threads_seen = threads.notes, threads.seen
        whole = len(kept) <= THREADS_KEPT
        stuck = _StuckThreads(
            self, (lambda: iter(kept)) if whole else (lambda: self._all_threads().all(self._is_clean))
        )
        suspects = {found.address for found in kept} if whole else None
        for found in self._all_threads().all() if selection.clean_too else stuck.threads():
            if not selection.includes(found):
                continue
            if _is_terminated_leftover(found):
                if selection.clean_too:
                    yield self.reports.report(
                        Checked(Thread.from_queued(QueuedThread.from_found(found))), stack_too=selection.stacks
                    )
                continue
            queued = self.queues.read(found)
            if suspects is not None and found.address not in suspects:
                # No check can find anything in it: with --all it only gets its row.
                checked = Checked(Thread.from_queued(queued))
            else:
                checked = check(self._complete(queued, only_stuck=stuck.is_only(queued)), self.facts)
            if selection.clean_too or self.reports.is_reported(checked):
                armed = self._armed_apcs.find(checked.thread) if selection.armed else ()
                yield self.reports.report(checked, stack_too=selection.stacks, armed=armed)

    @cached_property
    def _armed_apcs(self) -> ArmedApcs:
        from .user.armed import ArmedApcs

        return ArmedApcs(self.kernel, self.lists, self.user_stage())

    def user_stage(self) -> UserStage:
        """Return what knows of user space, loaded for the first user APC: most images have none queued."""
        if self._user is None:
            from .user import UserStage

            self._user = UserStage(self.kernel)
        return self._user

    def _complete(self, queued: QueuedThread, *, only_stuck: bool) -> Thread:
        """Add what the user APCs of a thread would run, where it has any."""
        if not any(apc.is_user for queue in queued.queues for apc in queue.apcs):
            return Thread.from_queued(queued, only_stuck=only_stuck)
        stage = self.user_stage()
        targets, first = stage.targets(queued), stage.is_first(queued)
        return Thread.from_queued(queued, targets=targets, only_stuck=only_stuck, first=first)

    def nothing(self, selection: Selection, floor: Severity) -> str:
        """Say that no thread has a row, once all threads have been given; `floor` is the lowest severity of a row."""
        seen = f"{self._threads_seen:,} thread{'' if self._threads_seen == 1 else 's'}"
        if not self._threads_seen:
            return "Nothing was found: no thread can be read in this image"
        what = "an APC queued or a finding" if floor is Severity.INFO else f"a finding at {floor} or above"
        if selection.pids or selection.tids:
            return f"Nothing was found: of {seen} none that --pid or --tid names has {what}"
        return f"Nothing was found: none of {seen} has {what}"

    def _listed_threads(self) -> Iterator[FoundThread]:
        """Yield the threads of the process lists, independently of other passes."""
        return self._threads(Views(CidTable())).listed()

    def _all_threads(self) -> Threads:
        return self._threads(
            Views(self._cid, self._processors, self._dumped, None if self._scanned is None else self._scanned.threads)
        )

    def _threads(self, views: Views) -> Threads:
        return Threads(self.kernel, views, self._system_time, stopped=self._stopped)

    def _is_clean(self, address: int, members: PrefilterMembers, data: bytes) -> bool:
        """Tell whether a thread that every view holds has nothing queued and no check can find anything in it."""
        return (
            self._prefilter(address, members, data)
            and address not in self._named_threads
            and self._starts.is_fine(members)
            # What holds the start is looked up only where it is needed, since this is asked of every thread.
            and not (
                self.reports.every_driver
                and self.reports.is_hit_at(members.start_address, self._starts.backing(members))
            )
            and (not self.kernel.layout.has_state_pointer or self.lists.nothing_lost(address, members))
        )


class _StuckThreads:
    """Finds whether a thread is the only one of a live image with an APC that should have ended its wait."""

    def __init__(self, audit: Audit, threads: Callable[[], Iterator[FoundThread]]) -> None:
        self._audit = audit
        self.threads = threads
        self._addresses: set[int] | None = None

    def is_only(self, thread: QueuedThread) -> bool:
        """Tell whether the image is live and this thread is the only stuck one in it."""
        facts = self._audit.facts
        # Where two are known, none is the only one.
        if facts.stopped or len(self._addresses or ()) > 1 or not is_stuck(thread, facts):
            return False
        if self._addresses is None:
            self._addresses = set()
            for found in self.threads():
                if not self._audit.queues.is_empty(found) and is_stuck(self._audit.queues.read(found), facts):
                    self._addresses.add(found.address)
                if len(self._addresses) > 1:
                    break
        return not self._addresses - {thread.address}


def _scan(
    context: interfaces.context.ContextInterface, kernel: Kernel, progress: constants.ProgressCallback
) -> Scanned:
    # Most runs do without it, and it takes as long to load as hundreds of threads to walk.
    from .threads.scan import scan

    return scan(context, kernel, progress)


def _is_terminated_leftover(found: FoundThread) -> bool:
    """Tell whether a thread has terminated and only the scan found it, so that its memory may be freed."""
    return found.members.state == windows.TERMINATED and found.views == {View.SCAN}


def _if(note: str | None) -> tuple[str, ...]:
    return (note,) if note else ()


def _embedded(kernel: Kernel) -> tuple[frozenset[str], bool]:
    """Return the members of _ETHREAD that are KAPCs and can be checked, and whether some are left out.

    A KAPC that is all zeros in every thread of System that can be read may be missing from the image, so it is not
    checked in other threads either.
    """
    names = set(kernel.layout.embedded.values())
    entries = kernel.processes.system_threads(THREADS_ASKED)
    members = [_members(kernel, entry - kernel.layout.thread_list_entry) for entry in entries]
    if any(each.suspend_apc_type == windows.APC_OBJECT for each in members if each is not None):
        return frozenset(names), False
    unknown = {row.member for row in windows.EMBEDDED_APCS if not row.may_be_zero}
    # A minidump holds hardly any thread, so this needs no note there.
    return frozenset(names - unknown), bool(names & unknown) and not kernel.memory.partial


def _members(kernel: Kernel, address: int) -> ThreadMembers | None:
    data = kernel.memory.read(address, kernel.layout.thread.size)
    return None if data is None else ThreadMembers._make(kernel.layout.thread(data))


def _routines(symbols: KernelSymbols) -> dict[str, int]:
    """Return the addresses of those of windows.ROUTINES that this kernel has."""
    found = ((name, symbols.address(name)) for name in windows.ROUTINES)
    return {name: address for name, address in found if address is not None}


def _wait_reasons(symbols: KernelSymbols) -> tuple[str, ...]:
    """Return the names of this kernel's KWAIT_REASON by number, those of windows.WAIT_REASONS if symbols lack them."""
    constants = symbols.constants("_KWAIT_REASON").items()
    names = {value: name for name, value in constants if not name.startswith("Maximum")}
    numbers = range(len(names))
    return tuple(names[number] for number in numbers) if names and set(names) == set(numbers) else windows.WAIT_REASONS
