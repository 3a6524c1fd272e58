"""The findings about where a system thread began."""

from __future__ import annotations

from .. import facts as windows
from ..model import Backing, Facts, Finding, Severity, Thread
from .routines import not_code_finding


def orphan_start(thread: Thread, facts: Facts) -> Finding | None:
    """A live system thread starts in no loaded module."""
    start = thread.members.start_address
    # 0 is no address: some system threads keep something else there.
    if not start or thread.members.state in (None, windows.TERMINATED):
        return None
    if thread.start_backing not in (Backing.NOTHING, Backing.UNLOADED, Backing.USER):
        return None
    where = Backing.NOTHING if thread.start_backing is Backing.UNLOADED else thread.start_backing
    text = f"the system thread's start address {start:#x} lies in {where.value}"
    if thread.start is not None and thread.start.region is not None:
        text += f" ({thread.start.region})"
    if thread.start is not None and thread.start.module is not None:
        text += f", but in an image that the list does not have: {thread.start}"
    return Finding("orphan-start", Severity.HIGH, text)


def start_not_code(thread: Thread, facts: Facts) -> Finding | None:
    """A system thread starts in a module where no function begins."""
    if thread.members.state in (None, windows.TERMINATED) or thread.start is None or thread.start.not_code is None:
        return None
    return not_code_finding([("the system thread's start address", thread.start)])


def module_conflict(thread: Thread, facts: Facts) -> Finding | None:
    """A system thread starts where only an entry of the module list that is contradicted claims the address."""
    if thread.start_conflict is None or thread.members.start_address is None:
        return None
    if thread.members.state in (None, windows.TERMINATED):
        return None
    return Finding(
        "module-conflict",
        Severity.HIGH if thread.start_conflict.overlapping else Severity.MEDIUM,
        f"the system thread's start address {thread.members.start_address:#x} lies where the list of modules"
        f" contradicts itself: {thread.start_conflict}",
    )


def unloaded_start(thread: Thread, facts: Facts) -> Finding | None:
    """A system thread starts where a driver was that has been unloaded."""
    if thread.start_backing is not Backing.UNLOADED or thread.start is None:
        return None
    if thread.members.state in (None, windows.TERMINATED):
        return None
    return Finding(
        "unloaded-start",
        Severity.HIGH,
        f"the system thread's start address {thread.start.address:#x} lies in the former range of"
        f" {thread.start.former}, which has been unloaded",
    )


CHECKS = (orphan_start, unloaded_start, start_not_code, module_conflict)
