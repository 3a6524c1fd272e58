"""The findings about a thread or process that some view of the threads does not show."""

from __future__ import annotations

from .. import facts as windows
from ..model import Facts, Finding, Severity, Thread, View

_NAMES = {
    View.LIST: "its process's list",
    View.CID: "the CID table",
    View.CPU: "a processor's control block",
    View.SCAN: "the scan of physical memory",
    View.DUMP: "the dump's header",
}


def hidden_thread(thread: Thread, facts: Facts) -> Finding | None:
    """A live thread is missing from a view that was read to its end."""
    absence = thread.absence
    # A thread that is still being created has its CID before its place in the list; a terminated one is a leftover.
    if absence is None or thread.idle or thread.members.state in (windows.INITIALIZED, windows.TERMINATED):
        return None
    holders = " and ".join(name for view, name in _NAMES.items() if view in thread.views)
    text = f"the live thread is held by {holders or 'no other view'} but not by {_NAMES[View(absence.missed_by)]}"
    if absence.neighbours is not None:
        text += f"; {absence.neighbours.value}"
    if absence.stopped:
        text += "; the machine stood still, so this is no smear"
    elif absence.smear:
        text += "; it was created while the image was being taken, which explains it (smear)"
    else:
        text += "; unless the image is smeared, it was hidden"
    if thread.members.terminated:
        text += "; it is marked for termination"
    return Finding("hidden-thread", Severity.LOW if absence.smear else Severity.HIGH, text)


def hidden_process(thread: Thread, facts: Facts) -> Finding | None:
    """A live thread belongs to a process that PsActiveProcessHead does not hold."""
    if thread.owner_listed is not False or thread.idle or thread.owner is None:
        return None
    if thread.members.state in (windows.INITIALIZED, windows.TERMINATED):
        return None
    return Finding(
        "hidden-process",
        Severity.HIGH,
        f"the live thread's process {thread.owner} at {thread.owner.address:#x} is not in PsActiveProcessHead",
    )


CHECKS = (hidden_thread, hidden_process)
