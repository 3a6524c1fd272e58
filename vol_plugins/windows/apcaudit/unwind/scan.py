"""Searches stacks for return addresses where unwinding is impossible, and recognizes call instructions."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from ..windows import FUNCTION_BOUND, PAGE_SIZE
from . import How, StackView
from .registers import Registers

LONGEST = 7
"""Length in bytes of the longest call instruction that is recognized, without prefixes."""

_NEAR_CALL, _NEAR_CALL_LENGTH = 0xE8, 5
_GROUP_5, _INDIRECT_CALL = 0xFF, 2
_MODRM_LENGTHS = (2, 3, 4, 6, 7)
_SIB, _DISPLACEMENT_ONLY = 4, 5
_CALL_POINTER, _CALL_POINTER_LENGTH = b"\xff\x15", 6  # call [displacement]: absolute on x86, relative to RIP on x64


@dataclass(frozen=True, slots=True)
class CallBefore:
    """Whether a call instruction ends at an address (None: cannot be read), and the target of a direct call.

    `pointer` is the address of the pointer that a call through memory uses, an import's for example, `through` what
    that pointer is in the image. Unlike a direct call's target it may have changed since.
    """

    follows: bool | None
    target: int | None = None
    pointer: int | None = field(default=None, compare=False)
    through: int | None = field(default=None, compare=False)


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
            return CallBefore(True, pointer=_pointer(code[start:], address, pointer_size))
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


def _pointer(call: bytes, address: int, pointer_size: int) -> int | None:
    """Return the address of the pointer that a call through memory at a fixed address uses; None for other calls."""
    if len(call) != _CALL_POINTER_LENGTH or not call.startswith(_CALL_POINTER):
        return None
    if pointer_size == 4:
        return int.from_bytes(call[2:], "little")
    return (address + int.from_bytes(call[2:], "little", signed=True)) % (1 << 64)


FRAMES_BOUND = 64
"""How many frames of a stack are returned."""

FROM_USER = "entered from user mode"
"""The ending of a walk that has reached the trap frame of the entry from user mode; frames beyond it are stale."""


@dataclass(frozen=True, slots=True)
class FoundFrame:
    """A frame before its code address is named; see `stack.Frame`."""

    ip: int
    how: How
    address: int | None = None
    found_at: int | None = None
    arguments: tuple[int, ...] = ()
    follows_call: bool | None = None
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Leaving:
    """Where a walk goes on on another stack: the registers there, and how and at which address they were found.

    `exact` is whether the instruction pointer is the next instruction, `certain` as in `stack.Frame`. `same_frame` is
    whether it is still the last frame of the walk, whose function itself changed stacks.
    """

    registers: Registers
    how: How
    found_at: int
    exact: bool = True
    certain: bool = True
    same_frame: bool = False


@dataclass(frozen=True, slots=True)
class Walked:
    """The frames of a walk on one stack, innermost first, how it ended, and where it goes on on another stack."""

    frames: tuple[FoundFrame, ...]
    ending: str
    leaving: Leaving | None = None


class CodeView(Protocol):
    """Access to the code of the loaded modules."""

    def is_code(self, address: int) -> bool:
        """Return whether an address is in a module and, where its headers can be read, in an executable section."""

    def call_before(self, address: int) -> CallBefore:
        """Look for the call that ends at an address."""

    def read_code(self, address: int, length: int) -> bytes | None:
        """Read bytes of code; None unless all of them can be read."""

    def read_ahead(self, address: int, length: int) -> bytes:
        """Read code from an address on, as many bytes up to a length as can be read."""

    def function(self, address: int) -> int | None:
        """Return the start of the function that contains an address; None where it is unknown."""

    def same_module(self, one: int, other: int) -> bool:
        """Return whether two addresses are in the same module."""

    def is_dispatcher(self, address: int) -> bool:
        """Return whether the code there jumps to a variable address, so that a call of it may lead anywhere."""


# RSP is a multiple of this at a call, so that the return address is 8 bytes below such a multiple (Microsoft, "x64
# stack usage"). Hand-written code may differ: alignment is checked only where the bytes before an address cannot be
# read.
_ALIGNMENT = 16

# How far beyond a call of a pointer a call of the very function is looked for. Frames are rarely as large.
_AHEAD = PAGE_SIZE

# How far from a call's target code is read, to see whether another function begins between, and what is between
# functions: int3, or on x86 also nop (padding of Microsoft's compiler and linker).
_READ_AT_MOST = PAGE_SIZE
_PADDING = (b"\xcc\xcc", b"\x90\x90\x90\x90\x90")


class Link(Enum):
    """Whether the call before a return address can have led to the frame below it."""

    CONFIRMS = "it entered that frame's function"
    SUGGESTS = "it entered code shortly before that frame's address, whose function is not known"
    ALLOWS = "it may have led there"
    CONTRADICTS = "it entered another function"


class _Possible:
    """The possible frames of a search, which may be found by a call's target."""

    def __init__(self, code: CodeView) -> None:
        self.frames: list[FoundFrame] = []
        self._code = code
        self._by_function: dict[int, int] = {}
        self._unknown: list[int] = []  # sorted

    def add(self, frame: FoundFrame) -> None:
        if len(self.frames) == FRAMES_BOUND:
            return
        self.frames.append(frame)
        function = self._code.function(frame.ip - 1)
        if function is None:
            insort(self._unknown, frame.ip)
        else:
            self._by_function.setdefault(function, frame.ip)

    def nearest_in_function(self, target: int) -> int | None:
        """Return the code address of the frame in the function of a call's target, None if there is none.

        Where functions are not known it is the one that is closest behind the target.
        """
        function = self._code.function(target)
        if function in self._by_function:
            return self._by_function[function]
        position = bisect_right(self._unknown, target)
        return self._unknown[position] if position < len(self._unknown) else None


class Scanner:
    """Searches one stack for return addresses.

    Args:
        stack: the stack.
        code: the code that return addresses point to.
        ends_search: tells by its Child-SP whether a possible frame is that of an interrupt's or exception's entry code;
            what was interrupted comes next then.
    """

    def __init__(self, stack: StackView, code: CodeView, ends_search: Callable[[int], bool] | None = None) -> None:
        self._stack = stack
        self._code = code
        self._ends_search = ends_search
        self._dispatchers: set[int] = set()  # call targets that were found to jump to other functions
        self._candidates: list[tuple[int, int, CallBefore]] | None = None

    def next_frames(self, ip: int, start: int, end: int | None = None) -> list[FoundFrame]:
        """Find the caller of the function at a code address (0: unknown), in a range of the stack.

        Args:
            ip: an address inside the function; of a return address the one before it.
            start: the lowest stack address at which the return address may be.
            end: the address below which it is, the top of the stack by default.

        Returns:
            The caller's frame, preceded by the possible frames between, which are not certain; empty where there is
            none. A call that entered the function is preferred to one that may have led to it, and of equal ones the
            nearest. If no call could be read at all, every possible return address.
        """
        possible = _Possible(self._code)
        calls = 0  # how many of the possible frames there are up to the first one behind a call
        for slot, value, call in self._range(start, end):
            if calls and slot >= (possible.frames[calls - 1].found_at or 0) + _AHEAD:
                break
            found = FoundFrame(value, How.SCANNED, self._address(slot), slot, follows_call=call.follows, certain=False)
            link = Link.ALLOWS if call.follows is None else self._best_link(ip, possible, value, call)
            if link is Link.CONTRADICTS:
                continue
            if link in (Link.CONFIRMS, Link.SUGGESTS):
                return [*possible.frames, replace(found, certain=link is Link.CONFIRMS)]
            possible.add(found)
            if call.follows and not calls:
                calls = len(possible.frames)
            # Without the function nothing can confirm a call.
            if (calls and not ip) or (self._ends_search is not None and self._ends_search(found.address or 0)):
                return possible.frames
        return possible.frames[:calls] if calls else possible.frames

    def _range(self, start: int, end: int | None) -> Iterator[tuple[int, int, CallBefore]]:
        """Yield the possible return addresses of a range of the stack: address, value, the call before."""
        if self._candidates is None:
            # Walks go from lower to higher addresses.
            self._candidates = list(self._read(start))
        first = bisect_left(self._candidates, start, key=lambda each: each[0])
        for position in range(first, len(self._candidates)):
            if end is not None and self._candidates[position][0] >= end:
                break
            yield self._candidates[position]

    def _read(self, start: int) -> Iterator[tuple[int, int, CallBefore]]:
        size = self._stack.pointer_size
        for slot, value in self._stack.words(start, self._stack.top):
            if not self._code.is_code(value):
                continue
            call = self._code.call_before(value)
            # A function's address is more likely a pointer to it than what a call before it pushed.
            unlikely = (size == 8 and slot % _ALIGNMENT != 8) or self._code.function(value) == value
            if call.follows or (call.follows is None and not unlikely):
                yield slot, value, call

    def _best_link(self, ip: int, possible: _Possible, return_address: int, call: CallBefore) -> Link:
        """Return how a call relates to the function at an address, or to that of a possible frame between."""
        link = self.link(ip, return_address, call)
        target = call.through if call.target is None else call.target
        if link in (Link.CONFIRMS, Link.SUGGESTS) or not ip or target is None:
            return link
        other = possible.nearest_in_function(target)
        between = Link.CONTRADICTS if other is None else self.link(other - 1, return_address, call)
        if between is Link.CONFIRMS or (between is Link.SUGGESTS and link is Link.CONTRADICTS):
            return between
        return link

    def link(self, ip: int, return_address: int, call: CallBefore) -> Link:
        """Return whether a call can lead to the function at a code address (0: unknown)."""
        target = call.target
        if target is None:
            through = call.through
            known = bool(ip and through is not None and self._code.is_code(through))
            return Link.CONFIRMS if known and self._enters(through or 0, ip) is Link.CONFIRMS else Link.ALLOWS
        if not ip or target in self._dispatchers or self._code.is_dispatcher(target):
            return Link.ALLOWS
        if not self._code.is_code(target):
            return Link.CONTRADICTS
        if not self._code.same_module(target, ip):
            if self._code.function(target) is not None:
                return Link.CONTRADICTS
            # A target in another module than `ip` can only be a thunk, for example for an import.
            if self._code.same_module(target, return_address):
                self._dispatchers.add(target)
            return Link.ALLOWS
        return self._enters(target, ip)

    def _enters(self, target: int, ip: int) -> Link:
        """Return whether a call's target is in the function at a code address."""
        entered, current = self._code.function(target), self._code.function(ip)
        if entered is not None and current is not None:
            return Link.CONFIRMS if entered == current else Link.CONTRADICTS
        if not 0 <= ip - target < FUNCTION_BOUND:
            return Link.CONTRADICTS
        between = self._code.read_code(target, ip - target) if 0 < ip - target <= _READ_AT_MOST else None
        alone = between is not None and not any(padding in between for padding in _PADDING)
        return Link.CONFIRMS if alone or ip == target else Link.SUGGESTS

    def _address(self, slot: int) -> int | None:
        """Return Frame.address of the frame whose return address is at a slot: the stack pointer, on x86 EBP."""
        if self._stack.pointer_size == 8:
            return slot + 8
        saved = self._stack.word(slot - 4)
        return saved if saved is not None and saved > slot and self._stack.holds(saved) and not saved % 4 else None
