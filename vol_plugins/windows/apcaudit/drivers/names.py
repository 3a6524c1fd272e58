"""The name at or below an address, in a table sorted by address, and the name to print where one has several."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TypeVar

Name = TypeVar("Name")

# Routines that the WDK documents under these names and that have others too. wdm.h: #define KeWaitForMutexObject
# KeWaitForSingleObject; the page of IoGetCurrentProcess says to call PsGetCurrentProcess. The rest share their address
# with code that the linker found equal, in the public PDBs of XP SP3 to 11: BgpFwGetCurrentIrql, FsRtlResetBaseMcb,
# HvlpFreeOverlayPages, HalPutDmaAdapter, EtwpGetProcessStartKey, RtlFreeAnsiString, EtwpGetSystemTime.
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
"""What a name begins with that a C++ compiler has made."""


def nearest(addresses: Sequence[int], names: Sequence[Name], address: int) -> tuple[Name, int] | None:
    """Return what is named at or below an address, and the distance in bytes; None below the first.

    Args:
        addresses: ascending, relative virtual or virtual as `address` is.
        names: what is at each of them.
        address: where to look.
    """
    index = bisect_right(addresses, address) - 1
    return (names[index], address - addresses[index]) if index >= 0 else None


def familiar(names: Iterable[str]) -> str:
    """Choose among the names of one address the one that a reader knows, else the first by alphabet."""
    return min(names, key=lambda name: (name not in _FAMILIAR, name.startswith(_DECORATED), name))
