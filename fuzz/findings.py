"""One audit of one damaged image: its rows by thread, and the comparison with those of the undamaged one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fuzz.ground import Mutation

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
    from volatility3.plugins.windows.apcaudit.output.columns import COLUMNS, rows_of
    from volatility3.plugins.windows.apcaudit.signatures.options import RuleOptions

    # The shipped rules are left out: YARA has a time limit of its own, and takes longer than all the rest.
    run = Audit(context, module, scan_memory=scan, rules=RuleOptions(defaults=False))
    threads: dict[int, Seen] = {}
    for audited in run.run(Selection(clean_too=everything)):
        rows = tuple(
            tuple(str(column.value(row)) for column in COLUMNS) for row in rows_of(audited, run.facts, wide=True)
        )
        codes = {finding.code for finding in audited.findings}
        codes |= {finding.code for apc in audited.apcs.values() for finding in apc.findings}
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
    layout = run.kernel.layout
    heads = [layout.kernel_head, layout.user_head]
    if thread.members.apc_state_index == 1:
        heads += [layout.saved_kernel_head, layout.saved_user_head]
    for offset in heads:
        head = thread.address + offset
        at, met = run.kernel.memory.pointer(head), set()
        while at is not None and at != head and at not in met and len(met) < 5000:
            met.add(at)
            at = run.kernel.memory.pointer(at)
        if at != head and not codes & _LIST_CODES:
            yield f"the list at {head:#x} does not come back to its head and no finding says so"


def unprintable(result: Result) -> str | None:
    """Return a text that could act on a terminal, None when there is none."""
    texts = (text for seen in result.threads.values() for row in seen.rows for text in row)
    return next((text for text in (*texts, *result.notes) if not text.isprintable()), None)


# What a damaged thread's structures may add to another thread: its KAPC hangs on two lists, or names that thread.
_ADDED = {"duplicate-apc", "off-list-apc"}

# The columns in which what is added is told; every other one stays as it was.
_TELLING = ("Severity", "Findings", "Explanation")

_OF_APC = (
    "Queue", "Apc", "Kind", "KernelRoutine", "NormalRoutine", "RundownRoutine", "NormalContext", "SystemArgument1",
    "SystemArgument2", "Target", "Origin",
)  # fmt: skip

# Which note excuses that a finding elsewhere is gone: one about the very structure that would prove it.
_OF_MODULES = ("PsLoadedModuleList", "the entry of ", "headers of ")
_OF_THREADS = (
    "does not close", "the thread list of ", "PspCidTable", "KiProcessorBlock",
    "processes of PsActiveProcessHead are left out",
)  # fmt: skip
_BACKING = {
    "module-conflict", "orphan-start", "routine-unbacked", "unloaded-start", "routine-unloaded", "routine-not-code",
}  # fmt: skip
# What could not be read of a process's user space, or of its _EPROCESS that leads there.
_OF_USERS = ("of what user APCs in ", *_OF_THREADS)
_EXCUSES: Mapping[str, tuple[str, ...]] = {
    "module-conflict": _OF_MODULES,
    "orphan-start": _OF_MODULES,
    "routine-unbacked": _OF_MODULES,
    "unloaded-start": _OF_MODULES,
    "routine-unloaded": _OF_MODULES,
    "routine-not-code": _OF_MODULES,
    "hidden-thread": _OF_THREADS,
    "hidden-process": _OF_THREADS,
    # Whether the process is a 32-bit program, whose user APCs have encoded routines, is read from its _EPROCESS.
    "kernel-normal-in-user-apc": _OF_THREADS,
    "embedded-apc-altered": ("KAPCs that are members of threads are not checked",),
    "user-apc-private-code": _OF_USERS,
    "user-apc-gadget": _OF_USERS,
    "user-apc-loader": _OF_USERS,
    "user-apc-nowhere": _OF_USERS,
    "user-apc-early": _OF_USERS,
    "user-apc-wow64": _OF_USERS,
    "user-apc-patched-image": _OF_USERS,
}

# Which finding that stays has all that matters of one that is gone: besides it, only a name was told, a section of a
# module that holds nothing any more, or an entry that claims too much, which nothing claims any more.
_STRONGER: Mapping[str, frozenset[str]] = {
    "unloaded-start": frozenset({"orphan-start"}),
    "routine-unloaded": frozenset({"routine-unbacked"}),
    "module-conflict": frozenset({"orphan-start"}),
    "routine-not-code": frozenset({"orphan-start", "routine-unbacked", "module-conflict"}),
}


def elsewhere(before: Result, after: Result, made: Mutation, *, local: bool) -> tuple[str, str] | None:
    """Compare the threads that were not touched; return what is wrong and where, None when nothing is.

    Args:
        before: the audit of the undamaged image.
        after: that of the damaged one.
        made: the damage.
        local: whether nothing was damaged that other threads depend on, so that their rows must be the same.
    """
    touched = made.owners
    notes = tuple(set(after.notes) - set(before.notes))
    shared = _apcs(before, touched)
    for address, seen in before.threads.items():
        if address in touched:
            continue
        now = after.threads.get(address)
        if now is None:
            if local or made.keeps_rows or (seen.codes and not _told(notes, _OF_THREADS)):
                return ("locality" if local else "monotony", f"thread {address:#x} has no row any more")
            continue
        # That a KAPC hangs on two lists is told of both threads. It is proven by both lists: where the other one, which
        # was touched, does not lead to it any more, it does not.
        unproven = {"duplicate-apc"} if shared & _apcs(before, {address}) else set()
        moved = _moved(seen, after, touched)
        gone = seen.codes - now.codes - unproven - moved
        lost = sorted(each for each in gone if local or not _excused(each, now, notes, made))
        if lost:
            return "monotony", f"thread {address:#x} lost {lost}"
        if local and not _same_but_for_more(seen, now, unproven | moved):
            return "locality", f"thread {address:#x}: {_difference(seen.rows, now.rows)}"
    return None


def _told(notes: tuple[str, ...], phrases: tuple[str, ...]) -> bool:
    return any(phrase in note for note in notes for phrase in phrases)


def _excused(code: str, now: Seen, notes: tuple[str, ...], made: Mutation) -> bool:
    """Tell whether a finding may be gone that a thread had which nobody touched."""
    if _STRONGER.get(code, frozenset()) & now.codes:
        return True
    if code in _LIST_CODES and now.codes & _LIST_CODES:
        # A queue that is damaged is still told to be; where its walk ends may depend on what else can be read.
        return True
    if code == "exit-bugcheck" and "list" not in _cell(now.rows[0], "Views").split("+"):
        # Terminated and off its list is what every thread is some day: nothing can be told of it.
        return True
    if made.backing_stays and code in _BACKING:
        # A module's entry that lies makes what it could hold doubtful: that is another finding, never none.
        return bool(_BACKING & now.codes)
    return _told(notes, _EXCUSES.get(code, ()))


def _moved(seen: Seen, after: Result, touched: set[int]) -> set[str]:
    """Return which codes a thread may lose since its KAPCs of no list now hang on the lists of threads touched.

    There they are told with all that is wrong with them; only that no list holds them is true no more.
    """
    loose = {_cell(row, "Apc") for row in seen.rows if _cell(row, "Queue") == "off-list"}
    holders = [now for each in touched if (now := after.threads.get(each)) and loose & _apcs(after, {each})]
    if not loose or not loose <= _apcs(after, touched):
        return set()
    return {"off-list-apc"}.union(*(each.codes for each in holders))


def _apcs(result: Result, threads: Iterable[int]) -> set[str]:
    """Return the KAPCs that the rows of some threads tell of, by address."""
    rows = (row for each in threads if each in result.threads for row in result.threads[each].rows)
    return {cell for row in rows if (cell := _cell(row, "Apc")).isdigit()}


def _same_but_for_more(seen: Seen, now: Seen, taken: set[str]) -> bool:
    """Tell whether a thread's rows are the same, or say besides only what another thread's KAPC adds or takes away."""
    if seen.rows == now.rows:
        return True
    if not now.codes & _ADDED and not seen.codes & taken:
        return False
    kept = [row for row in now.rows if _cell(row, "Queue") != "off-list" or row in seen.rows]
    left = [
        row for row in seen.rows if _cell(row, "Queue") != "off-list" or row in now.rows or "off-list-apc" not in taken
    ]
    if (not kept and len(left) == 1) or (not left and len(kept) == 1):
        # The row of a thread with nothing queued has become that of the one KAPC, or the other way round.
        return _silent(seen.rows[0], _OF_APC) == _silent(now.rows[0], _OF_APC)
    return [_silent(row) for row in left] == [_silent(row) for row in kept]


def _cell(row: tuple[str, ...], name: str) -> str:
    return row[_columns().index(name)]


def _silent(row: tuple[str, ...], without: tuple[str, ...] = ()) -> tuple[str, ...]:
    cells = zip(row, _columns(), strict=True)
    return tuple(cell for cell, name in cells if name not in _TELLING and name not in without)


@cache
def _columns() -> tuple[str, ...]:
    from volatility3.plugins.windows.apcaudit.output.columns import COLUMNS

    return tuple(column.name for column in COLUMNS)


def _difference(before: Rows, after: Rows) -> str:
    if len(before) != len(after):
        return f"{len(before)} rows became {len(after)}"
    for one, two in zip(before, after, strict=True):
        for old, new in zip(one, two, strict=True):
            if old != new:
                return f"{old!r} became {new!r}"
    return "no difference"
