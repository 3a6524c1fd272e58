"""What is looked into only of threads that are suspect: their stacks and the code at their start addresses."""

from __future__ import annotations

from dataclasses import replace

from .code.start_routine import StartRoutines
from .drivers.loaded import Drivers
from .memory import Memory
from .minidump.crash_header import CrashHeader
from .model import Audited, Severity
from .stacks.stacks import Stacks
from .symbols import KernelSymbols

SUSPECT = Severity.MEDIUM
"""The severity of a finding, the thread's or of one of its APCs, from which on a thread is suspect."""


class Suspects:
    """Completes audited threads.

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
        self._stacks = Stacks(memory, symbols, drivers, header, stopped=stopped)
        self._start_routines = StartRoutines(memory, drivers)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be looked into, complete once all threads have been given."""
        return self._start_routines.notes

    def examined(self, audited: Audited, *, stack_too: bool = False) -> Audited:
        """Return a thread with its stack and what its start routine does, if it is suspect.

        Args:
            audited: the thread, with its findings.
            stack_too: whether it gets its stack in any case.
        """
        findings = (audited.findings, *audited.apc_findings.values())
        suspect = any(finding.severity >= SUSPECT for found in findings for finding in found)
        if suspect or stack_too:
            audited = replace(audited, thread=replace(audited.thread, stack=self._stacks.of(audited.thread)))
        if suspect:
            audited = replace(audited, findings=audited.findings + self._start_routines.check(audited.thread))
        return audited
