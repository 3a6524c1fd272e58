"""One mutation tried: what came of it, or which promise was broken."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from fuzz.findings import Result, elsewhere, unprintable
from fuzz.ground import Mutation
from fuzz.layer import TooManyReadsError

SECONDS = 20.0
"""How much processor time the audits of one damaged image may take; undamaged, one takes some hundredths of it."""

GOOD = ("same", "reported", "changed", "refused")
BAD = ("exception", "endless", "locality", "monotony", "unreported", "not the same again", "unprintable")

SCAN_EVERY = 7
AGAIN_EVERY = 11


class Tried(Protocol):
    """What can be mutated and audited."""

    name: str

    def mutation(self, seed: int, index: int) -> Mutation:
        """Make a mutation."""

    def before(self, *, scan: bool) -> Result:
        """Return the audit of what is undamaged."""

    def apply(self, made: Mutation) -> None:
        """Do the damage."""

    def after(self, *, scan: bool, everything: bool = True) -> Result | None:
        """Audit the damaged; None is one clear error instead."""

    def is_local(self, made: Mutation) -> bool:
        """Tell whether only single threads' own structures are damaged."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How an audit of a damaged image ended: kind of damage, outcome, and for a broken promise what happened."""

    subject: str
    seed: int
    index: int
    kind: str
    outcome: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return self.outcome in GOOD


class _TimeOutError(BaseException):
    """An audit took too long."""


@contextmanager
def _guard(seconds: float) -> Iterator[None]:
    def stop(_signal: int, _frame: Any) -> None:
        raise _TimeOutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def attempt(subject: Tried, seed: int, index: int) -> Trial:
    """Try one mutation: every few with --scan, every few twice."""
    made = subject.mutation(seed, index)
    start = time.process_time()
    try:
        with _guard(SECONDS):
            outcome, detail = _judge(subject, made, index)
    except (_TimeOutError, TooManyReadsError) as error:
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        outcome, detail = "endless", f"{error!r} " + " < ".join(f"{each.name}:{each.lineno}" for each in frames)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        outcome, detail = "exception", f"{error!r} " + " < ".join(f"{each.name}:{each.lineno}" for each in frames)
    if outcome not in GOOD:
        detail = f"{detail} | {'; '.join(made.told)}"
    return Trial(subject.name, seed, index, made.kind, outcome, detail, time.process_time() - start)


def _judge(subject: Tried, made: Mutation, index: int) -> tuple[str, str]:
    scan = made.scan or index % SCAN_EVERY == 0
    before = subject.before(scan=scan)
    subject.apply(made)
    after = subject.after(scan=scan)
    if after is None:
        return "refused", ""
    unread = [text for seen in after.threads.values() for text in seen.unread]
    if unread:
        return "unreported", unread[0]
    bad = unprintable(after)
    if bad is not None:
        return "unprintable", repr(bad)
    wrong = elsewhere(before, after, made, local=subject.is_local(made))
    if wrong is not None:
        return wrong
    if index % AGAIN_EVERY == 0:
        again = subject.after(scan=scan)
        if again != after:
            return "not the same again", ""
        # Without --all: the threads left out are those with neither findings nor anything queued.
        few = subject.after(scan=scan, everything=False)
        missing = [each for each, seen in after.threads.items() if seen.codes and few and each not in few.threads]
        if missing:
            return "monotony", f"thread {missing[0]:#x} has findings and is left out without --all"
    if after == before:
        return "same", ""
    more = any(
        seen.codes - before.threads[at].codes if at in before.threads else True for at, seen in after.threads.items()
    )
    return ("reported" if more or set(after.notes) - set(before.notes) else "changed"), ""
