"""The loaded modules as one table of ranges, each address in at most one; where their entries contradict another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from .driver import Driver


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two entries that claim the same addresses: the wider one, which is not believed there, and the other."""

    wide: Driver
    narrow: Driver

    def __str__(self) -> str:
        return (
            f"the entry of {self.wide.label} claims [{self.wide.base:#x}, {self.wide.end:#x}),"
            f" in which {self.narrow.label} lies at [{self.narrow.base:#x}, {self.narrow.end:#x})"
        )


class Intervals:
    """Which module holds an address: of several that claim it the smallest, and the kernel before all others."""

    def __init__(self, drivers: Sequence[Driver], kernel: int) -> None:
        """Make the table.

        Args:
            drivers: the modules in any order.
            kernel: the kernel's base address.
        """
        ranked = sorted(drivers, key=lambda driver: (driver.base != kernel, driver.end - driver.base, driver.base))
        starts: list[int] = []
        self._ends: list[int] = []
        self._owners: list[Driver] = []
        conflicts: list[Conflict] = []
        for driver in ranked:
            free = _subtract(driver.base, driver.end, starts, self._ends)
            if sum(end - start for start, end in free) < driver.end - driver.base:
                conflicts.append(Conflict(driver, self._first_within(driver, starts)))
            for start, end in free:
                index = bisect_right(starts, start)
                starts.insert(index, start)
                self._ends.insert(index, end)
                self._owners.insert(index, driver)
        self._starts = starts
        self.conflicts = tuple(conflicts)

    def at(self, address: int) -> Driver | None:
        """Return the module that an address lies in."""
        index = bisect_right(self._starts, address) - 1
        return self._owners[index] if index >= 0 and address < self._ends[index] else None

    def _first_within(self, driver: Driver, starts: list[int]) -> Driver:
        index = max(bisect_right(starts, driver.base) - 1, 0)
        while self._ends[index] <= driver.base:
            index += 1
        return self._owners[index]


def _subtract(start: int, end: int, starts: list[int], ends: list[int]) -> list[tuple[int, int]]:
    """Return what of [start, end) none of the sorted, disjoint ranges takes."""
    free: list[tuple[int, int]] = []
    index = max(bisect_right(starts, start) - 1, 0)
    while start < end and index < len(starts):
        if ends[index] > start:
            if starts[index] >= end:
                break
            if starts[index] > start:
                free.append((start, starts[index]))
            start = ends[index]
        index += 1
    if start < end:
        free.append((start, end))
    return free
