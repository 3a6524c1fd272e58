"""The name at or below an address, in a table sorted by address."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeVar

Name = TypeVar("Name")


def nearest(addresses: Sequence[int], names: Sequence[Name], address: int) -> tuple[Name, int] | None:
    """Return what is named at or below an address, and the distance in bytes; None below the first.

    Args:
        addresses: ascending, relative virtual or virtual as `address` is.
        names: what is at each of them.
        address: where to look.
    """
    index = bisect_right(addresses, address) - 1
    return (names[index], address - addresses[index]) if index >= 0 else None
