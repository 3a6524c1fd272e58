"""Disassembles a routine with capstone and follows its paths: calls, constant registers, branches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

LONGEST = 15
"""Length in bytes of the longest instruction (Intel SDM volume 2, 2.3.11)."""

RETPOLINE = "r10"
"""The register through which a driver built for retpolines calls imports after the kernel has patched its code:
mov r10, [slot]; call stub (Microsoft, "Mitigating Spectre variant 2 with Retpoline on Windows"). Its value is kept for
the next instruction only."""

# Zeros decode as `add [rax], al`, which compilers do not emit; they mean that there is no code.
_NO_CODE = b"\0\0"


class Flow(Enum):
    """Where control goes after an instruction."""

    NEXT = "the following instruction"
    CALL = "a function, then the following instruction"
    JUMP = "its target"
    BRANCH = "its target or the following instruction"
    RETURN = "the caller"
    STOP = "nowhere"


@dataclass(frozen=True, slots=True)
class Fixed:
    """A constant address in an instruction."""

    address: int


@dataclass(frozen=True, slots=True)
class Slot:
    """The pointer in memory at a constant address."""

    address: int


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction; a register has one name for all its widths: `cx`, `r8`, `flags`.

    Attributes:
        target: the target of a call or jump, or the register that holds it; None where it is computed.
        writes: the registers that it changes.
        sets: a register and its new value: an address, the pointer in a slot, or another register's value. For `test
            reg, reg` it is `flags` and the register.
        nonzero: where a branch on the zero flag goes if the tested value is not zero.
    """

    address: int
    size: int
    flow: Flow = Flow.NEXT
    target: Fixed | Slot | str | None = None
    writes: frozenset[str] = frozenset()
    sets: tuple[str, Fixed | Slot | str] | None = None
    nonzero: int | None = None

    @property
    def end(self) -> int:
        """The address of the following instruction."""
        return self.address + self.size


class InstructionDecoder:
    """Decodes x86 or x64 code with the module `capstone`, a parameter because it is optional."""

    def __init__(self, capstone: Any, bits: int) -> None:
        self._x86 = capstone.x86
        self._bits = bits
        self._engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64 if bits == 64 else capstone.CS_MODE_32)
        self._engine.detail = True

    def decode(self, address: int, code: bytes) -> Instruction | None:
        """Decode the instruction at the beginning of some bytes; None where there is none."""
        raw = None if code.startswith(_NO_CODE) else next(self._engine.disasm(code, address, 1), None)
        if raw is None:
            return None
        x86, size = self._x86, int(raw.size)
        if raw.group(x86.X86_GRP_RET) or raw.group(x86.X86_GRP_IRET):
            return Instruction(address, size, Flow.RETURN)
        # Compilers put int 3 behind calls that never return; ud2 and int 0x29 (fail fast) do not continue either.
        if raw.id in (x86.X86_INS_INT3, x86.X86_INS_HLT, x86.X86_INS_UD2) or bytes(raw.bytes) == b"\xcd\x29":
            return Instruction(address, size, Flow.STOP)
        if raw.group(x86.X86_GRP_CALL):
            return Instruction(address, size, Flow.CALL, self._target(raw))
        writes = frozenset({RETPOLINE, *(_register(raw.reg_name(each)) for each in raw.regs_access()[1])})
        if raw.group(x86.X86_GRP_JUMP) or raw.group(x86.X86_GRP_BRANCH_RELATIVE):
            target = self._target(raw)
            if raw.id in (x86.X86_INS_JMP, x86.X86_INS_LJMP):
                return Instruction(address, size, Flow.JUMP, target)
            ways = {
                x86.X86_INS_JE: address + size,
                x86.X86_INS_JNE: target.address if isinstance(target, Fixed) else None,
            }
            return Instruction(address, size, Flow.BRANCH, target, writes, nonzero=ways.get(raw.id))
        if not raw.operands or raw.group(x86.X86_GRP_INT):
            writes |= {"ax"}  # capstone does not report it for all of these, for example xlatb
        return Instruction(address, size, writes=writes, sets=self._sets(raw))

    def _target(self, raw: Any) -> Fixed | Slot | str | None:
        near = raw.id not in (self._x86.X86_INS_LCALL, self._x86.X86_INS_LJMP)
        return self._value(raw, raw.operands[0]) if near and raw.operands else None

    def _sets(self, raw: Any) -> tuple[str, Fixed | Slot | str] | None:
        x86 = self._x86
        if len(raw.operands) != 2 or raw.operands[0].type != x86.X86_OP_REG:
            return None
        to, source = raw.operands
        if raw.id == x86.X86_INS_TEST and source.type == x86.X86_OP_REG and source.reg == to.reg:
            return "flags", _register(raw.reg_name(to.reg))
        if raw.id not in (x86.X86_INS_MOV, x86.X86_INS_MOVABS, x86.X86_INS_LEA) or to.size * 8 != self._bits:
            return None
        value = self._value(raw, source)
        if raw.id == x86.X86_INS_LEA:
            value = Fixed(value.address) if isinstance(value, Slot) else None
        return None if value is None else (_register(raw.reg_name(to.reg)), value)

    def _value(self, raw: Any, operand: Any) -> Fixed | Slot | str | None:
        if operand.type == self._x86.X86_OP_IMM:
            return Fixed(int(operand.imm) % (1 << self._bits))
        if operand.type == self._x86.X86_OP_REG:
            return _register(raw.reg_name(operand.reg))
        memory = operand.mem
        # Only addresses that depend on no register except RIP.
        base = self._x86.X86_REG_RIP if self._bits == 64 else self._x86.X86_REG_INVALID
        if memory.base != base or memory.index or memory.segment:
            return None
        start = raw.address + raw.size if self._bits == 64 else 0
        return Slot((start + memory.disp) % (1 << self._bits))


def _register(name: str) -> str:
    """Return the common name of a register's parts: `ax` for `al`, `ah`, `eax` and `rax`."""
    if name[1:2].isdigit():
        return name.rstrip("bwd")
    name = name[1:] if name[0] in "er" and len(name) > 2 else name
    return name[:-1].ljust(2, "x") if name[-1] in "lh" else name


FUNCTIONS_BOUND = 128
INSTRUCTIONS_BOUND = 8192
MUTEXES_BOUND = 16
"""How many functions, instructions and mutexes are followed from one start address."""

MUTEX = "mutex"
"""A mutex whose address is unknown."""

TRY_ACQUIRES = r"Exi?TryToAcquireFastMutex|KeTryToAcquireGuardedMutex"
"""Routines that acquire a mutex if they return TRUE (WDK; for hal's ExX the kernel exports ExiX)."""
_NO_RETURN = r"KeBugCheck(Ex)?|PsTerminateSystemThread|ExRaiseStatus"
_CALLS_ANY = r"_?guard_(xfg_)?dispatch_icall\w*"  # calls the function in rax (control flow guard)

# Registers that a called function may change (x64 ABI; on x86 the first three and the flags), its result, and its first
# argument, which is the mutex in all routines that acquire or release one (fastcall on x86).
_VOLATILE = frozenset({"ax", "cx", "dx", "r8", "r9", "r10", "r11", "flags"})
_RESULT, _ARGUMENT = "ax", "cx"


@dataclass(frozen=True, slots=True)
class DriverCode:
    """Access to the code of one driver.

    Attributes:
        addresses: the driver's address range.
        decode: returns the instruction at an address, None where there is none or it cannot be read.
        read_slot: reads a pointer.
        names_of: returns the names of the function of another module that starts at an address, as `module!function`.
    """

    addresses: range
    decode: Callable[[int], Instruction | None]
    read_slot: Callable[[int], int | None]
    names_of: Callable[[int], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Call:
    """A call or tail jump: to another module's function with these names, to the driver's `function`, or unknown.

    `mutex` is the address of the mutex passed as first argument.
    """

    names: frozenset[str] = frozenset()
    function: int | None = None
    mutex: int | str = MUTEX

    def name_matching(self, wanted: str) -> str | None:
        """Return the name, `module!function`, whose function part matches a regular expression; else None."""
        return min((each for each in self.names if re.fullmatch(wanted, each.rpartition("!")[2])), default=None)


@dataclass(slots=True)
class Program:
    """The code that was followed; keys are addresses of instructions.

    Attributes:
        functions: the addresses of a function's instructions, by the function's address.
        following: the possible next instructions within the function.
        calls: the calls and tail jumps.
        try_branches: for a branch on the result of one of TRY_ACQUIRES: its target if the result is TRUE, and the
            address of the call.
        returns: instructions that return to the caller.
        unfollowed: instructions after which code was not followed, since it cannot be read or a jump is computed.
        notes: explanations of what else was not followed, in order.
    """

    functions: dict[int, set[int]] = field(default_factory=dict)
    following: dict[int, tuple[int, ...]] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    try_branches: dict[int, tuple[int, int]] = field(default_factory=dict)
    returns: set[int] = field(default_factory=set)
    unfollowed: set[int] = field(default_factory=set)
    notes: dict[str, None] = field(default_factory=dict)

    def reachable_from(self, address: int) -> set[int]:
        """Return the instructions that may run after one, in its function; itself too if it is in a loop."""
        found: set[int] = set()
        pending = [address]
        while pending:
            after = set(self.following.get(pending.pop(), ())) - found
            found |= after
            pending += after
        return found

    def check_bound(self, count: int, bound: int, what: str) -> bool:
        """Return whether a count is within a bound; add a note if not."""
        if count > bound:
            self.notes[f"no more than {bound} {what} are followed"] = None
        return count <= bound


@dataclass(frozen=True, slots=True)
class _Result:
    """The return value of the call at an address."""

    address: int


_Registers = Mapping[str, Fixed | Slot | _Result]


class Reader:
    """Follows code by data-flow analysis: where paths meet, only register values equal on all of them are kept."""

    def __init__(self, code: DriverCode) -> None:
        self._code = code
        self._instructions: dict[int, Instruction | None] = {}
        self._registers: dict[int, _Registers] = {}
        self._entered: set[int] = set()
        self._indirect: set[int] = set()
        self._mutexes: set[int] = set()
        self._pending: list[int] = []
        self._program = Program()

    def read(self, start: int) -> Program:
        """Follow the code from a start address."""
        program = self._program
        self._entered.add(start)
        self._enqueue(start, {})
        while self._pending:
            self._follow(self._pending.pop())
        calls, pending = program.calls, [start]
        for function in pending:
            if function not in program.functions:
                inside = program.functions[function] = {function} | program.reachable_from(function)
                for address in sorted(inside & calls.keys()):
                    # Code that was not followed may jump back with another value in the register.
                    if inside & program.unfollowed and address in self._indirect:
                        calls[address] = Call()
                    called = calls[address].function
                    pending += [] if called is None else [called]
        # Drop calls on paths that were followed through a register before another value of it became known.
        program.calls = {at: calls[at] for inside in program.functions.values() for at in inside & calls.keys()}
        return program

    def _follow(self, address: int) -> None:
        program, registers, instruction = self._program, self._registers[address], self._decode(address)
        program.following[address] = ()
        program.calls.pop(address, None)
        program.try_branches.pop(address, None)
        if instruction is None:
            program.unfollowed.add(address)
            return
        if isinstance(instruction.target, str):
            self._indirect.add(address)
        flow, target = instruction.flow, self._target(instruction, registers)
        after = _registers_after(instruction, registers)
        ways = [instruction.end] if flow in (Flow.NEXT, Flow.CALL, Flow.BRANCH) else []
        leaves = flow is Flow.JUMP and target is not None and target not in self._code.addresses
        if flow is Flow.CALL or leaves:
            call = program.calls[address] = self._call(target, registers)
            after |= {_RESULT: _Result(address)} if call.name_matching(TRY_ACQUIRES) else {}
            if call.name_matching(_NO_RETURN):
                ways, leaves = [], False
        elif target is not None:
            ways.append(target)
        elif flow is Flow.JUMP:
            program.unfollowed.add(address)
        if leaves or flow is Flow.RETURN:
            program.returns.add(address)
        tested = registers.get("flags")
        if isinstance(tested, _Result) and instruction.nonzero is not None and len(set(ways)) > 1:
            program.try_branches[address] = instruction.nonzero, tested.address
        program.following[address] = tuple(ways)
        for way in ways:
            self._enqueue(way, after)

    def _enqueue(self, address: int, registers: _Registers) -> None:
        before = self._registers.get(address)
        now = registers if before is None else dict(before.items() & registers.items())
        if now != before:
            self._registers[address] = now
            self._pending.append(address)

    def _target(self, instruction: Instruction, registers: _Registers) -> int | None:
        """Return the address to which a call or jump leads, also through a thunk or stub; None if unknown."""
        target = registers.get(instruction.target) if isinstance(instruction.target, str) else instruction.target
        if isinstance(target, Fixed) and instruction.flow is not Flow.BRANCH:
            stub = registers.get(RETPOLINE)
            thunk = self._decode(target.address) if instruction.flow is Flow.CALL else None
            if isinstance(stub, Slot) and self._names(self._code.read_slot(stub.address)):
                target = stub
            elif thunk is not None and thunk.flow is Flow.JUMP and isinstance(thunk.target, Slot):
                target = thunk.target
        if isinstance(target, Slot):
            return self._code.read_slot(target.address)
        return target.address if isinstance(target, Fixed) else None

    def _names(self, address: int | None) -> frozenset[str]:
        return frozenset() if address is None or address in self._code.addresses else self._code.names_of(address)

    def _call(self, target: int | None, registers: _Registers) -> Call:
        if target is not None and target in self._code.addresses:
            if not self._program.check_bound(len(self._entered | {target}), FUNCTIONS_BOUND, "functions"):
                return Call()
            self._entered.add(target)
            self._enqueue(target, {})
            return Call(function=target)
        call, argument = Call(self._names(target)), registers.get(_ARGUMENT)
        if call.name_matching(_CALLS_ANY):
            return Call()
        if not call.name_matching(r"\w*Mutex\w*") or not isinstance(argument, Fixed):
            return call
        if not self._program.check_bound(len(self._mutexes | {argument.address}), MUTEXES_BOUND, "mutexes"):
            return call
        self._mutexes.add(argument.address)
        return replace(call, mutex=argument.address)

    def _decode(self, address: int) -> Instruction | None:
        known, program = self._instructions, self._program
        if address not in known and address in self._code.addresses:
            if not program.check_bound(len(known) + 1, INSTRUCTIONS_BOUND, "instructions"):
                return None
            known[address] = self._code.decode(address)
            if known[address] is None:
                program.notes[f"code at {address:#x} cannot be read"] = None
        return known.get(address)


def _registers_after(instruction: Instruction, registers: _Registers) -> dict[str, Fixed | Slot | _Result]:
    """Return the known register values after an instruction."""
    if instruction.flow is Flow.CALL:
        # A mutex that was acquired by a try routine may be released in the call.
        return {
            name: value for name, value in registers.items() if name not in _VOLATILE and not isinstance(value, _Result)
        }
    after = {name: value for name, value in registers.items() if name not in instruction.writes}
    if instruction.sets is not None:
        name, source = instruction.sets
        value = registers.get(source) if isinstance(source, str) else source
        after |= {} if value is None else {name: value}
    return after
