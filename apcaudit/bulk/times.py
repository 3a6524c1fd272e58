"""Times that a calendar holds: what an image says of its clock and its threads may be any 64 bits."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

SPAN = "1970 to 9999"
"""The years that are taken for a time: tools count from the first, and after the last ISO 8601 has no four digits.

A FILETIME goes from 1601 to the year 30828 (Windows SDK, minwinbase.h).
"""


def moment(seconds: float | None) -> datetime | None:
    """Turn seconds since 1970 into a time in UTC, None where there is none or no calendar holds it."""
    if seconds is None or not seconds >= 0:
        return None
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return None
