"""The audit of one image: from the process list to threads with their findings, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from volatility3.framework import interfaces

from . import apc_checks, checks
from .apc_lists import ApcLists
from .bugcheck import read_bugcheck
from .drivers import Drivers, read_drivers
from .layout import Layout, read_layout
from .memory import Memory
from .model import Audited, Facts, Process, Thread
from .processes import Processes
from .symbols import KernelSymbols
from .threads import Threads

NO_PROCESS = 0
"""UniqueProcess and UniqueThread of an idle thread."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which threads are audited: by PID, by TID (empty: any), and whether clean ones are given too."""

    pids: frozenset[int] = frozenset()
    tids: frozenset[int] = frozenset()
    clean_too: bool = False

    def takes(self, thread: Thread) -> bool:
        """Tell whether a thread is to be audited."""
        pid = thread.owner.pid if thread.owner is not None else thread.members.pid
        return (not self.pids or pid in self.pids) and (not self.tids or thread.members.tid in self.tids)


class Audit:
    """What was taken from the image once, and the walk over its threads."""

    def __init__(self, context: interfaces.context.ContextInterface, module_name: str) -> None:
        self.symbols = KernelSymbols(context, module_name)
        self.layout: Layout = read_layout(self.symbols.member, self.symbols.size_of)
        self.memory = Memory(context, context.modules[module_name].layer_name)
        self.drivers: Drivers = read_drivers(self.memory, self.symbols)
        self.processes = Processes(self.memory, self.symbols)
        self.threads = Threads(self.memory, self.layout, self.processes)
        self.lists = ApcLists(self.memory, self.layout, self.drivers)
        self.facts = Facts(
            apc_size=self.layout.apc.size,
            lacks=self.layout.lacks,
            bugcheck=read_bugcheck(self.memory, self.symbols),
        )

    def run(self, selection: Selection) -> Iterator[Audited]:
        """Yield the selected threads that have findings or queued APCs, or all of them."""
        for thread in self.threads.all():
            if selection.takes(thread):
                audited = self.audit(thread)
                if selection.clean_too or audited.findings or audited.thread.queues:
                    yield self._named(audited)

    def audit(self, thread: Thread) -> Audited:
        """Read a thread's APC lists and check the thread and every APC on them."""
        members = thread.members
        quiet = self.lists.quiet(thread.address, members)
        owner = members.process if members.process is not None else thread.owner and thread.owner.address
        attached: Process | None = None
        if members.apc_process and members.apc_process != owner:
            attached = self.processes.at(members.apc_process)
        backing = None
        if members.system_thread and members.start_address is not None:
            backing = self.drivers.backing(members.start_address)
        thread = replace(
            thread,
            attached=attached,
            start_backing=backing,
            idle=thread.idle or (members.pid == NO_PROCESS and members.tid == NO_PROCESS),
        )
        if not quiet:
            thread = replace(thread, queues=self.lists.read(thread))
        findings = checks.check(thread, self.facts)
        if quiet:
            return Audited(thread, findings, {})
        of_apcs = {
            (apc.queue, apc.address): apc_checks.check(apc, thread, self.facts) for queue in thread.queues for apc in queue.apcs
        }
        return Audited(thread, findings, of_apcs)

    def _named(self, audited: Audited) -> Audited:
        """Name the start routine of a thread that is reported."""
        start = audited.thread.members.start_address
        if start is None:
            return audited
        return replace(audited, thread=replace(audited.thread, start=self.drivers.code(start)))
