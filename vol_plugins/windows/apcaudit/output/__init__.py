"""The last stage: adding to a checked thread the origins of its APCs, its stack, its YARA hits and its code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..checks import check_target
from ..checks.delivery import why_queued
from ..findings import Armed, Audited, AuditedApc, Checked, Finding, Severity
from ..formats.crash_header import CrashHeader
from ..kernel import Kernel
from ..model import Apc, ApcKey, Backing, Code, Facts, Thread
from ..origin import Origins
from ..queues.crash import Crash
from ..signatures.options import RuleOptions
from ..targets import Target

if TYPE_CHECKING:
    from ..code import StartRoutines
    from ..signatures import Signatures
    from ..stacks import Stacks
    from ..unwind import Stack
    from ..user.spaces import UserSpaces

SUSPECT = Severity.MEDIUM
"""A thread is suspect if it or one of its APCs has a finding of this severity or above."""


class Reports:
    """Completes checked threads; modules that only suspect threads need are loaded for the first suspect one.

    Args:
        kernel: the image's.
        facts: what is known of the image.
        crash: what the bugcheck names.
        rules: which YARA rules scan which drivers.
        header: that of the crash dump file, None where the image is none.
        spaces: gives the user spaces of processes, which only threads with user APCs need.
    """

    def __init__(
        self,
        kernel: Kernel,
        facts: Facts,
        crash: Crash,
        rules: RuleOptions,
        header: CrashHeader | None,
        spaces: Callable[[], UserSpaces],
    ) -> None:
        self._kernel = kernel
        self._facts = facts
        self._crash = crash
        self._rules = rules
        self._header = header
        self._spaces = spaces
        self.origins = Origins(kernel)
        self.every_driver = rules.every_driver
        self._signatures: Signatures | None = None
        self._stacks: Stacks | None = None
        self._start_routines: StartRoutines | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """The drivers and code that could not be scanned or read; complete once all threads have been given."""
        asked = self._signatures is not None or self._rules.skip_broken
        return (
            *(self.signatures.notes if asked else ()),
            *(self._start_routines.notes if self._start_routines is not None else ()),
        )

    @property
    def signatures(self) -> Signatures:
        """YARA over drivers, loaded when the first of them is to be scanned."""
        if self._signatures is None:
            from ..signatures import Signatures

            self._signatures = Signatures(self._kernel, self._rules, self._spaces)
        return self._signatures

    def is_hit_at(self, start: int | None, backing: Backing | None) -> bool:
        """Tell whether a system thread starts in a driver that is hit, where every driver is scanned."""
        if not self.every_driver or start is None or backing is not Backing.MODULE:
            return False
        return self.signatures.is_hit_at(start)

    def is_reported(self, checked: Checked) -> bool:
        """Tell whether a thread is reported: it has findings, queued APCs or a YARA hit, or a bugcheck concerns it."""
        thread = checked.thread
        return bool(
            checked.findings
            or thread.queues
            or thread.address == self._facts.crashing_thread
            or self._crash.sentence(thread, self._facts) is not None
            or self.is_hit_at(thread.members.start_address, thread.start_backing)
        )

    def report(
        self, checked: Checked, *, stack_too: bool = False, armed: Iterable[tuple[str, Apc, Target | None]] = ()
    ) -> Audited:
        """Add the origins of a thread's APCs and, if it is suspect, its stack, its YARA hits and its code's findings.

        Args:
            checked: the thread, with its findings.
            stack_too: whether it gets its stack even if it is not suspect.
            armed: what will queue user APCs to it later, in words, each with the APC and what that would run.
        """
        thread = checked.thread
        suspect = checked.severity >= SUSPECT
        hits = self.signatures.scan_thread(thread) if suspect or self._rules.every_driver else None
        return Audited(
            thread,
            findings=checked.findings + (self._check_code(thread) if suspect else ()),
            apcs=self._report_apcs(checked),
            start=self._start_code(thread),
            crash=self._crash.sentence(thread, self._facts),
            stack=self._stack_of(thread) if suspect or stack_too else None,
            yara=None if hits is None else ",".join(dict.fromkeys(map(str, hits))),
            yara_hits=hits or (),
            armed=tuple(
                Armed(what, target, tuple(each.code for each in check_target(target, apc, thread, self._facts)))
                for what, apc, target in armed
            ),
        )

    def _report_apcs(self, checked: Checked) -> dict[ApcKey, AuditedApc]:
        thread = checked.thread
        return {
            apc.key: AuditedApc(
                checked.apc_findings.get(apc.key, ()),
                self.origins.attribute(apc, thread),
                why_queued(apc, thread, self._facts),
                thread.target(apc),
            )
            for queue in thread.queues
            for apc in queue.apcs
        }

    def _start_code(self, thread: Thread) -> Code | None:
        """Name the code at a thread's start address."""
        address = thread.members.start_address
        if thread.start is not None and thread.start.region is not None:
            return thread.start
        return None if address is None else self._kernel.drivers.routine(address)

    def _stack_of(self, thread: Thread) -> Stack:
        if self._stacks is None:
            from ..stacks import Stacks

            facts = self._facts
            self._stacks = Stacks(
                self._kernel,
                self._header,
                stopped=facts.stopped,
                bugcheck=facts.bugcheck,
                crashed=facts.crashing_thread,
            )
        return self._stacks.walk(thread)

    def _check_code(self, thread: Thread) -> tuple[Finding, ...]:
        if self._start_routines is None:
            from ..code import StartRoutines

            self._start_routines = StartRoutines(self._kernel)
        return self._start_routines.check(thread)
