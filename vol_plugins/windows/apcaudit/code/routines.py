"""Routines of Windows that the checks of a start routine look for, by name; documented in the WDK."""

from __future__ import annotations

SEND = frozenset({"FltSendMessage"})
"""Waits for a process to take a message, attached to it for a moment (fltMgr)."""

ACQUIRE_MUTEX = frozenset(
    {
        "ExAcquireFastMutex",  # hal's up to 7 on x86, then nt's
        "ExAcquireFastMutexUnsafe",
        "ExiAcquireFastMutex",
        "ExTryToAcquireFastMutex",
        "KeAcquireGuardedMutex",
        "KeAcquireGuardedMutexUnsafe",
        "KeTryToAcquireGuardedMutex",
    }
)
RELEASE_MUTEX = frozenset(
    {
        "ExReleaseFastMutex",
        "ExReleaseFastMutexUnsafe",
        "ExiReleaseFastMutex",
        "KeReleaseGuardedMutex",
        "KeReleaseGuardedMutexUnsafe",
    }
)

DISABLE_APCS = frozenset({"KeEnterCriticalRegion", "KeEnterGuardedRegion"})
ENABLE_APCS = frozenset({"KeLeaveCriticalRegion", "KeLeaveGuardedRegion"})

WAIT = frozenset(
    {
        "KeWaitForSingleObject",
        "KeWaitForMutexObject",
        "KeWaitForMultipleObjects",
        "KeDelayExecutionThread",
        "FltSendMessage",
    }
)
"""Let another thread run while the caller waits."""


def named(names: frozenset[str], wanted: frozenset[str]) -> str | None:
    """Return that of some names, `module!function`, whose function is among the wanted ones; None if none is."""
    return min((name for name in names if name.rpartition("!")[2] in wanted), default=None)
