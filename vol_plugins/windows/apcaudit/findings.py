"""Findings and their severities, and the values that attach them and other results to threads and APCs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from .model import Apc, ApcKey, Code, Origin, Thread
from .targets import Target

if TYPE_CHECKING:
    from .unwind import Stack


class Severity(IntEnum):
    """How serious a finding is; the names are those of the findings' vocabulary."""

    INFO = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding of the vocabulary, by its code, with its severity in this case and one sentence with the values."""

    code: str
    severity: Severity
    explanation: str


@dataclass(frozen=True, slots=True)
class YaraHit:
    """A YARA rule that hit a driver, or memory that no driver holds.

    `at_start` is whether a string of it lies in the function at the thread's start address. `address` is the virtual
    address of the first of those strings, else of the first string of all, None for a rule without strings.
    """

    rule: str
    unit: str
    at_start: bool
    address: int | None

    def __str__(self) -> str:
        return f"{self.rule}@start" if self.at_start else self.rule


@dataclass(frozen=True, slots=True)
class Checked:
    """A thread with its findings, and those of each of its APCs by list and KAPC address."""

    thread: Thread
    findings: tuple[Finding, ...] = ()
    apc_findings: Mapping[ApcKey, tuple[Finding, ...]] = field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        """The highest severity among the findings of the thread and its APCs, INFO without any."""
        return worst((*self.findings, *(finding for found in self.apc_findings.values() for finding in found)))


@dataclass(frozen=True, slots=True)
class AuditedApc:
    """What was found out about one queued APC: findings, what queued it, why it is still queued, what it would run.

    `origin`, `why_queued` and `target` are None if unknown, `target` also where it is no user APC.
    """

    findings: tuple[Finding, ...] = ()
    origin: Origin | None = None
    why_queued: str | None = None
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Armed:
    """What will queue a user APC to a thread later: in words, what that would run, and the codes it would then have."""

    what: str
    target: Target | None
    codes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.what} would run {'what is not known' if self.target is None else self.target.text}"
        return text + (f": {', '.join(self.codes)}" if self.codes else "")


@dataclass(frozen=True, slots=True)
class Audited:
    """A thread with all that the audit reports about it: findings, start routine, bugcheck, stack, YARA hits.

    `apcs` has its APCs by list and KAPC address. `start` is the code at its start address, None where that cannot be
    read. `crash` relates the bugcheck to a thread that it names. `stack` has the frames of a thread that is suspect or
    for which they were asked. `yara` names the rules that hit the drivers that it depends on, `rule@start` first, None
    where none was scanned; `yara_hits` are those hits. `armed` is what will queue user APCs to it, where asked for.
    """

    thread: Thread
    findings: tuple[Finding, ...] = ()
    apcs: Mapping[ApcKey, AuditedApc] = field(default_factory=dict)
    start: Code | None = None
    crash: str | None = None
    stack: Stack | None = None
    yara: str | None = None
    yara_hits: tuple[YaraHit, ...] = ()
    armed: tuple[Armed, ...] = ()

    def get(self, apc: Apc) -> AuditedApc:
        """Return the findings, origin and reason of one of its APCs."""
        return self.apcs.get(apc.key, _NOTHING_FOUND)

    @property
    def all_findings(self) -> tuple[Finding, ...]:
        """The thread's findings and those of all of its APCs."""
        return (*self.findings, *(finding for apc in self.apcs.values() for finding in apc.findings))

    @property
    def severity(self) -> Severity:
        """The highest severity among all findings, INFO without any."""
        return worst(self.all_findings)


_NOTHING_FOUND = AuditedApc()


def worst(findings: Iterable[Finding]) -> Severity:
    """Return the highest severity of findings, INFO without any."""
    return max((finding.severity for finding in findings), default=Severity.INFO)
