"""What is looked into only of threads that are suspect: their stacks and the code at their start addresses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .drivers.loaded import Drivers
from .memory import Memory
from .minidump.crash_header import CrashHeader
from .model import Audited, Finding, Severity, Thread
from .symbols import KernelSymbols

if TYPE_CHECKING:
    from .code.start_routine import StartRoutines
    from .stacks.stacks import Stacks

SUSPECT = Severity.MEDIUM
"""The severity of a finding, the thread's or of one of its APCs, from which on a thread is suspect."""


class Suspects:
    """Completes audited threads; what that takes is loaded for the first of them, since most images have none.

    Args:
        memory: the image.
        symbols: the kernel's.
        drivers: names code.
        header: that of the crash dump file, None where the image is none.
        stopped: whether a bugcheck stopped the machine.
    """

    def __init__(
        self, memory: Memory, symbols: KernelSymbols, drivers: Drivers, header: CrashHeader | None, *, stopped: bool
    ) -> None:
        self._memory = memory
        self._symbols = symbols
        self._drivers = drivers
        self._header = header
        self._stopped = stopped
        self._stacks: Stacks | None = None
        self._start_routines: StartRoutines | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be looked into, complete once all threads have been given."""
        return () if self._start_routines is None else self._start_routines.notes

    def examined(self, audited: Audited, *, stack_too: bool = False) -> Audited:
        """Return a thread with its stack and what its start routine does, if it is suspect.

        Args:
            audited: the thread, with its findings.
            stack_too: whether it gets its stack in any case.
        """
        findings = (audited.findings, *audited.apc_findings.values())
        suspect = any(finding.severity >= SUSPECT for found in findings for finding in found)
        if suspect or stack_too:
            audited = replace(audited, thread=self._with_stack(audited.thread))
        if suspect:
            audited = replace(audited, findings=audited.findings + self._of_start_routine(audited.thread))
        return audited

    def _with_stack(self, thread: Thread) -> Thread:
        if self._stacks is None:
            from .stacks.stacks import Stacks

            self._stacks = Stacks(self._memory, self._symbols, self._drivers, self._header, stopped=self._stopped)
        return replace(thread, stack=self._stacks.of(thread))

    def _of_start_routine(self, thread: Thread) -> tuple[Finding, ...]:
        if self._start_routines is None:
            from .code.start_routine import StartRoutines

            self._start_routines = StartRoutines(self._memory, self._drivers)
        return self._start_routines.check(thread)
