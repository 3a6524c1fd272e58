"""What user APCs would run: NormalRoutine, decoded and followed through Windows' dispatchers, and its arguments."""

from __future__ import annotations

from dataclasses import replace

from ..formats.text import from_ansi, from_utf16
from ..image.symbols import KernelSymbols
from ..kernel import Kernel
from ..model import Apc, ApcKey, Process, QueuedThread
from ..targets import (
    BLOCK_POINTERS,
    CONTINUES,
    DISPATCH_NAME,
    DISPATCHERS,
    LOWEST_USER_ADDRESS,
    WRAPPING_MODULES,
    ContextRecord,
    Dispatcher,
    HandsOn,
    Lies,
    Place,
    Target,
    decode_wow64,
    gadget,
    loader,
)
from ..windows import PAGE_SIZE
from .spaces import UserSpace, UserSpaces

HOPS_BOUND = 3
"""How many dispatchers are followed; two are expected: wow64.dll's, then one of the 32-bit DLLs."""

TEXT_BOUND = 520
"""How many bytes of a DLL's name are read: MAX_PATH wide characters."""

_WORD = 0xFFFFFFFF
_NO_BLOCK = "what a completion routine is given cannot be read"
_NOT_COUNTED = "its VADs were not read whole"
_NATIVE = "an encoded routine in a process that runs no 32-bit code"
_UNDECIDED = "it is not known whether the process runs 32-bit code"


class UserCall:
    """A function and its arguments on the way from NormalRoutine to the target.

    `arguments` are the three arguments, None where unknown. `narrow` is whether 32-bit code runs, `queued` whether the
    APC was queued explicitly and not by an I/O request or timer of the thread.
    """

    def __init__(
        self, place: Place, arguments: tuple[int | None, int | None, int | None], *, narrow: bool, queued: bool
    ) -> None:
        self.place = place
        self.arguments = arguments
        self.narrow = narrow
        self.queued = queued
        self.via: list[str] = []
        self.called: str | None = None
        self.why: str | None = None


def _is(row: Dispatcher, module: str, names: tuple[str, ...], place: Place, space: UserSpace) -> bool:
    """Tell whether a function is a dispatcher, by its names or by the ordinal of an export that has none."""
    if module not in row.module.split("|"):
        return False
    if names:
        return any(row.name.match(name) for name in names)
    return row.ordinal is not None and space.is_export(place, row.ordinal)


class Resolver:
    """Finds the targets of user APCs."""

    def __init__(self, spaces: UserSpaces) -> None:
        self._spaces = spaces
        self._symbols: KernelSymbols = spaces.kernel.symbols
        self._bits = spaces.memory.bits
        # The KernelRoutines of completed I/O requests and of timers: ReactOS, io/iomgr/irp.c and ex/timer.c.
        self._completions = {self._symbols.address(name) for name in ("IopUserCompletion", "ExpTimerApcRoutine")}

    def resolve(self, apc: Apc, process: Process) -> Target | None:
        """Return what an APC would run in a process, None where NormalRoutine is no user address or cannot be read."""
        routine = None if apc.normal_routine is None else apc.normal_routine.address
        if not routine:
            return None
        decoded = decode_wow64(routine) if self._bits == 64 else None
        if decoded is not None and not process.wow64:
            why = _UNDECIDED if process.wow64 is None else _NATIVE
            return Target(Place(decoded, Lies.UNKNOWN, Lies.UNKNOWN.value, why=why), process.address, encoded=True)
        if decoded is None and routine >= self._spaces.kernel.drivers.kernel_start:
            return None
        space = self._spaces.of(process.address)
        arguments = (apc.normal_context, apc.system_argument1, apc.system_argument2)
        narrow = decoded is not None or self._bits == 32
        place = space.place(routine if decoded is None else decoded)
        call = UserCall(place, arguments, narrow=narrow, queued=self._is_queued(apc))
        for _ in range(HOPS_BOUND):
            if not self._follow(call, space):
                break
        return self._describe(call, space, encoded=decoded is not None)

    def _is_queued(self, apc: Apc) -> bool:
        routine = apc.kernel_routine
        return routine is not None and routine.address not in self._completions

    def _follow(self, call: UserCall, space: UserSpace) -> bool:
        """Go on to what a dispatcher calls; False where the function is no dispatcher or its callee is not known."""
        module = (call.place.module or "").lower()
        if call.place.lies is not Lies.IMAGE:
            return False
        context, second, _ = call.arguments
        if context is None:
            return False
        wraps = module in WRAPPING_MODULES
        names = space.symbols_at(call.place) if wraps else call.place.names
        row = next((row for row in DISPATCHERS if _is(row, module, names, call.place, space)), None)
        if row is None and (names or not wraps):
            return False
        if names or row is not None:
            call.called = f"{call.place.module}!{names[0] if names else DISPATCH_NAME}"
        if row is not None and row.hands_on is HandsOn.PACKED:
            self._go(call, space, context >> 32, (context & _WORD, second, call.arguments[2]), narrow=True)
            return True
        if row is not None and row.hands_on in (HandsOn.FUNCTION, HandsOn.COMPLETION):
            argument = second if row.hands_on is HandsOn.FUNCTION else None
            self._go(call, space, context, (argument, None, None), narrow=call.narrow)
            return True
        return self._follow_context(call, space, context, known=row is not None)

    def _follow_context(self, call: UserCall, space: UserSpace, context: int, *, known: bool) -> bool:
        """Go on to the function that a wrapper's context is the address of, or that the block at that address names."""
        place = space.place(context & _WORD if call.narrow else context)
        if place.lies is Lies.UNKNOWN or (place.executable is None and place.lies is not Lies.NOWHERE):
            call.why = place.why
            return False
        if place.lies is Lies.NOWHERE and place.address < LOWEST_USER_ADDRESS:
            return False
        if place.executable or place.lies is Lies.NOWHERE:
            if known and place.executable:
                # A block lies in the heap and is not code. Without an activation context there is no block.
                known = False
            # Of wrappers without a name, only QueueUserAPC's (to 2003) is queued explicitly; it passes SystemArgument1.
            argument = call.arguments[1] if call.queued and not known else None
            self._go(call, space, place.address, (argument, None, None), narrow=call.narrow, sure=known)
            return True
        size = 4 if call.narrow else 8
        data = space.read(place.address + size, BLOCK_POINTERS * size)
        words = (
            [] if data is None else [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]
        )
        code = [word for word in words if word and space.place(word).executable]
        if len(code) != 1:
            return False
        self._go(call, space, code[0], (None, None, None), narrow=call.narrow, sure=known)
        return True

    def _go(
        self,
        call: UserCall,
        space: UserSpace,
        address: int,
        arguments: tuple[int | None, int | None, int | None],
        *,
        narrow: bool,
        sure: bool = True,
    ) -> None:
        call.via.append((call.called or call.place.text) + ("" if sure else "?"))
        call.called = None
        call.narrow = narrow
        call.place = space.place(address & _WORD if narrow else address)
        call.arguments = arguments

    def _describe(self, call: UserCall, space: UserSpace, *, encoded: bool) -> Target:
        first, _, third = call.arguments
        place = call.place if call.why is None else replace(call.place, why=call.place.why or call.why)
        argument = first & _WORD if first is not None and call.narrow else first
        target = Target(
            place,
            space.process,
            " and ".join(call.via) or None,
            encoded,
            call.narrow,
            argument,
        )
        if place.lies is Lies.PRIVATE and place.executable:
            counted = space.count_private_code(place)
            if counted is None:
                target = replace(target, place=replace(place, why=place.why or _NOT_COUNTED))
            others, alike = counted if counted is not None else (None, None)
            elsewhere = None if place.writable else self._spaces.is_elsewhere(space, place)
            return replace(target, others=others, alike=alike, elsewhere=elsewhere)
        if place.own_page and place.executable:
            target = replace(target, elsewhere=self._spaces.is_elsewhere(space, place))
        loads, continues = loader(place.names), gadget(place.names)
        if loads is not None:
            at = third if loads[1] == "LdrLoadDll" else argument
            return replace(target, string=self._text(space, at, loads[1], narrow=call.narrow) if at else None)
        if continues is not None and continues[0] in CONTINUES and argument:
            return replace(target, registers=self._registers(space, argument, narrow=call.narrow))
        return target

    def _text(self, space: UserSpace, address: int, kind: str, *, narrow: bool) -> str | None:
        """Read the name passed to a loader function: ANSI text, wide text, or a UNICODE_STRING."""
        address &= _WORD if narrow else -1
        length = TEXT_BOUND
        if kind == "LdrLoadDll":
            size = 4 if narrow else 8
            data = space.read(address, 2 * size)
            if data is None:
                return None
            length = min(int.from_bytes(data[:2], "little"), TEXT_BOUND) & ~1
            address = int.from_bytes(data[size:], "little")
        data = space.read(address, length) if length else None
        if data is None and length:
            data = space.read(address, min(length, PAGE_SIZE - address % PAGE_SIZE) & ~1)
        if data is None:
            return None
        if kind == "A":
            return from_ansi(data) or None
        words = [data[at : at + 2] for at in range(0, len(data) - 1, 2)]
        end = words.index(b"\0\0") if b"\0\0" in words else len(words)
        return from_utf16(b"".join(words[:end])) or None

    def _registers(self, space: UserSpace, address: int, *, narrow: bool) -> ContextRecord | None:
        """Read the CONTEXT at an address; None for 32-bit code on x64, whose CONTEXT the kernel's symbols lack."""
        if narrow and self._bits == 64:
            return None
        names = ("Eip", "Ecx") if self._bits == 32 else ("Rip", "Rcx")
        values = []
        for name in names:
            member = self._symbols.member("_CONTEXT", name)
            data = None if member is None else space.read(address + member.offset, member.size)
            if data is None:
                return None
            values.append(int.from_bytes(data, "little"))
        return ContextRecord(address, space.place(values[0]), values[1])


TARGETS_BOUND = 1 << 15
"""How many user APCs of an image are resolved."""

NAMED_BOUND = 8
"""How many processes with an unknown user space the notes name, and how many reasons for each."""

_NO_PEB = "whether it has run in user mode cannot be read"
_BEYOND = f"only {TARGETS_BOUND} user APCs are resolved: what the others would run is not known"


class UserStage:
    """Finds what the user APCs of threads would run; `spaces` are the user spaces that it looks into."""

    def __init__(self, kernel: Kernel) -> None:
        self.spaces = UserSpaces(kernel)
        self._kernel = kernel
        self._resolver = Resolver(self.spaces)
        self._left = TARGETS_BOUND
        self._unknown: dict[str, list[str]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Why the user spaces of some processes are not known; complete after the last thread."""
        named = [
            f"of what user APCs in {name} would run not all is known: {'; '.join(why)}"
            for name, why in self._unknown.items()
        ]
        if len(named) > NAMED_BOUND:
            named[NAMED_BOUND:] = [
                f"what user APCs in {len(named) - NAMED_BOUND} more processes would run is not known"
            ]
        return (*named, _BEYOND) if self._left < 0 else tuple(named)

    def targets(self, thread: QueuedThread) -> dict[ApcKey, Target]:
        """Return what a thread's user APCs would run, as far as that is known."""
        apcs = [apc for queue in thread.queues for apc in queue.apcs if apc.is_user]
        resolved = {apc.key: self.target(apc, thread) for apc in apcs}
        return {key: target for key, target in resolved.items() if target is not None}

    def target(self, apc: Apc, thread: QueuedThread) -> Target | None:
        """Return what a user APC would run, None where that is not known."""
        process = thread.process_of(apc)
        # An APC on a list of a third state does not say which process that state is for.
        if process is None or apc.nested or self._kernel.memory.partial:
            return None
        self._left -= 1
        if self._left < 0:
            return None
        target = self._resolver.resolve(apc, process)
        if target is not None and (process.wow64 or not target.encoded):
            for place in target.places:
                self._tell(process, place.why)
        return target

    def _tell(self, process: Process, why: str | None) -> None:
        """Remember what could not be read of a process's user space."""
        # System and the like have no PEB, so nothing is missing there.
        if why is None or self.spaces.of(process.address).peb == 0:
            return
        known = self._unknown.setdefault(str(process), [])
        if why not in known and len(known) < NAMED_BOUND:
            known.append(why)

    def is_first(self, thread: QueuedThread) -> bool | None:
        """Tell whether a thread is the only one of a process in which nothing has run in user mode yet."""
        members, owner = thread.members, thread.owner
        flink, blink = members.thread_list_flink, members.thread_list_blink
        if owner is None or flink is None or blink is None or self._kernel.memory.partial:
            return None
        if not flink == blink == owner.address + self._kernel.processes.thread_list_head:
            return False
        has_run = self.spaces.of(owner.address).has_run()
        if has_run is None:
            self._tell(owner, _NO_PEB)
        return None if has_run is None else not has_run
