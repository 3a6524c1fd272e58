"""The frames of an x86 stack: by the chain of EBP, helped by return addresses that follow a call."""

from __future__ import annotations

from dataclasses import replace

from .frame import How
from .registers import Registers
from .scan import Link, Scanner
from .surroundings import FRAMES_BOUND, CodeView, Found, StackView, Walked

_ARGUMENTS = 3  # as many as debuggers print

# How a function begins that keeps a frame: mov edi, edi (for hot patches); push ebp; mov ebp, esp.
_HOT_PATCH, _PUSH_EBP, _MOV_EBP_ESP = b"\x8b\xff", b"\x55", (b"\x8b\xec", b"\x89\xe5")


def walk_x86(start: Registers, stack: StackView, code: CodeView, *, exact: bool = True) -> Walked:
    """Walk outwards from registers; `exact` is whether they were saved, and not concluded from a return address."""
    scanner = Scanner(stack, code)
    frames = [Found(start.ip, How.SAVED, start.bp, arguments=_arguments(stack, start.bp))]
    ip, sp, bp = start.ip, start.sp, start.bp
    entered = _before_frame(start, code) if exact else None
    if entered is not None:
        # EBP is still the caller's.
        frames = [Found(ip, How.SAVED, entered - 4, arguments=_arguments(stack, entered - 4))]
        value = stack.word(entered)
        if value is not None and code.is_code(value) and code.call_before(value).follows is not False:
            follows = code.call_before(value).follows
            frames.append(Found(value, How.FRAME_POINTER, bp, entered, _arguments(stack, bp), follows))
            ip, sp = value, entered + 4
    while len(frames) < FRAMES_BOUND:
        if bp == 0 and len(frames) > 1:
            return Walked(tuple(frames), "the outermost frame: its EBP is 0")
        found = _by_chain(ip, sp, bp, stack, code, scanner)
        if found is None:
            scanned = scanner.next_frames(ip, max(sp, stack.limit))
            if not scanned:
                return Walked(tuple(frames), "no further return address on the stack")
            found = [replace(each, arguments=_arguments(stack, each.address)) for each in scanned]
        frames += found
        ip, sp = found[-1].ip, (found[-1].found_at or 0) + 4
        # A function without a frame leaves its caller's EBP alone.
        bp = found[-1].address if found[-1].address is not None or (bp is not None and bp < sp) else bp
    return Walked(tuple(frames[:FRAMES_BOUND]), f"{FRAMES_BOUND} frames, no more are followed")


def _by_chain(
    ip: int, sp: int, bp: int | None, stack: StackView, code: CodeView, scanner: Scanner
) -> list[Found] | None:
    """Follow EBP to the caller's frame, None where it leads to none."""
    saved, value = (None, None) if bp is None or bp < sp else (stack.word(bp), stack.word(bp + 4))
    if bp is None or saved is None or value is None or not code.is_code(value):
        return None
    call = code.call_before(value)
    if call.follows is False or (saved and (saved % 4 or not bp < saved < stack.base)):
        return None
    if call.follows and scanner.link(ip, value, call.target) is Link.CONTRADICTS:
        # Functions without a frame of their own may lie between.
        between = _between(ip, sp, bp, stack, code, scanner)
        if between is not None:
            return [between]
    return [Found(value, How.FRAME_POINTER, saved, bp + 4, _arguments(stack, saved), call.follows)]


def _between(ip: int, sp: int, bp: int, stack: StackView, code: CodeView, scanner: Scanner) -> Found | None:
    """Find a return address below EBP whose direct call entered the function at the instruction pointer."""
    for slot in range(-(-max(sp, stack.limit) // 4) * 4, bp, 4):
        value = stack.word(slot)
        if value is not None and code.is_code(value):
            call = code.call_before(value)
            if call.target is not None and scanner.link(ip, value, call.target) is Link.CONFIRMS:
                return Found(value, How.SCANNED, None, slot, follows_call=True)
    return None


def _before_frame(start: Registers, code: CodeView) -> int | None:
    """Return where the return address lies of a function that has not yet made its frame, None once it has."""
    instructions = code.read_code(start.ip, 5) or b""
    if instructions.startswith(_HOT_PATCH):
        instructions = instructions[2:]
    if instructions.startswith(_PUSH_EBP) and instructions[1:].startswith(_MOV_EBP_ESP):
        return start.sp
    return start.sp + 4 if instructions.startswith(_MOV_EBP_ESP) else None


def _arguments(stack: StackView, bp: int | None) -> tuple[int, ...]:
    """Return the first words above the return address of a frame, as many as can be read."""
    if not bp:
        return ()
    words = [stack.word(bp + 8 + 4 * number) for number in range(_ARGUMENTS)]
    return tuple(word for word in words if word is not None) if None not in words else ()
