"""The frames of an x86 stack: by the chain of EBP and by trap frames, helped by return addresses that follow a call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .frame import How
from .registers import Registers
from .scan import Link, Scanner
from .surroundings import FRAMES_BOUND, FROM_USER, CodeView, Found, StackView, Walked
from .trap_frame import TrapFrame, TrapFrames

_ARGUMENTS = 3  # as many as debuggers print

# How a function begins that keeps a frame: mov edi, edi (for hot patches); push ebp; mov ebp, esp.
_HOT_PATCH, _PUSH_EBP, _MOV_EBP_ESP = b"\x8b\xff", b"\x55", (b"\x8b\xec", b"\x89\xe5")


def walk_x86(
    start: Registers, stack: StackView, code: CodeView, traps: TrapFrames | None = None, *, exact: bool = True
) -> Walked:
    """Walk outwards from registers; `exact` is whether they were saved, and not concluded from a return address."""
    return _Walk(stack, code, traps).outwards(_Place(start.ip, start.sp, start.bp, exact))


@dataclass(frozen=True, slots=True)
class _Place:
    """Instruction pointer, stack pointer and EBP in a frame; `exact` is whether the first is no return address."""

    ip: int
    sp: int
    bp: int | None
    exact: bool = False

    @property
    def inside(self) -> int:
        """An address in the frame's function: a call that does not return may be the last instruction of its own."""
        return self.ip if self.exact else self.ip - 1


class _Walk:
    def __init__(self, stack: StackView, code: CodeView, traps: TrapFrames | None) -> None:
        self._stack = stack
        self._code = code
        self._traps = traps
        self._scanner = Scanner(stack, code)

    def outwards(self, place: _Place) -> Walked:
        frames = [Found(place.ip, How.SAVED, place.bp, arguments=self._arguments(place.bp))]
        while len(frames) < FRAMES_BOUND:
            entered = self._before_frame(place) if place.exact else None
            if entered is not None:
                # EBP is still the caller's.
                frames[-1] = replace(frames[-1], address=entered - 4, arguments=self._arguments(entered - 4))
                caller = self._entered_by(place, entered)
                if caller is not None:
                    frames.append(caller)
                    place = _Place(caller.ip, entered + 4, place.bp)
                    continue
            if place.bp == 0 and len(frames) > 1:
                return Walked(tuple(frames), "the outermost frame: its EBP is 0")
            trap = self._trap_at(place)
            if place.bp == self._stack.entry is not None or (trap is not None and trap.user):
                return Walked(tuple(frames), FROM_USER)
            found, place = self._by_trap(place, trap) or self._by_chain(place) or self._by_search(place)
            if not found:
                return Walked(tuple(frames), self._stack.searched)
            frames += found
        return Walked(tuple(frames[:FRAMES_BOUND]), f"{FRAMES_BOUND} frames, no more are followed")

    def _by_trap(self, place: _Place, trap: TrapFrame | None) -> tuple[list[Found], _Place] | None:
        """Follow EBP to a trap frame, which the code that an interrupt enters has it point to."""
        if trap is None:
            return None
        between = None if trap.called else self._between(place, trap.address)
        return self._beyond(between, place) if between is not None else self._through(trap)

    def _by_chain(self, place: _Place) -> tuple[list[Found], _Place] | None:
        """Follow EBP to the caller's frame, None where it leads to none."""
        stack, bp = self._stack, place.bp
        saved, value = (None, None) if bp is None or bp < place.sp else (stack.word(bp), stack.word(bp + 4))
        if bp is None or saved is None or value is None or not self._code.is_code(value):
            return None
        call = self._code.call_before(value)
        if call.follows is False or (saved and (saved % 4 or not bp < saved < stack.base)):
            return None
        if call.follows and self._scanner.link(place.inside, value, call.target) is Link.CONTRADICTS:
            # Functions without a frame of their own may lie between, or an interrupt, whose code has left EBP alone.
            between = self._between(place, bp)
            if between is not None:
                return self._beyond(between, place)
            trap = next((each for each in self._traps_below(place, bp) if each.bp == bp), None)
            if trap is not None:
                return self._through(trap)
        return self._beyond(Found(value, How.FRAME_POINTER, saved, bp + 4, self._arguments(saved), call.follows), place)

    def _by_search(self, place: _Place) -> tuple[list[Found], _Place]:
        """Find the next frames by their return addresses, or what an interrupt left below them; none is no frames."""
        found = self._scanner.next_frames(place.inside, max(place.sp, self._stack.limit))
        below = self._stack.top if not found else found[0].found_at or 0
        trap = next(self._traps_below(place, below), None)
        if trap is not None and not (found and self._entered(place, found[-1].ip)):
            return self._through(trap)
        if not found:
            return [], place
        frames = [replace(each, arguments=self._arguments(each.address)) for each in found]
        return frames, self._beyond(frames[-1], place)[1]

    def _beyond(self, found: Found, place: _Place) -> tuple[list[Found], _Place]:
        """Return a frame with the place in it."""
        sp = (found.found_at or 0) + 4
        # A function without a frame leaves its caller's EBP alone.
        kept = found.address is None and not (place.bp is not None and place.bp < sp)
        return [found], _Place(found.ip, sp, place.bp if kept else found.address)

    def _through(self, trap: TrapFrame) -> tuple[list[Found], _Place]:
        """Return the frame that a trap frame was left in, with the place in it."""
        how = How.FRAME_POINTER if trap.called else How.INTERRUPTED
        follows = True if trap.called else None
        frame = Found(trap.ip, how, trap.bp, trap.found_at, self._arguments(trap.bp), follows)
        return [frame], _Place(trap.ip, trap.sp, trap.bp, exact=not trap.called)

    def _trap_at(self, place: _Place) -> TrapFrame | None:
        if self._traps is None or place.bp is None or place.bp < place.sp:
            return None
        return self._believed(self._traps.at(self._stack, place.bp))

    def _traps_below(self, place: _Place, end: int) -> Iterator[TrapFrame]:
        """Yield the trap frames of what was interrupted in the kernel that lie between a place and an address."""
        if self._traps is not None:
            frames = self._traps.within(self._stack, max(place.sp, self._stack.limit), end)
            yield from (each for each in map(self._believed, frames) if each is not None)

    def _believed(self, trap: TrapFrame | None) -> TrapFrame | None:
        """Return a trap frame that may be one, and whether it is of a call: in the kernel it has to lead to code."""
        if trap is None or trap.user:
            return trap
        if not self._code.is_code(trap.ip) or not trap.address < trap.sp <= self._stack.base:
            return None
        target = self._code.call_before(trap.ip).target
        service = None if self._traps is None else self._traps.service
        return replace(trap, called=target is not None and target == service)

    def _between(self, place: _Place, end: int) -> Found | None:
        """Find a return address below an address whose direct call entered the function at the instruction pointer."""
        for slot in range(-(-max(place.sp, self._stack.limit) // 4) * 4, end, 4):
            value = self._stack.word(slot)
            if value is not None and self._code.is_code(value) and self._entered(place, value):
                return Found(value, How.SCANNED, None, slot, follows_call=True)
        return None

    def _entered(self, place: _Place, return_address: int) -> bool:
        """Tell whether a direct call before a return address entered the function of a place."""
        target = self._code.call_before(return_address).target
        return target is not None and self._scanner.link(place.inside, return_address, target) is Link.CONFIRMS

    def _entered_by(self, place: _Place, slot: int) -> Found | None:
        """Return the caller of a function that has not yet made its frame."""
        value = self._stack.word(slot)
        if value is None or not self._code.is_code(value):
            return None
        follows = self._code.call_before(value).follows
        if follows is False:
            return None
        return Found(value, How.FRAME_POINTER, place.bp, slot, self._arguments(place.bp), follows)

    def _before_frame(self, place: _Place) -> int | None:
        """Return where the return address lies of a function that has not yet made its frame, None once it has."""
        instructions = self._code.read_code(place.ip, 5) or b""
        if instructions.startswith(_HOT_PATCH):
            instructions = instructions[2:]
        if instructions.startswith(_PUSH_EBP) and instructions[1:].startswith(_MOV_EBP_ESP):
            return place.sp
        return place.sp + 4 if instructions.startswith(_MOV_EBP_ESP) else None

    def _arguments(self, bp: int | None) -> tuple[int, ...]:
        """Return the first words above the return address of a frame, as many as can be read."""
        if not bp:
            return ()
        words = [self._stack.word(bp + 8 + 4 * number) for number in range(_ARGUMENTS)]
        return tuple(word for word in words if word is not None) if None not in words else ()
