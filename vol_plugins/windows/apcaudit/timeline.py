"""When threads began and ended, as far as _ETHREAD tells."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

from . import facts as windows
from .model import Audited, Facts
from .thread_members import ThreadMembers

CREATED, EXITED = "created", "exited"

_EPOCH = datetime(1601, 1, 1, tzinfo=timezone.utc)  # FILETIME counts from here (Windows SDK, minwinbase.h)


def created(members: ThreadMembers, facts: Facts) -> int | None:
    """Return when a thread was created in FILETIME ticks of 100 ns, None where it does not tell."""
    return (members.create_time >> facts.create_time_shift or None) if members.create_time else None


def exited(members: ThreadMembers) -> int | None:
    """Return when a thread ended in FILETIME ticks of 100 ns, None where it has not.

    ExitTime shares its place with LpcReplyChain or KeyedWaitChain, which a live thread uses (public PDBs).
    """
    return (members.exit_time or None) if members.state == windows.TERMINATED else None


def moment(filetime: int | None) -> datetime | None:
    """Turn FILETIME ticks into a time in UTC, None where there is none or no calendar holds it."""
    if filetime is None:
        return None
    try:
        return _EPOCH + timedelta(microseconds=filetime // 10)
    except OverflowError:
        return None


def timeline(audited: Audited, facts: Facts) -> Iterator[tuple[str, str, datetime]]:
    """Yield (description, `created` or `exited`, time) for a reported thread."""
    thread = audited.thread
    members = thread.members
    codes = {finding.code for finding in audited.findings}
    codes.update(finding.code for found in audited.apc_findings.values() for finding in found)
    text = f"APC audit: thread {members.tid} of {thread.owner or 'an unknown process'}, _ETHREAD {thread.address:#x}"
    text += f": {', '.join(sorted(codes))}" if codes else ""
    for kind, time in ((CREATED, created(members, facts)), (EXITED, exited(members))):
        at = moment(time)
        if at is not None:
            yield text, kind, at
