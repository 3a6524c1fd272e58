"""The audit of one image: from the process list to threads with their findings, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from volatility3.framework import constants, interfaces

from . import facts as windows
from .apc_lists import ApcLists
from .bugcheck import find_crash_header, read_bugcheck
from .checks import apcs as apc_checks
from .checks import threads as checks
from .checks.calm import Calm
from .checks.delivery import is_stuck
from .crash import Crash
from .cut import cut_note
from .drivers.loaded import Drivers, read_drivers
from .layout import Layout, read_layout
from .memory import Memory
from .model import Audited, Backing, Facts, Process, Thread, View
from .origin.origins import Origins
from .processes import Processes
from .severity import Severity
from .signatures.options import RuleOptions
from .suspects import Suspects
from .symbols import KernelSymbols
from .thread_members import Glance, ThreadMembers
from .views.cid_table import CidTable, read_cid_table
from .views.off_list import OffList
from .views.placement import Placement
from .views.processors import lacking, read_processors
from .views.scanned import Scanned
from .views.system_time import SystemTime, create_time_shift
from .views.threads import Threads
from .views.views import Views

if TYPE_CHECKING:
    from .signatures.signatures import Signatures

NO_PROCESS = 0
"""UniqueProcess and UniqueThread of an idle thread."""

THREADS_KEPT = 1 << 14
"""How many threads that a check may find something in are kept; of more the lists are read a second time."""

THREADS_ASKED = 8
"""How many threads of System are asked what this image holds of every thread."""

STARTS_KEPT = 1 << 16
"""For how many different starts of threads it is remembered whether anything is to be found about them."""

_NOT_CHECKED = "KAPCs that are members of threads are not checked: no thread of System that can be read has one"

_HARMLESS = (None, Backing.MODULE)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which threads are audited: by PID, by TID (empty: any), and whether clean ones are given too.

    `stacks` is whether every thread that is given has its stack, and not only suspect ones.
    """

    pids: frozenset[int] = frozenset()
    tids: frozenset[int] = frozenset()
    clean_too: bool = False
    stacks: bool = False

    def takes(self, thread: Thread) -> bool:
        """Tell whether a thread is to be audited."""
        pid = thread.owner.pid if thread.owner is not None else thread.members.pid
        return (not self.pids or pid in self.pids) and (not self.tids or thread.members.tid in self.tids)


class Audit:
    """What was taken from the image once, and the walk over its threads."""

    def __init__(
        self,
        context: interfaces.context.ContextInterface,
        module_name: str,
        *,
        scan_memory: bool = False,
        rules: RuleOptions | None = None,
        progress: constants.ProgressCallback = None,
    ) -> None:
        self.symbols = KernelSymbols(context, module_name)
        self.layout: Layout = read_layout(self.symbols.member, self.symbols.size_of, self.symbols.members_of_type)
        self.memory = Memory(context, context.modules[module_name].layer_name)
        self.drivers: Drivers = read_drivers(self.memory, self.symbols)
        self._rules = rules or RuleOptions()
        self._signatures: Signatures | None = None
        self.processes = Processes(self.memory, self.symbols)
        self.lists = ApcLists(self.memory, self.layout, self.drivers)
        self.origins = Origins(self.memory, self.symbols, self.drivers, self.processes)
        self._cut = cut_note(context, self.memory.physical_layer.name)
        self.crash_header = find_crash_header(context, self.memory.physical_layer.name)
        bugcheck, self._difference = read_bugcheck(self.memory, self.symbols, self.crash_header)
        self._embedded_unknown = False
        self.facts = Facts(
            apc_size=self.layout.apc.size,
            lacks=self.layout.lacks,
            partial=self.memory.partial,
            bugcheck=bugcheck,
            create_time_shift=create_time_shift(self.symbols),
            routines=_routines(self.symbols),
            wait_reasons=_wait_reasons(self.symbols),
            embedded=self._embedded(),
        )
        stopped = bugcheck is not None
        self.suspects = Suspects(self.memory, self.symbols, self.drivers, self.crash_header, stopped=stopped)
        self.system_time = SystemTime(self.memory, self.symbols)
        self.scanned = scan_memory
        self.crash = Crash(self.memory, self.symbols, self.layout, self.lists, self.drivers, self.processes, self.facts)
        scanned = self._scan(context, progress) if scan_memory else Scanned()
        self._scanned = scanned
        self._find_crash()
        self._calm = Calm(self.layout, self.facts)
        self._thread_notes: tuple[str, ...] = ()
        self.off_list = OffList(self.memory, self.layout, self.lists, scanned.apcs, self.drivers.kernel_start)
        self._named_threads: frozenset[int] = frozenset()
        self._stuck: set[int] | None = None
        self._not_calm: Callable[[], Iterator[Thread]] = lambda: iter(())
        self._harmless_starts: dict[tuple[int | None, int | None, int | None], bool] = {}
        saved = self.crash.stack_pointer
        self.placement = Placement(
            self.memory,
            self.symbols,
            self.drivers,
            self.lists,
            self.processes,
            self._listed,
            {} if self.crash.thread is None or saved is None else {self.crash.thread: saved},
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was wrong with the views themselves, complete once all threads have been given."""
        return (
            *self._thread_notes,
            *([self._processors_lacking] if self._processors_lacking is not None else []),
            *self.drivers.notes,
            *(self.signatures.notes if self._signatures is not None or self._rules.skip_broken else ()),
            *self.suspects.notes,
            *([self._cut] if self._cut is not None else []),
            *([_NOT_CHECKED] if self._embedded_unknown else []),
            *([self._difference] if self._difference is not None else []),
            *([f"structures are those of {self.symbols.borrowed_from}"] if self.symbols.borrowed_from else []),
            *self._scanned.notes,
            *self.off_list.notes,
        )

    def _embedded(self) -> frozenset[str]:
        """Return the members of _ETHREAD that are KAPCs and that threads of System have filled in.

        Where none of them has, nothing can be said of another that has not: the image may lack what lay there.
        """
        names = set(self.layout.embedded.values())
        entries = self.processes.system_threads(THREADS_ASKED)
        members = [self._members(entry - self.layout.thread_list_entry) for entry in entries]
        if not any(each.suspend_apc_type == windows.APC_OBJECT for each in members if each is not None):
            unknown = {row.member for row in windows.EMBEDDED_APCS if not row.may_be_zero}
            # A minidump holds hardly any thread: nobody expects it.
            self._embedded_unknown = bool(names & unknown) and not self.memory.partial
            names -= unknown
        return frozenset(names)

    def _members(self, address: int) -> ThreadMembers | None:
        data = self.memory.read(address, self.layout.thread.size)
        return None if data is None else ThreadMembers._make(self.layout.thread(data))

    @property
    def signatures(self) -> Signatures:
        """YARA over drivers, loaded when the first of them is to be scanned."""
        if self._signatures is None:
            from .signatures.signatures import Signatures

            self._signatures = Signatures(self.memory, self.drivers, self._rules)
        return self._signatures

    def _marks(self, address: int) -> bool:
        return self._rules.every_driver and self.signatures.marks(address)

    def _scan(self, context: interfaces.context.ContextInterface, progress: constants.ProgressCallback) -> Scanned:
        from .views.scan import scan

        return scan(
            context,
            self.memory,
            self.symbols,
            self.layout,
            kernel_start=self.drivers.kernel_start,
            processes=self.processes,
            progress=progress,
        )

    def _find_crash(self) -> None:
        layer = self.memory.physical_layer
        # A layer of a minidump names the threads and the processor that the dump is about.
        self._dumped: tuple[int, ...] = getattr(layer, "dumped_threads", ())
        prcb: int | None = getattr(layer, "prcb_address", None)
        self.processors = read_processors(self.memory, self.symbols, () if prcb is None else (prcb,))
        self._processors_lacking = lacking(self.memory, self.symbols, self.processors)
        self.cid = read_cid_table(self.memory, self.symbols)
        running = tuple(each.current for each in self.processors if each.current)
        self.crash.find_thread(running, self._dumped, self.crash_header)
        self.facts = replace(self.facts, crashing_thread=self.crash.thread)

    def _listed(self) -> Iterator[Thread]:
        """Yield the listed threads by a walk of its own."""
        return self._walk_of(Views(CidTable())).listed()

    def _views(self) -> Views:
        return Views(self.cid, self.processors, self._dumped, self._scanned.threads)

    def _walk_of(self, views: Views) -> Threads:
        stopped = self.facts.bugcheck is not None
        return Threads(self.memory, self.layout, self.processes, views, self.system_time, stopped=stopped)

    def run(self, selection: Selection) -> Iterator[Audited]:
        """Yield the selected threads that have findings or queued APCs, or all of them.

        Every thread is looked at before the first is given: of two lists that hold one KAPC both say so.
        """
        self._named_threads = self.off_list.threads | self.crash.threads
        self._harmless_starts.clear()
        self._stuck = None
        threads = self._walk_of(self._views())
        kept: list[Thread] = []
        for thread in threads.all(self._passes):
            self.lists.note(thread)
            if len(kept) <= THREADS_KEPT:
                kept.append(thread)
        self._thread_notes = tuple(threads.notes)
        whole = len(kept) <= THREADS_KEPT
        self._not_calm = (lambda: iter(kept)) if whole else (lambda: self._walk_of(self._views()).all(self._passes))
        for thread in self._walk_of(self._views()).all() if selection.clean_too else self._not_calm():
            if selection.takes(thread):
                audited = Audited(thread, (), {}) if _left_over(thread) else self.audit(thread)
                reported = audited.findings or audited.thread.queues or audited.thread.crash is not None
                reported = reported or self._signed(audited.thread)
                if selection.clean_too or reported:
                    yield self.suspects.examined(self._named(audited), stack_too=selection.stacks)

    def _passes(self, address: int, members: Glance, data: bytes) -> bool:
        """Tell of a thread that every view holds whether it has nothing queued and no check would find anything."""
        return (
            self._calm(address, members, data)
            and address not in self._named_threads
            and self._start_harmless(members)
            and (not self.layout.has_state_pointer or self.lists.nothing_lost(address, members))
        )

    def _quiet(self, thread: Thread) -> bool:
        return self.lists.quiet(thread.address, thread.members) and not self.off_list.names(thread.address)

    def _start_backing(self, members: Glance | ThreadMembers) -> Backing | None:
        """Tell what holds a system thread's start address, None for other threads."""
        start = members.start_address
        if start is None or not (members.system_thread or (start and self.processes.is_system(members.process))):
            return None
        return self.drivers.backing(start)

    def _signed(self, thread: Thread) -> bool:
        """Tell whether a system thread starts in a driver that is hit, where every driver is scanned."""
        start = thread.members.start_address
        return thread.start_backing is Backing.MODULE and start is not None and self._marks(start)

    def _start_harmless(self, members: Glance | ThreadMembers) -> bool:
        # Many threads start at one address: what holds it is asked once.
        key = members.start_address, members.system_thread, members.process
        harmless = self._harmless_starts.get(key)
        if harmless is None:
            if len(self._harmless_starts) >= STARTS_KEPT:
                self._harmless_starts.clear()
            harmless = self._harmless_starts[key] = self._is_start_harmless(members)
        return harmless

    def _is_start_harmless(self, members: Glance | ThreadMembers) -> bool:
        backing = self._start_backing(members)
        start = members.start_address
        if backing is None or start is None or backing not in _HARMLESS:
            return backing in _HARMLESS
        if self.drivers.conflict_at(start) is not None or self.drivers.not_code(start) is not None:
            return False
        return not self._marks(start)

    def audit(self, thread: Thread) -> Audited:
        """Read a thread's APC lists and check the thread and every APC on them."""
        members = thread.members
        backing = self._start_backing(members)
        quiet = self._quiet(thread)
        owner = members.process if members.process is not None else thread.owner and thread.owner.address
        attached: Process | None = None
        if members.apc_process and members.apc_process != owner:
            attached = self.processes.at(members.apc_process)
        start = conflict = None
        if members.start_address is not None and backing is not None:
            if backing not in _HARMLESS or self.drivers.not_code(members.start_address) is not None:
                start = self.drivers.routine(members.start_address)
            conflict = self.drivers.conflict_at(members.start_address)
        thread = replace(
            thread,
            attached=attached,
            start_backing=backing,
            start=start,
            start_conflict=conflict,
            idle=thread.idle or (members.pid == NO_PROCESS and members.tid == NO_PROCESS),
            lost=self.lists.lost(thread),
        )
        if not quiet:
            queues = self.lists.read(thread)
            off_list = self.off_list.of(thread, queues) if self.off_list.names(thread.address) else None
            thread = replace(thread, queues=queues if off_list is None else (*queues, off_list))
        if self.crash.names(thread.address):
            thread = self.crash.tied(thread)
        if thread.queues or (members.apc_state_index == 1 and not thread.idle):
            thread = self.placement.placed(thread)
        if start is not None and backing in (Backing.NOTHING, Backing.UNLOADED):
            thread = replace(thread, start=self.placement.with_region(start, thread))
        if not self.facts.stopped and is_stuck(thread, self.facts):
            thread = replace(thread, only_stuck=self._is_only_stuck(thread))
        findings = checks.check(thread, self.facts)
        if not thread.queues:
            return Audited(thread, findings, {})
        of_apcs = {
            (apc.queue, apc.address): apc_checks.check(apc, thread, self.facts)
            for queue in thread.queues
            for apc in queue.apcs
        }
        return Audited(thread, findings, of_apcs)

    def _is_only_stuck(self, thread: Thread) -> bool:
        """Tell whether no other thread has an APC that should have ended its wait; asked in live images only."""
        if self._stuck is None:
            stuck = set()
            for each in self._not_calm():
                candidate = each if self._quiet(each) else replace(each, queues=self.lists.read(each))
                if is_stuck(candidate, self.facts):
                    stuck.add(each.address)
                if len(stuck) > 1:
                    break
            self._stuck = stuck
        return not self._stuck - {thread.address}

    def _named(self, audited: Audited) -> Audited:
        """Name the start routine and attribute the APCs of a thread that is reported."""
        thread = self.origins.named(audited.thread)
        start = thread.members.start_address
        if start is not None and (thread.start is None or thread.start.region is None):
            thread = replace(thread, start=self.drivers.routine(start))
        audited = replace(audited, thread=thread)
        if not self._rules.every_driver and audited.severity < Severity.MEDIUM:
            return audited
        hits = self.signatures.of(thread)
        if hits is None:
            return audited
        return replace(audited, yara=",".join(dict.fromkeys(map(str, hits))), yara_hits=hits)


def _left_over(thread: Thread) -> bool:
    """Tell whether a thread has ended and only its memory is still there: nothing but the scan finds it."""
    return thread.members.state == windows.TERMINATED and thread.views == {View.SCAN}


def _routines(symbols: KernelSymbols) -> dict[str, int]:
    """Return the addresses of the routines that rules ask for, of those that this kernel has."""
    found = ((name, symbols.address(name)) for name in windows.ROUTINES)
    return {name: address for name, address in found if address is not None}


def _wait_reasons(symbols: KernelSymbols) -> tuple[str, ...]:
    """Return the names of this kernel's KWAIT_REASON by number, the usual ones where its symbols lack them."""
    constants = symbols.constants("_KWAIT_REASON").items()
    names = {value: name for name, value in constants if not name.startswith("Maximum")}
    numbers = range(len(names))
    return tuple(names[number] for number in numbers) if names and set(names) == set(numbers) else windows.WAIT_REASONS
