"""The search of a stack for return addresses, where nothing says where the next frame is.

What stays behind of calls that have returned looks the same. A direct call names the function it entered: a return
address behind it belongs on top of a frame of that function, and nothing lies between the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .frame import How
from .surroundings import FRAMES_BOUND, FUNCTION_BOUND, CodeView, Found, StackView

# At a call the stack pointer is a multiple of this, so that the return address lies 8 bytes below one (Microsoft, "x64
# stack usage"). Code by hand may do otherwise: it is asked only where no call is seen before a return address.
_ALIGNMENT = 16


class Link(Enum):
    """What the call before a return address says of the frame below it."""

    CONFIRMS = "it entered that frame's function"
    ALLOWS = "it may have led there"
    CONTRADICTS = "it entered another function"


@dataclass(slots=True)
class Scanner:
    """Searches one stack; `dispatchers` are call targets that turned out to lead anywhere."""

    stack: StackView
    code: CodeView
    dispatchers: set[int] = field(default_factory=set)

    def next_frames(self, ip: int, start: int) -> list[Found]:
        """Find what called the function at an instruction pointer (0: unknown), at or above a place on the stack.

        Returns:
            The frame, behind frames whose code cannot be read and that may lie between; empty where there is none.
            Without any whose call could be read, all that may be return addresses.
        """
        size = self.stack.pointer_size
        pending: list[Found] = []
        for slot in range(-(-start // size) * size, self.stack.top, size):
            value = self.stack.word(slot)
            if value is None or not self.code.is_code(value):
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
        """Say whether a call to a target (None: an indirect one) leads to the function at an instruction pointer."""
        if not ip or target is None or target in self.dispatchers or self.code.is_dispatcher(target):
            return Link.ALLOWS
        if not self.code.is_code(target):
            return Link.CONTRADICTS
        entered, current = self.code.function(target), self.code.function(ip)
        if not self.code.same_module(target, ip):
            if entered is not None:
                return Link.CONTRADICTS
            # Only code that jumps on, for an import say, leads into another module.
            if self.code.same_module(target, return_address):
                self.dispatchers.add(target)
            return Link.ALLOWS
        if entered is not None and current is not None:
            return Link.CONFIRMS if entered == current else Link.CONTRADICTS
        return Link.CONFIRMS if 0 <= ip - target < FUNCTION_BOUND else Link.CONTRADICTS

    def _address(self, slot: int) -> int | None:
        """Return the address of the frame whose code address lies at a slot: its stack pointer, on x86 its EBP."""
        if self.stack.pointer_size == 8:
            return slot + 8
        saved = self.stack.word(slot - 4)
        return saved if saved is not None and saved > slot and self.stack.holds(saved) and not saved % 4 else None
