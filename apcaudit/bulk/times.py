"""Converting times of images, which may be any 64 bits, to times that a calendar has."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

SPAN = "1970 to 9999"
"""The years of valid times: tools count from the first, and after the last ISO 8601 needs more than four digits.

A FILETIME goes from 1601 to the year 30828 (Windows SDK, minwinbase.h).
"""


def moment(seconds: float | None) -> datetime | None:
    """Convert seconds since 1970 to a time in UTC, None for None and for times outside of SPAN."""
    if seconds is None or not seconds >= 0:
        return None
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return None
