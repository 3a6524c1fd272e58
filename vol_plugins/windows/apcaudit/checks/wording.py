"""How explanations name an APC."""

from __future__ import annotations

from ..model import Apc, QueueName, Thread


def first_apc(thread: Thread, name: QueueName) -> str:
    """Name the first APC of a list in parentheses, nothing where it could not be read."""
    queue = thread.queue(name)
    if queue is None or not queue.apcs:
        return ""
    return named_apc(queue.apcs[0])


def named_apc(apc: Apc) -> str:
    """Name an APC in parentheses."""
    return f" (KAPC {apc.address:#x}, KernelRoutine {apc.kernel_routine or 'unreadable'})"
