"""The code at start addresses: what it calls, in loops, with mutexes held, with APCs disabled."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import capstone.x86
import pytest
from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.code import PLACES_BOUND, check
from volatility3.plugins.windows.apcaudit.code.program import (
    FUNCTIONS_BOUND,
    INSTRUCTIONS_BOUND,
    MUTEXES_BOUND,
    DriverCode,
    Instruction,
    InstructionDecoder,
    Program,
    Reader,
)

from apcaudit.synthetic.assembly import Code, Slot
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Scene
from apcaudit.synthetic.scenes import seed
from tests import volatility

ACQUIRE, RELEASE, TRY = "ExAcquireFastMutex", "ExReleaseFastMutex", "ExTryToAcquireFastMutex"
ENTER, LEAVE = "KeEnterCriticalRegion", "KeLeaveCriticalRegion"
SEND, WAIT = "FltSendMessage", "KeWaitForSingleObject"

LOOP, UNDER_MUTEX, DISABLED = "flt-send-loop", "flt-send-under-fast-mutex", "apc-disabled-across-wait"

DRIVER = range(0x1000, 0x100000)
SLOTS = 0x80000  # import slots, eight bytes each, in the order of ROUTINES
ROUTINES = (
    *(ACQUIRE, RELEASE, TRY, ENTER, LEAVE, SEND, WAIT, "KeAcquireGuardedMutex", "KeReleaseGuardedMutex"),
    *("KeTryToAcquireGuardedMutex", "KeEnterGuardedRegion", "KeLeaveGuardedRegion", "KeBugCheckEx", "DbgPrint"),
    *("ExEnterCriticalRegionAndAcquireResourceExclusive", "ExReleaseResourceAndLeaveCriticalRegion"),
)
SHORT = {"acquire": ACQUIRE, "release": RELEASE, "try": TRY, "enter": ENTER, "leave": LEAVE, "send": SEND, "wait": WAIT}
MUTEXES = {"A": 0x90000, "B": 0x90040}
IMPORTED = 0x8000000  # where the routines are
LOADS = {"esi": "8b35", "eax": "8b05", "r10": "8b15"}  # mov register, [slot]
SHORT_JUMPS = {"jmp": 0xEB, "jz": 0x74, "jnz": 0x75, "loop": 0xE2}


def slot(name: str) -> int:
    return SLOTS + 8 * ROUTINES.index(name)


def assemble(text: str, at: int, bits: int) -> bytes:
    """Assemble `label: acquire A; send; call ROUTINE; call @2000; jz label; jmp ROUTINE; 85c0`.

    `acquire ?` is of a mutex whose address is not known. A call or jump of a routine goes through its import slot,
    `esi send` loads the slot into a register. Hexadecimal digits are code as it is.
    """
    text = re.sub(r"\b(acquire|release|try) (\S)", lambda found: f"mutex {found[2]}; {found[1]}", text)
    code, labels, jumps = bytearray(), {}, []
    for statement in text.split("; "):
        *label, words = statement.rpartition(": ")
        labels |= {name: len(code) for name in label if name and name != ": "}
        verb, _, operand = (f"call {words}" if words in SHORT else words).partition(" ")
        operand = SHORT.get(operand, operand)
        end = at + len(code)
        if verb == "mutex" and operand == "?":
            code += bytes.fromhex("8b4e10" if bits == 32 else "488b4e10")  # mov ecx, [esi+10h]
        elif verb == "mutex":
            target = MUTEXES[operand]  # mov ecx, A; lea rcx, [A]
            code += b"\xb9" + le(target) if bits == 32 else b"\x48\x8d\x0d" + le(target - end - 7)
        elif verb == "call" and operand.startswith("@"):
            code += b"\xe8" + le(int(operand[1:], 16) - end - 5)
        elif verb in ("call", "jmp") and operand in ROUTINES:
            code += b"\xff" + (b"\x15" if verb == "call" else b"\x25")
            code += le(slot(operand) if bits == 32 else slot(operand) - end - 6)
        elif verb in LOADS:
            code += bytes.fromhex(("" if bits == 32 else "4c" if verb == "r10" else "48") + LOADS[verb])
            code += le(slot(operand) if bits == 32 else slot(operand) - end - 7)
        elif verb in SHORT_JUMPS:
            code += bytes((SHORT_JUMPS[verb], 0))
            jumps.append((len(code), operand))
        else:
            code += bytes.fromhex(verb)
    for end, label in jumps:
        code[end - 1] = (labels[label] - end) & 0xFF
    return bytes(code)


def le(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "little")


def driver(memory: Mapping[int, bytes], bits: int) -> DriverCode:
    """Give a driver with code at some addresses, which imports ROUTINES."""
    decoder = InstructionDecoder(capstone, bits)
    names = {IMPORTED + 0x10 * number: frozenset({f"nt!{name}"}) for number, name in enumerate(ROUTINES)}
    slots = {slot(name): IMPORTED + 0x10 * number for number, name in enumerate(ROUTINES)}
    slots |= {SLOTS - 0x10: 0x2000, SLOTS - 0x18: 0x9000000}  # one leads into the driver, one to nothing known

    def decode(address: int) -> Instruction | None:
        held = (data[address - at : address - at + 15] for at, data in memory.items() if 0 <= address - at < len(data))
        return decoder.decode(address, next(held, b""))

    return DriverCode(DRIVER, decode, slots.get, lambda address: names.get(address, frozenset()))


def program(*functions: str, bits: int = 32) -> Program:
    """Read a program of functions in assembly, the first at 0x1000, the next at 0x2000."""
    starts = range(0x1000, 0x1000 * (len(functions) + 1), 0x1000)
    code = {at: assemble(text, at, bits) for at, text in zip(starts, functions, strict=True)}
    return Reader(driver(code, bits)).read(0x1000)


def found(*functions: str, bits: int) -> set[str]:
    return {finding.code for finding in check(program(*functions, bits=bits))}


x86_and_x64 = pytest.mark.parametrize("bits", [32, 64], ids=["x86", "x64"])


@x86_and_x64
@pytest.mark.parametrize(
    ("functions", "loops"),
    [
        pytest.param(["send; c3"], False, id="one message"),
        pytest.param(["top: send; jmp top"], True, id="messages in a loop"),
        pytest.param(["top: send; jnz top; c3"], True, id="a loop that ends"),
        pytest.param(["top: send; loop top; c3"], True, id="a loop by its instruction"),
        pytest.param(["send; top: wait; jmp top"], False, id="a loop behind the message"),
        pytest.param(["top: wait; jz top; send; c3"], False, id="a loop before the message"),
        pytest.param(["top: wait; jz out; send; c3; out: jmp top"], False, id="a loop left to send"),
        pytest.param(["top: send; call KeBugCheckEx; jmp top"], False, id="a call that does not come back"),
        pytest.param(["top: call @2000; jmp top", "send; c3"], True, id="a loop around a function that sends"),
        pytest.param(["call @2000; call @2000; c3", "send; c3"], False, id="two calls of a function"),
        pytest.param(["call @2000; c3", "top: call @3000; jmp top", "jmp send"], True, id="further in, a tail jump"),
        pytest.param(["call @1000; c3"], False, id="a function that calls itself"),
        pytest.param(["top: call @2000; jmp top", "call @1000; send; c3"], True, id="that call each other"),
        pytest.param(["top: send; jz top; ff248500300000"], True, id="in a loop that a computed jump leaves"),
        pytest.param(["top: jmp top"], False, id="an endless loop"),
    ],
)  # fmt: skip
def test_loops(functions: list[str], loops: bool, bits: int) -> None:
    """A message in a loop is one that a path leads back to, itself or the function that sends it."""
    assert found(*functions, bits=bits) == ({LOOP} if loops else set())


@x86_and_x64
@pytest.mark.parametrize(
    ("functions", "held"),
    [
        pytest.param(["acquire A; send; c3"], True, id="held"),
        pytest.param(["acquire ?; send; c3"], True, id="one whose address is not known"),
        pytest.param(["mutex A; call KeAcquireGuardedMutex; send; c3"], True, id="a guarded mutex"),
        pytest.param(["acquire A; release A; send; c3"], False, id="released"),
        pytest.param(["send; acquire A; c3"], False, id="before it is acquired"),
        pytest.param(["jz no; acquire A; no: send; c3"], False, id="acquired on one path"),
        pytest.param(["jz b; acquire A; jmp on; b: acquire A; on: send; c3"], True, id="acquired on both paths"),
        pytest.param(["jz b; acquire A; jmp on; b: acquire B; on: send; c3"], False,
                     id="on both paths, but not the same"),
        pytest.param(["acquire A; jz no; release A; no: send; c3"], False, id="released on one path"),
        pytest.param(["acquire A; jz no; release A; c3; no: send; c3"], True, id="released on a path that returns"),
        pytest.param(["acquire A; jz no; release A; call KeBugCheckEx; no: send; c3"],
                     True, id="released on a path that ends"),
        pytest.param(["acquire A; call DbgPrint; send; c3"], True, id="another call between"),
        pytest.param(["acquire A; ffd0; send; c3"], False, id="an unknown call between"),
        # Two mutexes.
        pytest.param(["acquire A; acquire B; release B; send; c3"], True, id="the other one released"),
        pytest.param(["acquire A; release B; send; c3"], True, id="another one released"),
        pytest.param(["acquire A; acquire B; release A; release B; send; c3"], False, id="both released"),
        pytest.param(["acquire A; acquire B; release ?; send; c3"], False, id="released: which one is not known"),
        pytest.param(["acquire ?; release B; send; c3"], False, id="one that may be the one that is held is released"),
        pytest.param(["acquire ?; send; release ?; send; c3"], True, id="held for the first of two"),
        # Attempts. jz is taken where it failed.
        pytest.param(["try A; 84c0; jz no; send; no: c3"], True, id="tried with success"),
        pytest.param(["try A; 84c0; jz no; c3; no: send; c3"], False, id="tried without success"),
        pytest.param(["try A; 85c0; jnz got; c3; got: send; c3"], True, id="tried, eax, jnz"),
        pytest.param(["try A; 85c0; jnz got; send; got: c3"], False, id="jnz, without success"),
        pytest.param(["try A; 84c0; jz no; no: send; c3"], False, id="tried, with either result"),
        pytest.param(["try A; send; c3"], False, id="tried, the result not looked at"),
        pytest.param(["try A; 84db; jz no; send; no: c3"], False, id="something else tested"),
        pytest.param(["try A; 84c0; 83c101; jz no; send; no: c3"], False, id="flags of an addition"),
        pytest.param(["try A; 84c0; 8bd6; jz no; send; no: c3"], True, id="a move behind the test"),
        pytest.param(["try A; 33c0; 84c0; jz no; send; no: c3"], False, id="the result overwritten"),
        pytest.param(["try A; 84c0; jz no; release A; send; no: c3"], False, id="tried with success and released"),
        pytest.param(["try A; 8bd8; release A; 85db; jz no; send; no: c3"], False, id="released before the test"),
        pytest.param(["mutex A; call KeTryToAcquireGuardedMutex; 84c0; jz no; send; no: c3"], True,
                     id="a guarded mutex tried"),
        # Functions of the driver.
        pytest.param(["acquire A; call @2000; c3", "send; c3"], True, id="sent by a function"),
        pytest.param(["call @2000; acquire A; call @2000; c3", "send; c3"], True,
                     id="sent by a function that is called without it too"),
        pytest.param(["acquire A; release A; call @2000; c3", "send; c3"], False,
                     id="released before the function is called"),
        pytest.param(["acquire A; call @2000; c3", "release A; send; c3"], False,
                     id="released in the function that sends"),
        pytest.param(["call @2000; send; c3", "acquire A; c3"], True, id="acquired by a function"),
        pytest.param(["call @2000; send; c3", "jz no; acquire A; no: c3"], False,
                     id="acquired by a function on one path"),
        pytest.param(["acquire A; call @2000; send; c3", "jmp release"], False,
                     id="released by a function, a tail jump"),
        pytest.param(["acquire A; call @2000; send; c3", "call DbgPrint; c3"], True,
                     id="a function that has nothing to do with it"),
        pytest.param(["acquire A; call @2000; send; c3", "acquire B; release B; c3"], True,
                     id="a function that acquires and releases another"),
        pytest.param(["acquire A; call @2000; send; c3", "call @3000; c3", "ffd0; c3"], False,
                     id="a function with an unknown call further in"),
        pytest.param(["acquire A; call @2000; send; c3", "74fe; call @2000; c3"], True,
                     id="a function that calls itself"),
        pytest.param(["acquire A; jz no; call @1000; no: send; c3"], True,
                     id="the start routine calls itself and acquires it once more"),
        # What is not followed may release it and lead back.
        pytest.param(["acquire A; jz on; ff248500300000; on: send; c3"], False, id="beside a computed jump"),
        pytest.param(["acquire A; jz on; 0000; on: send; c3"], False, id="beside unreadable code"),
        pytest.param(["acquire A; call @2000; send; c3", "ff248500300000"], False,
                     id="behind a function with a computed jump"),
    ],
)  # fmt: skip
def test_mutexes(functions: list[str], held: bool, bits: int) -> None:
    """A message under a mutex is one that every path reaches with the mutex acquired and not released."""
    assert found(*functions, bits=bits) == ({UNDER_MUTEX} if held else set())


@x86_and_x64
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param("top: acquire A; send; release A; jmp top", {LOOP, UNDER_MUTEX}, id="held in each round"),
        pytest.param("top: send; acquire A; jmp top", {LOOP}, id="held in all rounds but the first"),
        pytest.param("acquire A; top: send; jz top; release A; c3",
                     {LOOP, UNDER_MUTEX}, id="a loop inside"),
        pytest.param("top: send; enter; jz top; c3", {LOOP}, id="regions entered and never left"),
    ],
)  # fmt: skip
def test_loops_with_something_held(code: str, expected: set[str], bits: int) -> None:
    """In a loop what is held at a message is what every round holds, the first included."""
    assert found(code, bits=bits) == expected


@x86_and_x64
@pytest.mark.parametrize(
    ("functions", "disabled"),
    [
        pytest.param(["enter; wait; leave; c3"], True, id="a wait inside"),
        pytest.param(["enter; leave; wait; c3"], False, id="a wait behind it"),
        pytest.param(["enter; enter; leave; wait; c3"], True, id="nested, inner one left"),
        pytest.param(["enter; enter; leave; leave; wait; c3"], False, id="nested, both left"),
        pytest.param(["jz no; enter; no: enter; leave; wait; c3"], False, id="nested on one path, one left"),
        pytest.param(["leave; enter; wait; c3"], True, id="left once before"),
        pytest.param(["call KeEnterGuardedRegion; send; c3"], True, id="a message in a guarded one"),
        pytest.param(["enter; call KeLeaveGuardedRegion; wait; c3"], True, id="the other kind left"),
        pytest.param(["call ExEnterCriticalRegionAndAcquireResourceExclusive; wait; c3"], True,
                     id="entered together with a lock"),
        pytest.param(["enter; call ExReleaseResourceAndLeaveCriticalRegion; wait; c3"], False,
                     id="left together with a lock"),
        pytest.param(["enter; call @2000; c3", "wait; c3"], True, id="a function waits"),
        pytest.param(["enter; call @2000; wait; c3", "leave; c3"], False, id="a function leaves"),
        pytest.param(["acquire A; wait; c3"], False, id="a mutex is no region"),
    ],
)  # fmt: skip
def test_regions(functions: list[str], disabled: bool, bits: int) -> None:
    """A wait with APCs disabled is one that every path reaches with more regions entered than left."""
    assert found(*functions, bits=bits) == ({DISABLED} if disabled else set())


def test_explanations_give_the_calls() -> None:
    """An explanation gives the addresses of the calls, and of that in the loop where the message is sent further in."""
    (loop,) = check(program("top: call @2000; jmp top", "send; c3"))
    assert "(nt!FltSendMessage at 0x2000, made by the call at 0x1000)" in loop.explanation
    (held,) = check(program("acquire A; call @2000; c3", "send; c3"))
    assert (
        "(nt!ExAcquireFastMutex at 0x1005, nt!FltSendMessage at 0x2000, made by the call at 0x100b)" in held.explanation
    )
    (tried,) = check(program("try A; 84c0; jz no; send; no: c3"))
    assert "(nt!ExTryToAcquireFastMutex at 0x1005, nt!FltSendMessage at 0x100f)" in tried.explanation
    (many,) = check(program("; ".join(["top: 90", *["send"] * 5, "jmp top"])))
    assert many.explanation.count("nt!FltSendMessage at") == 3
    assert "; and more)" in many.explanation


@pytest.mark.parametrize(
    ("code", "note"),
    [
        pytest.param(b"\x90" * INSTRUCTIONS_BOUND, f"{INSTRUCTIONS_BOUND} instructions", id="instructions"),
        pytest.param(b"\xe8\0\0\0\0" * FUNCTIONS_BOUND, f"{FUNCTIONS_BOUND} functions", id="functions"),
    ],
)
def test_code_beyond_a_bound(code: bytes, note: str) -> None:
    """More code than a bound is not followed: a note tells it, and what it may do to a mutex is not guessed."""
    start = assemble("acquire A; call @2000; send; c3", 0x1000, 32)
    read = Reader(driver({0x1000: start, 0x2000: code + b"\xc3"}, 32)).read(0x1000)
    assert list(read.notes) == [f"no more than {note} are followed"]
    assert len(read.functions) <= FUNCTIONS_BOUND
    assert check(read) == ()


@pytest.mark.parametrize(("others", "held"), [(MUTEXES_BOUND - 2, True), (MUTEXES_BOUND - 1, False)])
def test_mutexes_beyond_a_bound(others: int, held: bool) -> None:
    """Not more than some mutexes are told apart: the release of one that is not may be that of any."""
    code = b"".join(b"\xb9" + le(0xA0000 + 8 * each) + b"\xff\x15" + le(slot(RELEASE)) for each in range(others))
    code += assemble("acquire A; release B; send; c3", 0x1000 + len(code), 32)
    read = Reader(driver({0x1000: code}, 32)).read(0x1000)
    assert list(read.notes) == ([] if held else [f"no more than {MUTEXES_BOUND} mutexes are followed"])
    assert {finding.code for finding in check(read)} == ({UNDER_MUTEX} if held else set())


@pytest.mark.parametrize(("others", "loops"), [(PLACES_BOUND - 1, True), (PLACES_BOUND, False)])
def test_loops_beyond_a_bound(others: int, loops: bool) -> None:
    """Not more than some messages are looked at whether they are in a loop; a note tells it."""
    read = program("; ".join([*["send"] * others, "top: send", "jmp top"]))
    assert {finding.code for finding in check(read)} == ({LOOP} if loops else set())
    assert list(read.notes) == ([] if loops else [f"no more than {PLACES_BOUND} calls that send messages are followed"])


def test_code_that_cannot_be_read() -> None:
    """Code on a page that is not in memory is told, and loops in what can be read are found."""
    read = program("top: send; jz top")
    assert [finding.code for finding in check(read)] == [LOOP]
    assert list(read.notes) == ["code at 0x1008 cannot be read"]


def called(read: Program) -> set[str]:
    return {name.removeprefix("nt!") for call in read.calls.values() for name in call.names}


@x86_and_x64
@pytest.mark.parametrize(
    ("code", "names"),
    [
        pytest.param("esi send; ffd6; c3", {SEND}, id="loaded"),
        pytest.param("esi send; ffe6", {SEND}, id="loaded, a tail jump"),
        pytest.param("esi send; 8b38; ffd6; c3", {SEND}, id="another register loaded"),
        pytest.param("esi send; call DbgPrint; ffd6; c3", {SEND, "DbgPrint"}, id="kept by a call"),
        pytest.param("eax send; call DbgPrint; ffd0; c3", {"DbgPrint"}, id="not kept by a call"),
        pytest.param("esi send; top: ffd6; jnz top; c3", {SEND}, id="in a loop"),
        pytest.param("jz b; esi send; jmp on; b: esi send; on: ffd6; c3", {SEND}, id="loaded on both paths"),
        pytest.param("jz on; esi send; on: ffd6; c3", set(), id="loaded on one path"),
        pytest.param("esi send; jz on; esi wait; on: ffd6; c3", set(), id="loaded differently on two paths"),
        pytest.param("esi send; esi wait; ffd6; c3", {WAIT}, id="loaded twice"),
        pytest.param("esi send; 5e; ffd6; c3", set(), id="then popped"),
        pytest.param("esi send; top: ffd6; 5e; jnz top; c3", set(), id="popped at the end of a round"),
        pytest.param("esi send; 8d7104; ffd6; c3", set(), id="then an address computed"),
        pytest.param("esi send; 83c608; ffd6; c3", set(), id="then added to"),
        pytest.param("esi send; 33f6; ffd6; c3", set(), id="then cleared"),
        pytest.param("esi send; 8b30; ffd6; c3", set(), id="then loaded from anywhere"),
        pytest.param("esi send; 668bf0; ffd6; c3", set(), id="then half of it overwritten"),
        pytest.param("esi send; 0f44f0; ffd6; c3", set(), id="then overwritten under a condition"),
        pytest.param("esi send; 96; ffd6; c3", set(), id="then exchanged"),
        pytest.param("esi send; a4; ffd6; c3", set(), id="then moved on by a string instruction"),
        pytest.param("eax send; d7; ffd0; c3", set(), id="then overwritten without being named"),
        pytest.param("esi send; jz on; ff248500300000; on: ffd6; c3", set(), id="beside code that is not followed"),
    ],
)  # fmt: skip
def test_calls_through_registers(code: str, names: set[str], bits: int) -> None:
    """A call through a register is named where on every path the register was loaded last from one import slot."""
    assert called(program(code, bits=bits)) == names


@pytest.mark.parametrize(
    ("bits", "functions", "names"),
    [
        pytest.param(32, ["send; c3"], {SEND}, id="through the import table"),
        pytest.param(64, ["send; c3"], {SEND}, id="through the import table, relative to RIP"),
        pytest.param(32, ["call @2000; c3", "jmp send"], {SEND}, id="through a thunk"),
        pytest.param(64, ["call @2000; c3", "jmp send"], {SEND}, id="through a thunk, relative to RIP"),
        pytest.param(64, ["r10 send; call @2000; c3", "41ffe2"], {SEND}, id="through a retpoline"),
        pytest.param(64, ["r10 send; jmp stub; stub: 41ffe2"], {SEND}, id="a tail jump through a retpoline"),
        pytest.param(64, ["r10 send; 90; call @2000; c3", "c3"], set(), id="r10 loaded for something else"),
        pytest.param(64, ["jz on; r10 send; on: call @2000; c3", "c3"], set(), id="r10 loaded on one path"),
        pytest.param(64, ["8b3522f00700; ffd6; c3"], set(), id="half of a slot loaded"),
        pytest.param(32, ["ff148500000800; c3"], set(), id="through a table with an index"),
        pytest.param(32, ["ff15f8ff0700; c3"], set(), id="through a slot that cannot be read"),
        pytest.param(32, ["ff15e8ff0700; c3"], set(), id="through a slot that points to nothing known"),
        pytest.param(32, ["ff15f0ff0700; c3", "send; c3"], {SEND}, id="through a slot with a function of the driver"),
        pytest.param(32, ["be00200000; ffd6; c3", "send; c3"], {SEND}, id="of a function by its address"),
    ],
)  # fmt: skip
def test_calls_by_name(bits: int, functions: list[str], names: set[str]) -> None:
    """A call of another module's function is named by what its slot in the import table holds in memory."""
    assert called(program(*functions, bits=bits)) == names


@pytest.mark.parametrize(
    ("bits", "code", "held"),
    [
        pytest.param(32, "bf00000900; 8bcf; call ExAcquireFastMutex; release B; send; c3", True, id="x86"),
        pytest.param(64, "48c7c700000900; 488bcf; call ExAcquireFastMutex; release B; send; c3", True, id="x64"),
        pytest.param(32, "bf40000900; 8bcf; call ExAcquireFastMutex; release B; send; c3", False, id="the same"),
        pytest.param(32, "8b3d00000900; 8bcf; call ExAcquireFastMutex; release B; send; c3", False,
                     id="from a variable: not known"),
    ],
)  # fmt: skip
def test_a_mutex_by_way_of_another_register(bits: int, code: str, held: bool) -> None:
    """The address of a mutex is followed from register to register; what a variable holds is not known."""
    assert found(code, bits=bits) == ({UNDER_MUTEX} if held else set())


def audit_of(scene: Scene, folder: Path) -> Audit:
    image = build(scene, load_kernel(scene.kernel))
    path = folder / "code.dmp"
    image.write_dump(path)
    plugin = volatility.construct(path, "windows.apcaudit.ApcAudit", cache=volatility.CACHE, kernel=image.kernel)
    return Audit(plugin.context, plugin.config["kernel"])


def codes(audit: Audit) -> dict[str, str]:
    (found,) = [each.findings for each in audit.run(Selection()) if each.thread.members.tid == 340]
    return {finding.code: str(finding.severity) for finding in found if finding.code in (LOOP, UNDER_MUTEX, DISABLED)}


def with_code(code: dict[int, Code]) -> Scene:
    """The seed's scene with other code in Bfilter."""
    scene = seed.scene()
    drivers = tuple(replace(each, code=code) if each.name == "Bfilter.sys" else each for each in scene.drivers)
    return replace(scene, drivers=drivers)


START = 0x38A0  # Bfilter's start address, ba7118a0, in the image


def test_the_seed(tmp_path: Path) -> None:
    """The post's driver sends in a loop with a fast mutex held: both findings, with the addresses of the calls."""
    audit = audit_of(seed.scene(), tmp_path)
    (thread,) = audit.run(Selection())
    explanations = {finding.code: finding.explanation for finding in thread.findings}
    assert "0xba71186a" in explanations[LOOP]
    assert "hal!ExAcquireFastMutex at 0xba711848, fltMgr!FltSendMessage at 0xba71186a" in explanations[UNDER_MUTEX]
    assert DISABLED not in explanations
    assert not [note for note in audit.notes if "start routine" in note or "capstone" in note]


def test_a_look_alike(tmp_path: Path) -> None:
    """A driver that takes the same mutex but has released it when it sends, once, has neither finding."""
    code: dict[int, Code] = {
        START: (
            *(b"\x55\x8b\xec\xff\x15", Slot("ExAcquireFastMutex"), b"\xff\x15", Slot("ExReleaseFastMutex")),
            *(b"\xff\x15", Slot("FltSendMessage"), b"\x5d\xc2\x04\x00"),
        )
    }
    assert codes(audit_of(with_code(code), tmp_path)) == {}


def test_severities(tmp_path: Path) -> None:
    """The loop alone is low: many drivers do it; with the mutex held it is medium."""
    code: dict[int, Code] = {START: (b"\xff\x15", Slot("FltSendMessage"), b"\xeb\xf8")}
    assert codes(audit_of(with_code(code), tmp_path)) == {LOOP: "low"}
    assert codes(audit_of(seed.scene(), tmp_path)) == {LOOP: "low", UNDER_MUTEX: "medium"}


def test_without_capstone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without capstone a note says that the code is not checked, and everything else stays as it is."""
    monkeypatch.setitem(sys.modules, "capstone", None)
    audit = audit_of(seed.scene(), tmp_path)
    (thread,) = audit.run(Selection())
    assert {finding.code for finding in thread.findings} == {"detach-bugcheck"}
    assert thread.stack is not None
    assert len([note for note in audit.notes if "capstone is not installed" in note]) == 1
