"""The memory of one kernel stack, read once, and where it was changed to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import unpack_from

from .frame import StackKind, StackRange


@dataclass(frozen=True, slots=True)
class Switch:
    """Where the kernel saves what it comes from when it changes to a stack: addresses of the saved ip and sp.

    `ip_at` is None where no instruction pointer is saved: the function that changed stacks is still the innermost one.
    """

    ip_at: int | None
    sp_at: int

    @property
    def start(self) -> int:
        """The lower one of the two addresses; no frame is above it."""
        return self.sp_at if self.ip_at is None else min(self.ip_at, self.sp_at)


class StackView:
    """The words of a kernel stack [limit, base), read once.

    Args:
        limit: its lowest address.
        data: its bytes; those in the holes are ignored.
        holes: the unreadable ranges [start, end) in bytes from the limit.
        pointer_size: 4 or 8.
        entry: address of the trap frame of the entry from user mode, None where there is none. Above it are no frames,
            only floating-point state and leftovers of earlier calls.
        kind: which stack it is.
        switch: where the change to this stack saved what it came from, None where the kernel never changes to it.
        others: the known stacks that a walk may go on on.
    """

    def __init__(
        self,
        limit: int,
        data: bytes,
        holes: Iterable[tuple[int, int]],
        pointer_size: int,
        entry: int | None = None,
        *,
        kind: StackKind = StackKind.THREAD,
        switch: Switch | None = None,
        others: tuple[StackRange, ...] = (),
    ) -> None:
        self.limit = limit
        self.base = limit + len(data)
        self.pointer_size = pointer_size
        self.entry = entry
        self.kind = kind
        self.switch = switch
        self.others = others
        self._data = data
        self._holes = tuple(holes)

    @property
    def present(self) -> bool:
        """Whether any of it can be read."""
        return sum(end - start for start, end in self._holes) < len(self._data)

    @property
    def range(self) -> StackRange:
        """Which stack it is, and where."""
        return StackRange(self.kind, self.limit, self.base)

    @property
    def top(self) -> int:
        """The address above which there are no frames."""
        top = self.base if self.entry is None else self.entry
        return top if self.switch is None else min(top, self.switch.start)

    @property
    def searched(self) -> str:
        """The ending of a walk that found no further return address up to the top."""
        where = "on the stack" if self.entry is None else "below the trap frame of the entry from user mode"
        return f"no further return address {where}"

    def with_entry(self, entry: int | None) -> StackView:
        """Return the same stack with another trap frame of the entry from user mode."""
        return StackView(
            self.limit,
            self._data,
            self._holes,
            self.pointer_size,
            entry,
            kind=self.kind,
            switch=self.switch,
            others=self.others,
        )

    def is_on_other(self, address: int) -> bool:
        """Return whether an address is on another known stack that a walk may go on on."""
        return any(other.holds(address) for other in self.others)

    def word(self, address: int) -> int | None:
        """Return the word at an address; None outside of the stack, at an unaligned address, or in a hole."""
        start, end = address - self.limit, address - self.limit + self.pointer_size
        if start < 0 or end > len(self._data) or address % self.pointer_size:
            return None
        if any(max(start, hole) < min(end, hole_end) for hole, hole_end in self._holes):
            return None
        return int.from_bytes(self._data[start:end], "little")

    def words(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (address, value) of the words in [start, end), without zeros and those in holes."""
        size = self.pointer_size
        first = -(-max(start, self.limit) // size) * size
        count = max(min(end, self.base) - first, 0) // size
        # All of them at once, since most words are zero and cost nothing then.
        values = unpack_from(f"<{count}{'Q' if size == 8 else 'I'}", self._data, first - self.limit) if count else ()
        for address, value in zip(range(first, first + count * size, size), values, strict=True):
            if value and self.word(address) is not None:
                yield address, value

    def find_word(self, value: int, start: int, end: int) -> Iterator[int]:
        """Yield the addresses in [start, end) of words with a given value."""
        wanted = value.to_bytes(self.pointer_size, "little")
        at = self._data.find(wanted, max(start - self.limit, 0))
        while 0 <= at < end - self.limit:
            if self.word(self.limit + at) == value:
                yield self.limit + at
            at = self._data.find(wanted, at + 1)

    def holds(self, address: int) -> bool:
        """Return whether an address is on the stack."""
        return self.limit <= address < self.base
