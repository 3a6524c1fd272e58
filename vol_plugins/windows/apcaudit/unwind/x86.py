"""Unwinds x86 kernel stacks by frame pointers and trap frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..formats.layout import MemberLookup
from . import How, StackView
from .registers import ExceptionRegisters, Registers, TrapFrame, partial_registers
from .scan import FRAMES_BOUND, FROM_USER, CodeView, FoundFrame, Leaving, Link, Scanner, Walked

# The value of DbgArgMark, by which debuggers recognize a trap frame; DbgEbp and DbgEip in front of it continue the EBP
# chain: ReactOS, ntoskrnl/include/internal/i386/trap_x.h (KiFillTrapFrameDebug).
_MARK = 0xBADB0D00
# A trap from user mode has a ring 3 selector in SegCs (same file, KiUserTrap) or the V86 flag (Intel SDM volume 3).
_MODE_MASK, _V86 = 1, 1 << 17
# An edited trap frame has these bits of SegCs clear and its ESP in TempEsp (ntoskrnl/ke/i386/traphdlr.c).
_FRAME_EDITED = 0xFFF8
_MEMBERS = ("DbgEbp", "DbgEip", "DbgArgMark", "Ebp", "Eip", "SegCs", "EFlags", "HardwareEsp", "TempEsp")


class TrapFrames:
    """Reads trap frames on a stack by the offsets of their members; `service` is the address of KiSystemService."""

    def __init__(self, offsets: Mapping[str, int], service: int | None = None) -> None:
        self._offsets = offsets
        self.service = service

    @classmethod
    def from_symbols(cls, member: MemberLookup, service: int | None) -> TrapFrames | None:
        """Look up the offsets in a symbol table; None where it lacks one."""
        members = {name: member("_KTRAP_FRAME", name) for name in _MEMBERS}
        offsets = {name: found.offset for name, found in members.items() if found is not None}
        return cls(offsets, service) if len(offsets) == len(members) else None

    def read(self, stack: StackView, address: int, *, marked: bool = True) -> TrapFrame | None:
        """Read the trap frame at an address; None where DbgArgMark is wrong or a member cannot be read.

        `marked` is whether DbgArgMark is checked, which is needless where something else identifies the trap frame.
        """
        if marked and self._word(stack, address, "DbgArgMark") != _MARK:
            return None
        ip, bp = self._word(stack, address, "Eip"), self._word(stack, address, "Ebp")
        selector, flags = self._word(stack, address, "SegCs"), self._word(stack, address, "EFlags")
        if ip is None or bp is None or selector is None or flags is None:
            return None
        user = bool(selector & _MODE_MASK or flags & _V86)
        # Without a change of ring the processor pushes no ESP: the interrupted ESP is the address just above EFlags.
        sp: int | None = address + self._offsets["HardwareEsp"]
        if not selector & _FRAME_EDITED and not user:
            sp = self._word(stack, address, "TempEsp")
        return None if sp is None else TrapFrame(address, ip, sp, bp, address + self._offsets["Eip"], user)

    def find(self, stack: StackView, start: int, end: int) -> Iterator[TrapFrame]:
        """Yield the kernel-mode trap frames in a range whose DbgEip and DbgEbp equal Eip and Ebp."""
        mark = self._offsets["DbgArgMark"]
        for place in stack.find_word(_MARK, start + mark, end):
            frame = self.read(stack, place - mark)
            if frame is not None and not frame.user:
                repeated = self._word(stack, frame.address, "DbgEip"), self._word(stack, frame.address, "DbgEbp")
                if repeated == (frame.ip, frame.bp):
                    yield frame

    def _word(self, stack: StackView, address: int, name: str) -> int | None:
        return stack.word(address + self._offsets[name])


_ARGUMENTS = 3  # as many as debuggers print

# The prologue of a function with a frame pointer: mov edi, edi (for hot patching); push ebp; mov ebp, esp.
_HOT_PATCH, _PUSH_EBP, _MOV_EBP_ESP = b"\x8b\xff", b"\x55", (b"\x8b\xec", b"\x89\xe5")


def walk_x86(
    start: Registers,
    stack: StackView,
    code: CodeView,
    traps: TrapFrames | None = None,
    *,
    exact: bool = True,
    exception: ExceptionRegisters | None = None,
) -> Walked:
    """Walk a stack from the innermost frame outwards.

    Args:
        start: the registers in the innermost frame.
        stack: the stack that they lead to.
        code: the code of the modules.
        traps: recognizes trap frames.
        exact: whether `start.ip` is the next instruction; False if it is a return address.
        exception: the registers at the exception that the innermost frames handle, where they are known.
    """
    return _Walk(stack, code, traps, exception).run(_Place(start.ip, start.sp, start.bp, exact))


@dataclass(frozen=True, slots=True)
class _Place:
    """Instruction pointer, stack pointer and EBP in a frame; `exact` is False if `ip` is a return address."""

    ip: int
    sp: int
    bp: int | None
    exact: bool = False

    @property
    def inside(self) -> int:
        """An address inside the frame's function; the return address of a call at its end may be outside."""
        return self.ip if self.exact else self.ip - 1


class _Walk:
    def __init__(
        self, stack: StackView, code: CodeView, traps: TrapFrames | None, exception: ExceptionRegisters | None
    ) -> None:
        self._stack = stack
        self._code = code
        self._traps = traps
        self._exception = exception
        self._scanner = Scanner(stack, code)

    def run(self, place: _Place) -> Walked:
        frames = [FoundFrame(place.ip, How.SAVED, place.bp, arguments=self._arguments(place.bp))]
        while len(frames) < FRAMES_BOUND:
            entered = self._unframed_return_slot(place) if place.exact else None
            if entered is not None:
                # EBP is still the caller's.
                frames[-1] = replace(frames[-1], address=entered - 4, arguments=self._arguments(entered - 4))
                caller = self._caller_of_unframed(place, entered)
                if caller is not None:
                    frames.append(caller)
                    place = _Place(caller.ip, entered + 4, place.bp)
                    continue
            trap = self._trap_at(place)
            ending = self._describe_ending(place, trap, innermost=len(frames) == 1)
            if ending is not None and self._exception is None:
                return Walked(tuple(frames), ending)
            followed = None if ending is not None else self._by_trap(place, trap) or self._by_chain(place)
            if ending is None and followed is None:
                followed = self._by_search(place)
            found, following = self._through_exception(*(followed or ([], place)))
            if not found:
                leaving = self._by_switch(place)
                return Walked(tuple(frames), self._stack.searched if leaving is None else "", leaving)
            frames += found
            place = following
        return Walked(tuple(frames[:FRAMES_BOUND]), f"{FRAMES_BOUND} frames, no more are followed")

    def _describe_ending(self, place: _Place, trap: TrapFrame | None, *, innermost: bool) -> str | None:
        """Return how the walk ends if a place is the outermost one, else None."""
        if place.bp == 0 and not innermost:
            return "the outermost frame: its EBP is 0"
        from_user = place.bp == self._stack.entry is not None or (trap is not None and trap.user)
        return FROM_USER if from_user else None

    def _by_trap(self, place: _Place, trap: TrapFrame | None) -> tuple[list[FoundFrame], _Place] | None:
        """Follow EBP to a trap frame; the kernel's interrupt entry code sets EBP to it."""
        if trap is None:
            return None
        between = None if trap.called else self._find_caller(place, trap.address)
        return self._to_caller(between, place) if between is not None else self._to_interrupted(trap)

    def _by_chain(self, place: _Place) -> tuple[list[FoundFrame], _Place] | None:
        """Follow EBP to the caller's frame; None where there is none."""
        stack, bp = self._stack, place.bp
        saved, value = (None, None) if bp is None or bp < place.sp else (stack.word(bp), stack.word(bp + 4))
        if bp is None or saved is None or value is None or not self._code.is_code(value):
            return None
        call = self._code.call_before(value)
        farther = bp < saved < stack.base or stack.is_on_other(saved)
        if call.follows is False or (saved and (saved % 4 or not farther)):
            return None
        if call.follows and self._scanner.link(place.inside, value, call) is Link.CONTRADICTS:
            # Functions without a frame pointer may lie between, or an interrupt whose entry code left EBP unchanged.
            between = self._find_caller(place, bp)
            if between is not None:
                return self._to_caller(between, place)
            trap = next((each for each in self._traps_below(place, bp) if each.bp == bp), None)
            if trap is not None:
                return self._to_interrupted(trap)
            # The called function may have no frame either, and its code may not be in the image.
            found = self._scanner.next_frames(place.inside, max(place.sp, stack.limit), bp)
            possible = [each for each in found if each.follows_call is None]
        else:
            possible = []
        caller = FoundFrame(value, How.FRAME_POINTER, saved, bp + 4, self._arguments(saved), call.follows)
        callers, following = self._to_caller(caller, place)
        return [*possible, *callers], following

    def _by_search(self, place: _Place) -> tuple[list[FoundFrame], _Place]:
        """Find the next frames by return addresses, or a trap frame below them; no frames where there are none."""
        found = self._scanner.next_frames(place.inside, max(place.sp, self._stack.limit))
        below = self._stack.top if not found else found[0].found_at or 0
        trap = next(self._traps_below(place, below), None)
        if trap is not None and not (found and self._entered(place, found[-1].ip)):
            return self._to_interrupted(trap)
        if not found:
            return [], place
        frames = [replace(each, arguments=self._arguments(each.address)) for each in found]
        return frames, self._to_caller(frames[-1], place)[1]

    def _through_exception(self, found: list[FoundFrame], following: _Place) -> tuple[list[FoundFrame], _Place]:
        """Return the next frames; the exception's registers replace whatever was found from its frame outwards."""
        exception = self._exception
        if exception is None:
            return found, following
        before = [each for each in found if (each.found_at or 0) < exception.top]
        if found and len(before) == len(found):
            return found, following
        self._exception = None
        registers = exception.registers
        arguments = self._arguments(registers.bp)
        interrupted = FoundFrame(registers.ip, How.INTERRUPTED, registers.bp, exception.found_at, arguments)
        return [*before, interrupted], _Place(registers.ip, registers.sp, registers.bp, exact=True)

    def _by_switch(self, place: _Place) -> Leaving | None:
        """Step to the stack that the function at a place switched from; None where that is not known."""
        switch = self._stack.switch
        sp = None if switch is None else self._stack.word(switch.sp_at)
        if switch is None or sp is None or not self._stack.is_on_other(sp):
            return None
        bp = place.bp if place.bp is not None and self._stack.is_on_other(place.bp) else None
        registers = partial_registers(place.ip, sp, bp, 4)
        return Leaving(registers, How.SWITCHED, switch.sp_at, exact=place.exact, same_frame=True)

    def _to_caller(self, found: FoundFrame, place: _Place) -> tuple[list[FoundFrame], _Place]:
        """Return a caller's frame, and its registers."""
        sp = (found.found_at or 0) + 4
        # A function without a frame pointer does not change its caller's EBP.
        kept = found.address is None and not (place.bp is not None and place.bp < sp)
        return [found], _Place(found.ip, sp, place.bp if kept else found.address)

    def _to_interrupted(self, trap: TrapFrame) -> tuple[list[FoundFrame], _Place]:
        """Return the frame that was interrupted (or called a system service), and its registers."""
        how = How.FRAME_POINTER if trap.called else How.INTERRUPTED
        follows = True if trap.called else None
        frame = FoundFrame(trap.ip, how, trap.bp, trap.found_at, self._arguments(trap.bp), follows)
        return [frame], _Place(trap.ip, trap.sp, trap.bp, exact=not trap.called)

    def _trap_at(self, place: _Place) -> TrapFrame | None:
        if self._traps is None or place.bp is None or place.bp < place.sp:
            return None
        return self._validate(self._traps.read(self._stack, place.bp))

    def _traps_below(self, place: _Place, end: int) -> Iterator[TrapFrame]:
        """Yield the valid kernel-mode trap frames between a place's stack pointer and an address."""
        if self._traps is not None:
            frames = self._traps.find(self._stack, max(place.sp, self._stack.limit), end)
            yield from (each for each in map(self._validate, frames) if each is not None)

    def _validate(self, trap: TrapFrame | None) -> TrapFrame | None:
        """Return a trap frame with `called` set, or None if it is of kernel mode and its Eip or Esp is implausible."""
        if trap is None or trap.user:
            return trap
        if not self._code.is_code(trap.ip) or not trap.address < trap.sp <= self._stack.base:
            return None
        target = self._code.call_before(trap.ip).target
        service = None if self._traps is None else self._traps.service
        return replace(trap, called=target is not None and target == service)

    def _find_caller(self, place: _Place, end: int) -> FoundFrame | None:
        """Find a return address below `end` whose direct call entered the function of a place."""
        for slot, value in self._stack.words(place.sp, end):
            link = self._entered(place, value) if self._code.is_code(value) else None
            if link is not None:
                return FoundFrame(value, How.SCANNED, None, slot, follows_call=True, certain=link is Link.CONFIRMS)
        return None

    def _entered(self, place: _Place, return_address: int) -> Link | None:
        """Return how a direct call before a return address entered the function of a place; None where it did not."""
        call = self._code.call_before(return_address)
        link = Link.CONTRADICTS if call.target is None else self._scanner.link(place.inside, return_address, call)
        return link if link in (Link.CONFIRMS, Link.SUGGESTS) else None

    def _caller_of_unframed(self, place: _Place, slot: int) -> FoundFrame | None:
        """Return the caller of a function that has not yet set EBP; its return address is at `slot`."""
        value = self._stack.word(slot)
        if value is None or not self._code.is_code(value):
            return None
        follows = self._code.call_before(value).follows
        if follows is False:
            return None
        return FoundFrame(value, How.FRAME_POINTER, place.bp, slot, self._arguments(place.bp), follows)

    def _unframed_return_slot(self, place: _Place) -> int | None:
        """Return the address of the return address of a function that has not yet set EBP; None once it has."""
        instructions = self._code.read_code(place.ip, 5) or b""
        if instructions.startswith(_HOT_PATCH):
            instructions = instructions[2:]
        if instructions.startswith(_PUSH_EBP) and instructions[1:].startswith(_MOV_EBP_ESP):
            return place.sp
        return place.sp + 4 if instructions.startswith(_MOV_EBP_ESP) else None

    def _arguments(self, bp: int | None) -> tuple[int, ...]:
        """Return the first words above a frame's return address; empty if one of them cannot be read."""
        if not bp:
            return ()
        words = [self._stack.word(bp + 8 + 4 * number) for number in range(_ARGUMENTS)]
        return tuple(word for word in words if word is not None) if None not in words else ()
