"""FILETIMEs as times and spans."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

_EPOCH = datetime(1601, 1, 1, tzinfo=timezone.utc)  # FILETIME counts from here (Windows SDK, minwinbase.h)

_TICKS = 10_000_000
"""Ticks of 100 ns in a second."""


def moment(filetime: int | None) -> datetime | None:
    """Convert FILETIME ticks to a time in UTC, None for None and for times beyond the year 9999."""
    if filetime is None:
        return None
    try:
        return _EPOCH + timedelta(microseconds=filetime // 10)
    except OverflowError:
        return None


def span_text(ticks: int) -> str:
    """Format a number of ticks as days, hours, minutes and seconds: `3 days 2:14:05`."""
    seconds = ticks // _TICKS
    days, rest = divmod(seconds, 86400)
    return f"{days} day{'' if days == 1 else 's'} {rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
