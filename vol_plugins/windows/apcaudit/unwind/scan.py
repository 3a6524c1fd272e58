"""Searches stacks for return addresses where unwinding is impossible, and recognizes call instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from struct import unpack_from
from typing import Protocol

from ..windows import PAGE_SIZE
from .frame import How

LONGEST = 7
"""Length in bytes of the longest call instruction that is recognized, without prefixes."""

_NEAR_CALL, _NEAR_CALL_LENGTH = 0xE8, 5
_GROUP_5, _INDIRECT_CALL = 0xFF, 2
_MODRM_LENGTHS = (2, 3, 4, 6, 7)
_SIB, _DISPLACEMENT_ONLY = 4, 5


@dataclass(frozen=True, slots=True)
class CallBefore:
    """Whether a call instruction ends at an address (None: cannot be read), and the target of a direct call."""

    follows: bool | None
    target: int | None = None


def call_before(code: bytes, address: int, pointer_size: int) -> CallBefore:
    """Look for a call instruction that ends at an address.

    Args:
        code: the bytes before the address, up to LONGEST, as many as can be read.
        address: the virtual address behind them.
        pointer_size: 4 or 8.
    """
    if len(code) >= _NEAR_CALL_LENGTH and code[-_NEAR_CALL_LENGTH] == _NEAR_CALL:
        distance = int.from_bytes(code[-4:], "little", signed=True)
        return CallBefore(True, (address + distance) % (1 << pointer_size * 8))
    for length in _MODRM_LENGTHS:
        if length > len(code):
            break
        start = len(code) - length
        if code[start] == _GROUP_5 and code[start + 1] >> 3 & 7 == _INDIRECT_CALL and _length(code[start:]) == length:
            return CallBefore(True)
    return CallBefore(None if len(code) < LONGEST else False)


def find_call(read: Callable[[int, int], bytes | None], address: int, pointer_size: int) -> CallBefore:
    """Look for a call instruction that ends at an address, in the readable bytes before it.

    Args:
        read: reads bytes at a virtual address, None where they cannot all be read.
        address: the virtual address at which the call would end.
        pointer_size: 4 or 8.
    """
    code = read(address - LONGEST, LONGEST)
    if code is None:
        # The page before may be missing, or a minidump may contain only some of the bytes.
        lengths = {min(address % PAGE_SIZE, LONGEST - 1), *range(1, LONGEST)}
        pieces = (read(address - length, length) for length in sorted(lengths - {0}, reverse=True))
        code = next((piece for piece in pieces if piece is not None), b"")
    return call_before(code, address, pointer_size)


def _length(code: bytes) -> int:
    """Return the length in bytes of an instruction FF /2 from its ModRM (and SIB) byte."""
    mode, register = code[1] >> 6, code[1] & 7
    if mode == 3:
        return 2
    sib = register == _SIB
    if mode == 0:
        absolute = (code[2] & 7 if sib and len(code) > 2 else register) == _DISPLACEMENT_ONLY
        return 2 + sib + (4 if absolute else 0)
    return 2 + sib + (1 if mode == 1 else 4)


FRAMES_BOUND = 64
"""How many frames of a stack are returned."""

FUNCTION_BOUND = 0x10000
"""The assumed largest size in bytes of a function whose start is a call's target, where no function start is known."""


FROM_USER = "entered from user mode"
"""The ending of a walk that has reached the trap frame of the entry from user mode; frames beyond it are stale."""


@dataclass(frozen=True, slots=True)
class Found:
    """A frame before its code address is named; see `frame.Frame`."""

    ip: int
    how: How
    address: int | None = None
    found_at: int | None = None
    arguments: tuple[int, ...] = ()
    follows_call: bool | None = None


@dataclass(frozen=True, slots=True)
class Walked:
    """The frames of a walk, innermost first, and how it ended."""

    frames: tuple[Found, ...]
    ending: str


class CodeView(Protocol):
    """Access to the code of the loaded modules."""

    def is_code(self, address: int) -> bool:
        """Return whether an address is in a module and, where its headers can be read, in an executable section."""

    def call_before(self, address: int) -> CallBefore:
        """Look for the call that ends at an address."""

    def read_code(self, address: int, length: int) -> bytes | None:
        """Read bytes of code; None unless all of them can be read."""

    def function(self, address: int) -> int | None:
        """Return the start of the function that contains an address; None where it is unknown."""

    def same_module(self, one: int, other: int) -> bool:
        """Return whether two addresses are in the same module."""

    def is_dispatcher(self, address: int) -> bool:
        """Return whether the code there jumps to a variable address, so that a call of it may lead anywhere."""


class StackView:
    """The words of a kernel stack [limit, base), read once.

    Args:
        limit: its lowest address.
        data: its bytes; those in the holes are ignored.
        holes: the unreadable ranges [start, end) in bytes from the limit.
        pointer_size: 4 or 8.
        entry: address of the trap frame of the entry from user mode, None where there is none. Above it are no frames,
            only floating-point state and leftovers of earlier calls.
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
        """The address above which there are no frames."""
        return self.base if self.entry is None else self.entry

    @property
    def searched(self) -> str:
        """The ending of a walk that found no further return address up to the top."""
        where = "on the stack" if self.entry is None else "below the trap frame of the entry from user mode"
        return f"no further return address {where}"

    def with_entry(self, entry: int | None) -> StackView:
        """Return the same stack with another trap frame of the entry from user mode."""
        return StackView(self.limit, self._data, self._holes, self.pointer_size, entry)

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


# RSP is a multiple of this at a call, so that the return address is 8 bytes below such a multiple (Microsoft, "x64
# stack usage"). Hand-written code may differ: alignment is checked only where the bytes before an address cannot be
# read.
_ALIGNMENT = 16


class Link(Enum):
    """Whether the call before a return address can have led to the frame below it."""

    CONFIRMS = "it entered that frame's function"
    ALLOWS = "it may have led there"
    CONTRADICTS = "it entered another function"


@dataclass(slots=True)
class Scanner:
    """Searches one stack; `dispatchers` are call targets that were found to jump to other functions."""

    stack: StackView
    code: CodeView
    dispatchers: set[int] = field(default_factory=set)

    def next_frames(self, ip: int, start: int) -> list[Found]:
        """Find the caller of the function at an instruction pointer (0: unknown), at or above a stack address.

        Returns:
            The caller's frame, preceded by possible frames between whose code cannot be read; empty where there is
            none. If no call could be read at all, every possible return address.
        """
        size = self.stack.pointer_size
        pending: list[Found] = []
        for slot, value in self.stack.words(start, self.stack.top):
            if not self.code.is_code(value):
                continue
            call = self.code.call_before(value)
            if call.follows is None and size == 8 and slot % _ALIGNMENT != 8:
                continue
            found = Found(value, How.SCANNED, self._address(slot), slot, follows_call=call.follows)
            if call.follows is None and self.code.function(value) != value and len(pending) < FRAMES_BOUND:
                pending.append(found)
            if not call.follows:
                continue
            link = self.link(ip, value, call.target)
            if link is Link.CONFIRMS:
                return [found]
            if link is Link.ALLOWS:
                return [*pending, found]
            between = [each for each in pending if self.link(each.ip, value, call.target) is Link.CONFIRMS]
            if between and call.target is not None:
                return [min(between, key=lambda each: each.ip), found]
        return pending

    def link(self, ip: int, return_address: int, target: int | None) -> Link:
        """Return whether a call to a target (None: indirect) can lead to the function at an instruction pointer."""
        if not ip or target is None or target in self.dispatchers or self.code.is_dispatcher(target):
            return Link.ALLOWS
        if not self.code.is_code(target):
            return Link.CONTRADICTS
        entered, current = self.code.function(target), self.code.function(ip)
        if not self.code.same_module(target, ip):
            if entered is not None:
                return Link.CONTRADICTS
            # A target in another module than `ip` can only be a thunk, for example for an import.
            if self.code.same_module(target, return_address):
                self.dispatchers.add(target)
            return Link.ALLOWS
        if entered is not None and current is not None:
            return Link.CONFIRMS if entered == current else Link.CONTRADICTS
        return Link.CONFIRMS if 0 <= ip - target < FUNCTION_BOUND else Link.CONTRADICTS

    def _address(self, slot: int) -> int | None:
        """Return Frame.address of the frame whose return address is at a slot: the stack pointer, on x86 EBP."""
        if self.stack.pointer_size == 8:
            return slot + 8
        saved = self.stack.word(slot - 4)
        return saved if saved is not None and saved > slot and self.stack.holds(saved) and not saved % 4 else None
