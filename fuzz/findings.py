"""One audit of one damaged image: its rows by thread, and the comparison with those of the undamaged one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TERMINATED = 4  # _KTHREAD.State

Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What an audit said of one thread: its rows as text, its codes, and whether a list of its was not read whole."""

    rows: Rows
    codes: frozenset[str]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What an audit said: threads by the address of their _ETHREAD, and notes."""

    threads: Mapping[int, Seen]
    notes: tuple[str, ...]


def audit(context: Any, module: str, *, scan: bool, everything: bool = True) -> Result:
    """Audit the image of a context as the plugin does, every column of every row made."""
    from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
    from volatility3.plugins.windows.apcaudit.columns import COLUMNS, rows_of
    from volatility3.plugins.windows.apcaudit.signatures.options import RuleOptions

    # The shipped rules are left out: YARA has a time limit of its own, and takes longer than all the rest.
    run = Audit(context, module, scan_memory=scan, rules=RuleOptions(defaults=False))
    threads: dict[int, Seen] = {}
    for audited in run.run(Selection(clean_too=everything)):
        rows = tuple(
            tuple(str(column.value(row)) for column in COLUMNS) for row in rows_of(audited, run.facts, wide=True)
        )
        codes = {finding.code for finding in audited.findings}
        codes |= {finding.code for found in audited.apc_findings.values() for finding in found}
        thread = audited.thread
        unread = tuple(_unreported(thread.queues, codes, partial=run.facts.partial))
        # The lists of a thread that has ended and only lies in memory are nobody's any more.
        gone = thread.members.state == _TERMINATED and not {each.value for each in thread.views} & {"list", "cpu"}
        unread += () if gone or run.facts.partial else tuple(_unwalked(run, thread, codes))
        before = threads.get(thread.address)
        if before is not None:
            unread += ("the thread is given twice",)
        threads[thread.address] = Seen(rows, frozenset(codes), unread)
    return Result(threads, tuple(run.notes))


_LIST_CODES = {"list-broken", "list-cycle", "list-truncated"}


def _unreported(queues: Any, codes: set[str], *, partial: bool) -> Iterator[str]:
    for queue in queues:
        if queue.name.value == "off-list" or (partial and queue.ending.name == "UNREADABLE"):
            continue
        if (queue.ending.name != "CLOSED" or queue.broken_at is not None) and not codes & _LIST_CODES:
            yield f"the {queue.name.value} list ended {queue.ending.name} and no finding says so"


def _unwalked(run: Any, thread: Any, codes: set[str]) -> Iterator[str]:
    """Walk the lists a second way, by Flink alone and without the plugin's walk, and compare what it says."""
    layout = run.layout
    heads = [layout.kernel_head, layout.user_head]
    if thread.members.apc_state_index == 1:
        heads += [layout.saved_kernel_head, layout.saved_user_head]
    for offset in heads:
        head = thread.address + offset
        at, steps = run.memory.pointer(head), 0
        while at is not None and at != head and steps < 5000:
            at, steps = run.memory.pointer(at), steps + 1
        if at != head and not codes & _LIST_CODES:
            yield f"the list at {head:#x} does not come back to its head and no finding says so"


def unprintable(result: Result) -> str | None:
    """Return a text that could act on a terminal, None when there is none."""
    texts = (text for seen in result.threads.values() for row in seen.rows for text in row)
    return next((text for text in (*texts, *result.notes) if not text.isprintable()), None)


# What the damaged thread's structures may add to another thread: its KAPC hangs on two lists, or names that thread.
_ADDED = {"duplicate-apc", "off-list-apc"}

# What cannot be told of a terminated thread once it is off its list, as every terminated thread is some day.
_LEFT_OVER = {"exit-bugcheck"}

# What is told of a finding besides another one that stays: the unloaded driver's name.
_NAMED = {"unloaded-start", "routine-unloaded"}


def elsewhere(before: Result, after: Result, touched: set[int], *, local: bool) -> tuple[str, str] | None:
    """Compare the threads that were not touched; return what is wrong and where, None when nothing is.

    Args:
        before: the audit of the undamaged image.
        after: that of the damaged one.
        touched: the threads whose structures were damaged.
        local: whether nothing was damaged that other threads depend on, so that their rows must be the same.
    """
    told = bool(set(after.notes) - set(before.notes))
    for address, seen in before.threads.items():
        if address in touched:
            continue
        now = after.threads.get(address)
        if now is None:
            if local or (seen.codes - _LEFT_OVER and not told):
                return ("locality" if local else "monotony", f"thread {address:#x} has no row any more")
            continue
        lost = seen.codes - now.codes - (set() if local else _LEFT_OVER | _NAMED)
        if "orphan-start" in now.codes and not local:
            # Where the entry that claims too much is unlinked, nothing claims the address any more.
            lost -= {"module-conflict"}
        if lost and (local or not told):
            return "monotony", f"thread {address:#x} lost {sorted(lost)}"
        if local and seen.rows != now.rows and _times(now.rows) <= _times(seen.rows):
            return "locality", f"thread {address:#x}: {_difference(seen.rows, now.rows)}"
    return None


def _times(rows: Rows) -> int:
    """Count how often what another thread's damage may add is told."""
    return sum(text.count(code) for row in rows for text in row for code in _ADDED)


def _difference(before: Rows, after: Rows) -> str:
    if len(before) != len(after):
        return f"{len(before)} rows became {len(after)}"
    for one, two in zip(before, after, strict=True):
        for old, new in zip(one, two, strict=True):
            if old != new:
                return f"{old!r} became {new!r}"
    return "no difference"
