"""The findings about an APC list itself."""

from __future__ import annotations

from ..model import Ending, Facts, Finding, Queue, Severity, Thread


def list_broken(thread: Thread, facts: Facts) -> Finding | None:
    """A link of an APC list is unreadable or misaligned, or does not come back, or the list has no end."""
    texts = [text for queue in thread.queues if (text := _damage(queue, facts)) is not None]
    return Finding("list-broken", Severity.HIGH, "; ".join(texts)) if texts else None


def list_cycle(thread: Thread, facts: Facts) -> Finding | None:
    """An APC list closes without returning to its head."""
    queues = [queue for queue in thread.queues if queue.ending is Ending.CYCLE]
    if not queues:
        return None
    text = "; ".join(
        f"the {queue.name.value} APC list closes without returning to its head {queue.head:#x}: the entry at"
        f" {queue.ended_at:#x} points back into it after {_entries(queue)}"
        for queue in queues
    )
    return Finding("list-cycle", Severity.HIGH, text)


def list_truncated(thread: Thread, facts: Facts) -> Finding | None:
    """An APC list is longer than the audit follows."""
    queues = [queue for queue in thread.queues if queue.ending is Ending.BOUND]
    if not queues:
        return None
    text = "; ".join(f"the {queue.name.value} APC list goes on after {_entries(queue)}" for queue in queues)
    return Finding("list-truncated", Severity.MEDIUM, f"{text}: the rest was not read")


def _damage(queue: Queue, facts: Facts) -> str | None:
    where = f"the {queue.name.value} APC list"
    ended = queue.ending in (Ending.CLOSED, Ending.CYCLE, Ending.BOUND)
    # What a minidump does not hold is not damaged.
    if ended or (facts.partial and queue.ending is Ending.UNREADABLE):
        if queue.broken_at is None:
            return None
        return (
            f"{where} is broken: the Blink of the entry at {queue.broken_at:#x} does not point back to its predecessor"
        )
    return f"{where} could not be followed past {queue.ended_at:#x} after {_entries(queue)}: {queue.ending.value}"


def _entries(queue: Queue) -> str:
    return f"{len(queue.apcs)} entr{'y' if len(queue.apcs) == 1 else 'ies'}"


CHECKS = (list_broken, list_cycle, list_truncated)
