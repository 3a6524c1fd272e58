"""The columns of the table, declared once: name, type, and the function that gives a row's value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from volatility3.framework import renderers
from volatility3.framework.renderers import format_hints

from .. import windows
from ..findings import Audited, AuditedApc, Finding, Severity, YaraHit, worst
from ..model import Apc, Facts, Queue, View
from ..targets import Lies, Target


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a thread and, if it has APCs queued, one of them.

    `wide` is whether the explanation includes the evidence for the origin, `stacks` whether it includes the stack.
    """

    audited: Audited
    facts: Facts
    queue: Queue | None = None
    apc: Apc | None = None
    wide: bool = False
    stacks: bool = False

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The thread's findings and those of the row's APC."""
        return self.audited.findings + (self.audited.get(self.apc).findings if self.apc is not None else ())

    @property
    def severity(self) -> Severity:
        """The highest severity among the findings, INFO without any."""
        return worst(self.findings)


def rows_of(audited: Audited, facts: Facts, *, wide: bool = False, stacks: bool = False) -> list[Row]:
    """Make the rows of a thread: one per queued APC, or one without an APC where none is queued."""
    rows = [Row(audited, facts, queue, apc, wide, stacks) for queue in audited.thread.queues for apc in queue.apcs]
    return rows or [Row(audited, facts, wide=wide, stacks=stacks)]


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, its type in vol's TreeGrid, its value for a row, and whether only `--wide` shows it."""

    name: str
    type: type
    value: Callable[[Row], Any]
    wide: bool = False


def _known(value: Any, make: Callable[[Any], Any] = lambda value: value) -> Any:
    return renderers.UnreadableValue() if value is None else make(value)


def _member(name: str, make: Callable[[Any], Any]) -> Callable[[Row], Any]:
    def value(row: Row) -> Any:
        if name in row.facts.lacks:
            return renderers.NotApplicableValue()
        return _known(getattr(row.audited.thread.members, name), make)

    return value


def _apc(make: Callable[[Apc], Any]) -> Callable[[Row], Any]:
    return lambda row: renderers.NotApplicableValue() if row.apc is None else make(row.apc)


def _process(row: Row) -> Any:
    owner = row.audited.thread.owner
    return _known(None if owner is None else owner.name)


def _pid(row: Row) -> Any:
    thread = row.audited.thread
    return _known(thread.owner.pid if thread.owner is not None else thread.members.pid)


def _attached(row: Row) -> Any:
    thread = row.audited.thread
    if thread.members.apc_process is None:
        return renderers.UnreadableValue()
    return renderers.NotApplicableValue() if thread.attached is None else str(thread.attached)


def _state(row: Row) -> Any:
    thread = row.audited.thread
    state, reason = thread.members.state, thread.members.wait_reason
    if state is None:
        return renderers.UnreadableValue()
    text = windows.state_name(state)
    if state in windows.WAITING_STATES and reason is not None:
        return f"{text}:{windows.wait_reason_name(reason, row.facts.wait_reasons)}"
    return text


def _views(row: Row) -> str:
    return "+".join(view.value for view in View if view in row.audited.thread.views)


def _start_routine(row: Row) -> Any:
    thread = row.audited.thread
    start = row.audited.start
    if start is None:
        return renderers.UnreadableValue()
    if thread.start_backing is not None and start.module is None and start.address:
        return "<no module>"
    return start.text


def _routine(name: str) -> Callable[[Row], Any]:
    return _apc(lambda apc: _known(getattr(apc, name), str))


def _number(name: str) -> Callable[[Row], Any]:
    return _apc(lambda apc: _known(getattr(apc, name), format_hints.Hex))


def _target(row: Row) -> Any:
    if row.apc is None or not row.apc.is_user:
        return renderers.NotApplicableValue()
    return _known(row.audited.get(row.apc).target, lambda target: target.text)


def _origin(row: Row) -> Any:
    if row.apc is None:
        return renderers.NotApplicableValue()
    return _known(row.audited.get(row.apc).origin, lambda origin: origin.text)


def _findings(row: Row) -> str:
    return ",".join(sorted({finding.code for finding in row.findings}))


def _explanation(row: Row) -> str:
    """Return one sentence per finding; for an APC without findings, why it is still queued."""
    ordered = sorted(row.findings, key=lambda finding: (-finding.severity, finding.code))
    sentences = [f"{finding.code}: {finding.explanation}." for finding in ordered]
    if row.audited.crash is not None:
        sentences.append(f"crash: {row.audited.crash}.")
    if row.facts.crash is not None and row.audited.thread.address == row.facts.crashing_thread:
        sentences.append(f"stopped: {row.facts.crash}.")
    nested = row.audited.thread.nested_attach
    if row.wide and sentences and nested is not None:
        sentences.append(f"nested-attach: {nested}.")
    of_apc = AuditedApc() if row.apc is None else row.audited.get(row.apc)
    if not ordered and of_apc.why_queued is not None:
        sentences.append(f"still queued, {of_apc.why_queued}.")
    if not ordered and row.apc is not None and row.apc.absent:
        sentences.append("the KAPC is not in this dump: only its address is known.")
    if row.wide and of_apc.target is not None:
        sentences.append(f"target: {_target_text(of_apc.target)}.")
    if row.wide and row.audited.armed:
        sentences.append(f"armed: {'; '.join(map(str, row.audited.armed))}.")
    if row.wide and row.audited.yara_hits:
        sentences.append(f"yara: {'; '.join(map(_hit_text, row.audited.yara_hits))}.")
    if row.wide and of_apc.origin is not None:
        told = (("evidence", of_apc.origin.evidence), ("inferred", of_apc.origin.inferred))
        sentences += [f"{word}: {'; '.join(facts)}." for word, facts in told if facts]
    if row.stacks and row.audited.stack is not None:
        sentences.append(f"stack: {row.audited.stack}.")
    return " ".join(sentences)


def _target_text(target: Target) -> str:
    """Say where a target lies, and how its APC leads there."""
    place = target.place
    facts = [target.text if place.lies is not Lies.UNKNOWN else f"{place.address:#x} is not known"]
    facts += [place.why] if place.why is not None else []
    if place.start is not None and place.end is not None:
        facts.append(f"VAD {place.start:#x} to {place.end:#x}{'' if place.path is None else f' of {place.path}'}")
    if place.page is not None:
        facts.append(f"page {place.page}, {place.protection if place.protection else 'protection not known'}")
    facts += [f"by way of {target.via}"] if target.via is not None else []
    facts += ["decoded for WoW64"] if target.encoded else []
    facts += [f"argument {target.argument:#x}"] if target.argument is not None else []
    return "; ".join(facts)


def _hit_text(hit: YaraHit) -> str:
    return f"{hit} in {hit.unit}" + (f" at {hit.address:#x}" if hit.address is not None else "")


def _yara(row: Row) -> Any:
    return renderers.NotApplicableValue() if row.audited.yara is None else row.audited.yara


COLUMNS: tuple[Column, ...] = (
    Column("Thread", format_hints.Hex, lambda row: format_hints.Hex(row.audited.thread.address)),
    Column("PID", int, _pid),
    Column("TID", int, _member("tid", int)),
    Column("Process", str, _process),
    Column("Attached", str, _attached),
    Column("State", str, _state),
    Column("Views", str, _views, wide=True),
    Column("ApcStateIndex", int, _member("apc_state_index", int)),
    Column("KernelApcInProgress", bool, _member("kernel_apc_in_progress", bool), wide=True),
    Column("KernelApcPending", bool, _member("kernel_apc_pending", bool)),
    Column("UserApcPending", bool, _member("user_apc_pending", bool), wide=True),
    Column("KernelApcDisable", int, _member("kernel_apc_disable", int), wide=True),
    Column("SpecialApcDisable", int, _member("special_apc_disable", int), wide=True),
    Column("WaitIrql", int, _member("wait_irql", int), wide=True),
    Column("StartAddress", format_hints.Hex, _member("start_address", format_hints.Hex), wide=True),
    Column("StartRoutine", str, _start_routine),
    Column("Yara", str, _yara, wide=True),
    Column("Queue", str, lambda row: renderers.NotApplicableValue() if row.queue is None else row.queue.name.value),
    Column("Apc", format_hints.Hex, _apc(lambda apc: format_hints.Hex(apc.address))),
    Column("Kind", str, _apc(lambda apc: _known(apc.kind)), wide=True),
    Column("KernelRoutine", str, _routine("kernel_routine")),
    Column("NormalRoutine", str, _routine("normal_routine"), wide=True),
    Column("RundownRoutine", str, _routine("rundown_routine"), wide=True),
    Column("NormalContext", format_hints.Hex, _number("normal_context"), wide=True),
    Column("SystemArgument1", format_hints.Hex, _number("system_argument1"), wide=True),
    Column("SystemArgument2", format_hints.Hex, _number("system_argument2"), wide=True),
    Column("Target", str, _target, wide=True),
    Column("Origin", str, _origin),
    Column("Severity", str, lambda row: str(row.severity)),
    Column("Findings", str, _findings),
    Column("Explanation", str, _explanation),
)
