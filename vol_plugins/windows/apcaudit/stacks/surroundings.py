"""What a walk over a stack asks: the words on it, and what the code that they point to is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from .calls import CallBefore
from .frame import How

FRAMES_BOUND = 64
"""How many frames of a stack are given."""

FUNCTION_BOUND = 0x10000
"""How many bytes behind its start a function is believed to reach where nothing names functions."""


FROM_USER = "entered from user mode"
"""How a walk ends that has reached the trap frame of the entry from user mode, beyond which nothing is this call's."""


@dataclass(frozen=True, slots=True)
class Found:
    """A frame by numbers alone: what `frame.Frame` says of it."""

    ip: int
    how: How
    address: int | None = None
    found_at: int | None = None
    arguments: tuple[int, ...] = ()
    follows_call: bool | None = None


@dataclass(frozen=True, slots=True)
class Walked:
    """The frames that a walk found, innermost first, and how it ended."""

    frames: tuple[Found, ...]
    ending: str


class CodeView(Protocol):
    """The code of the loaded modules."""

    def is_code(self, address: int) -> bool:
        """Tell whether an address lies in a module and, where its headers can be read, in a section of code."""

    def call_before(self, address: int) -> CallBefore:
        """Look for the call that ends at an address."""

    def read_code(self, address: int, length: int) -> bytes | None:
        """Read bytes of code."""

    def function(self, address: int) -> int | None:
        """Return where the function that holds an address starts, None where nothing tells."""

    def same_module(self, one: int, other: int) -> bool:
        """Tell whether two addresses lie in one module."""

    def is_dispatcher(self, address: int) -> bool:
        """Tell whether what lies there jumps to an address it was given, so that a call of it may lead anywhere."""


class StackView:
    """The words of a kernel stack [limit, base), read once.

    Args:
        limit: its lowest address.
        data: its bytes, with anything in the holes.
        holes: the unreadable ranges [start, end) in bytes from the limit.
        pointer_size: 4 or 8.
        entry: the trap frame of the entry from user mode, None where there is none. Beyond it no frames lie, but what
            the processor's floating point state and earlier calls have left.
    """

    def __init__(
        self,
        limit: int,
        data: bytes,
        holes: Iterable[tuple[int, int]],
        pointer_size: int,
        entry: int | None = None,
    ) -> None:
        self.limit = limit
        self.base = limit + len(data)
        self.pointer_size = pointer_size
        self.entry = entry
        self._data = data
        self._holes = tuple(holes)

    @property
    def top(self) -> int:
        """Where frames end."""
        return self.base if self.entry is None else self.entry

    @property
    def searched(self) -> str:
        """How a walk ends that has found nothing more up to the top."""
        where = "on the stack" if self.entry is None else "below the trap frame of the entry from user mode"
        return f"no further return address {where}"

    def entered_at(self, entry: int | None) -> StackView:
        """Return the same stack with another entry from user mode."""
        return StackView(self.limit, self._data, self._holes, self.pointer_size, entry)

    def word(self, address: int) -> int | None:
        """Return a word, None beyond the stack, at an odd address, or where it cannot be read."""
        start, end = address - self.limit, address - self.limit + self.pointer_size
        if start < 0 or end > len(self._data) or address % self.pointer_size:
            return None
        if any(max(start, hole) < min(end, hole_end) for hole, hole_end in self._holes):
            return None
        return int.from_bytes(self._data[start:end], "little")

    def places(self, value: int, start: int, end: int) -> Iterator[int]:
        """Yield the addresses in [start, end) of words that have a value."""
        wanted = value.to_bytes(self.pointer_size, "little")
        at = self._data.find(wanted, max(start - self.limit, 0))
        while 0 <= at < end - self.limit:
            if self.word(self.limit + at) == value:
                yield self.limit + at
            at = self._data.find(wanted, at + 1)

    def holds(self, address: int) -> bool:
        """Tell whether an address lies on the stack."""
        return self.limit <= address < self.base
