"""Text: what is safe to print of an image, which name of an address is printed, and FILETIMEs as times and spans."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import TypeVar

LONGEST = 256
"""How many characters of a name are printed; the longest driver path fits."""

# Unicode categories that can move the cursor, hide text or reverse its direction: control, format, surrogate, private
# use, unassigned, line and paragraph separators, and spaces other than U+0020 (Unicode Standard, chapter 4.5).
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})


def printable(text: str) -> str:
    r"""Escape characters that a terminal could interpret as `\xNN`, `\uNNNN` or `\UNNNNNNNN`; cut at LONGEST."""
    if text.isascii() and text.isprintable():
        return text if len(text) <= LONGEST else text[:LONGEST] + "..."
    shown = "".join(_escape(character) for character in text[:LONGEST])
    return shown if len(text) <= LONGEST else shown + "..."


def from_ansi(data: bytes) -> str:
    """Decode an array of 8-bit characters up to its first NUL, as printable()."""
    return printable(data.partition(b"\0")[0].decode("latin-1"))


def from_utf16(data: bytes) -> str:
    """Decode the buffer of a UNICODE_STRING, as printable(); lone surrogates become escapes."""
    return printable(data.decode("utf-16-le", "surrogatepass" if len(data) % 2 == 0 else "replace"))


def _escape(character: str) -> str:
    if character == " " or unicodedata.category(character) not in _UNPRINTABLE:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


Name = TypeVar("Name")

# Routines that the WDK documents under these names and that have other names at the same address. wdm.h defines
# KeWaitForMutexObject as KeWaitForSingleObject; the page of IoGetCurrentProcess says to call PsGetCurrentProcess. The
# linker folded the rest with identical code in the public PDBs of XP SP3 to 11, of BgpFwGetCurrentIrql,
# FsRtlResetBaseMcb, HvlpFreeOverlayPages, HalPutDmaAdapter, EtwpGetProcessStartKey, RtlFreeAnsiString,
# EtwpGetSystemTime.
_FAMILIAR = frozenset(
    {
        "KeWaitForSingleObject",
        "PsGetCurrentProcess",
        "KeGetCurrentIrql",
        "KeClearEvent",
        "MmFreeContiguousMemorySpecifyCache",
        "ObDereferenceObject",
        "PsGetProcessStartKey",
        "RtlFreeUnicodeString",
        "RtlGetSystemTimePrecise",
    }
)
_DECORATED = "?"
"""First character of decorated C++ names."""


def nearest(addresses: Sequence[int], names: Sequence[Name], address: int) -> tuple[Name, int] | None:
    """Return the name of the nearest entry at or below an address, and the distance in bytes; None below the first.

    Args:
        addresses: ascending; virtual or relative as `address` is.
        names: the name, or list of names, at each of them.
        address: the address to look up.
    """
    index = bisect_right(addresses, address) - 1
    return (names[index], address - addresses[index]) if index >= 0 else None


def choose_name(names: Iterable[str]) -> str:
    """Choose the name to print among those of one address: a documented one, else the first in alphabetical order."""
    return min(names, key=lambda name: (name not in _FAMILIAR, name.startswith(_DECORATED), name))


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
