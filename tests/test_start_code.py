"""The code at start addresses: what it calls, in loops, with mutexes held, with APCs disabled."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.code.checks import check
from volatility3.plugins.windows.apcaudit.code.disassembler import decoder
from volatility3.plugins.windows.apcaudit.code.instruction import Flow, Instruction
from volatility3.plugins.windows.apcaudit.code.program import (
    FUNCTIONS_BOUND,
    INSTRUCTIONS_BOUND,
    Program,
    Surroundings,
    read_program,
)

from apcaudit.synthetic.assembly import Code, Slot
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Scene
from apcaudit.synthetic.scenes import seed
from tests import volatility

ACQUIRE, RELEASE = "hal!ExAcquireFastMutex", "hal!ExReleaseFastMutex"
SEND = "fltMgr!FltSendMessage"
ENTER, LEAVE, WAIT = "nt!KeEnterCriticalRegion", "nt!KeLeaveCriticalRegion", "nt!KeWaitForSingleObject"

LOOP, UNDER_MUTEX, DISABLED = "flt-send-loop", "flt-send-under-fast-mutex", "apc-disabled-across-wait"


def program(*functions: str) -> Program:
    """Make a program from functions of one-byte instructions, by address: the first at 0x1000, the next at 0x2000.

    A function is words: `call NAME`, `call @2000`, `jmp N`, `branch N` (to its Nth instruction), `jmp NAME`, `ret`.
    """
    code: dict[int, Instruction] = {}
    names: dict[int, str] = {}
    for number, text in enumerate(functions):
        start = 0x1000 * (number + 1)
        for at, word in enumerate(text.split(", "), start):
            verb, _, operand = word.partition(" ")
            flow = {"call": Flow.CALL, "jmp": Flow.JUMP, "branch": Flow.BRANCH, "ret": Flow.RETURN}[verb]
            target: int | None = None
            if operand.startswith("@"):
                target = int(operand[1:], 16)
            elif operand.isdigit():
                target = start + int(operand)
            elif operand:
                target = 0x80000000 + len(names)
                names[target] = operand
            code[at] = Instruction(at, 1, flow, target)
    around = Surroundings(
        code.get, lambda address: address < 0x80000000, lambda _: None, lambda address: frozenset({names[address]})
    )
    return read_program(0x1000, around)


@pytest.mark.parametrize(
    ("functions", "expected"),
    [
        pytest.param([f"call {SEND}, ret"], set(), id="one message"),
        pytest.param([f"call {SEND}, jmp 0"], {LOOP}, id="messages in a loop"),
        pytest.param([f"call {SEND}, branch 0, ret"], {LOOP}, id="a loop that ends"),
        pytest.param([f"call {SEND}, call {WAIT}, jmp 1"], set(), id="a loop behind the message"),
        pytest.param(["call @2000, jmp 0", f"call {SEND}, ret"], {LOOP}, id="a loop around a function that sends"),
        pytest.param(["call @2000, ret", "call @3000, jmp 0", f"jmp {SEND}"], {LOOP}, id="further in, by a tail jump"),
        pytest.param([f"call {ACQUIRE}, call {SEND}, call {RELEASE}, ret"], {UNDER_MUTEX}, id="under a mutex"),
        pytest.param([f"call {ACQUIRE}, call {RELEASE}, call {SEND}, ret"], set(), id="behind its release"),
        pytest.param([f"call {SEND}, call {ACQUIRE}, call {RELEASE}, ret"], set(), id="before it is acquired"),
        pytest.param([f"branch 2, call {ACQUIRE}, call {SEND}, ret"], {UNDER_MUTEX}, id="under a mutex on one path"),
        pytest.param([f"call {ACQUIRE}, call @2000, call {RELEASE}, ret", f"call {SEND}, ret"], {UNDER_MUTEX},
                     id="sent by a function that is called with the mutex held"),
        pytest.param([f"call @2000, call {SEND}, ret", f"call {ACQUIRE}, ret"], {UNDER_MUTEX},
                     id="acquired by a function"),
        pytest.param([f"call {ACQUIRE}, call @2000, call {SEND}, ret", f"jmp {RELEASE}"], set(),
                     id="released by a function, by a tail jump"),
        pytest.param([f"call {SEND}, call {ACQUIRE}, jmp 0"], {LOOP, UNDER_MUTEX}, id="held since the last round"),
        pytest.param([f"call {ACQUIRE}, call {SEND}, call {RELEASE}, jmp 0"], {LOOP, UNDER_MUTEX}, id="both"),
        pytest.param(["call nt!KeAcquireGuardedMutex, call fltMgr!FltSendMessage, ret"], {UNDER_MUTEX},
                     id="a guarded mutex"),
        pytest.param([f"call {ENTER}, call {WAIT}, call {LEAVE}, ret"], {DISABLED}, id="a wait in a critical region"),
        pytest.param([f"call nt!KeEnterGuardedRegion, call {SEND}, ret"], {DISABLED}, id="a message in a guarded one"),
        pytest.param([f"call {ENTER}, call {LEAVE}, call {WAIT}, ret"], set(), id="a wait behind it"),
        pytest.param(["call @1000, ret"], set(), id="a function that calls itself"),
        pytest.param(["call @2000, ret", "call @1000, ret"], set(), id="functions that call each other"),
        pytest.param(["jmp 0"], set(), id="an endless loop"),
    ],
)  # fmt: skip
def test_what_is_found(functions: list[str], expected: set[str]) -> None:
    """A message in a loop; a message on any path with a mutex held; a wait with APCs disabled."""
    assert {finding.code for finding in check(program(*functions))} == expected


def test_explanations_give_the_calls() -> None:
    """An explanation gives the addresses of the calls, and of that in the loop where the message is sent further in."""
    (found,) = check(program("call @2000, jmp 0", f"call {SEND}, ret"))
    assert "0x2000, made by the call at 0x1000" in found.explanation
    (found,) = check(program(f"call {ACQUIRE}, call {SEND}, ret"))
    assert f"{ACQUIRE} at 0x1000, {SEND} at 0x1001" in found.explanation


def test_work_is_bounded() -> None:
    """Code without end, and functions without end, are followed up to a bound, which is told."""
    around = Surroundings(lambda at: Instruction(at, 1), lambda _: True, lambda _: None, lambda _: frozenset())
    found = read_program(0x1000, around)
    assert sum(len(function.instructions) for function in found.functions.values()) <= INSTRUCTIONS_BOUND
    assert found.notes == ("there is more code than is followed",)
    calls = replace(around, decode=lambda at: Instruction(at, 1, Flow.CALL if at % 2 else Flow.RETURN, at + 2))
    found = read_program(0x1001, calls)
    assert len(found.functions) == FUNCTIONS_BOUND
    assert found.notes == ("there is more code than is followed",)
    assert check(found) == ()


def test_code_that_cannot_be_read() -> None:
    """Code on a page that is not in memory is told, and what can be read is checked."""
    known = {0x1000: Instruction(0x1000, 1, Flow.CALL, 0x80000000), 0x1001: Instruction(0x1001, 1, Flow.BRANCH, 0x1000)}
    around = Surroundings(known.get, lambda at: at < 0x80000000, lambda _: None, lambda _: frozenset({SEND}))
    found = read_program(0x1000, around)
    assert [finding.code for finding in check(found)] == [LOOP]
    assert found.notes == ("code from 0x1002 on cannot be read",)


@pytest.mark.parametrize(
    ("bits", "code", "names"),
    [
        pytest.param(32, {0x1000: "ff1500300000 c3"}, {SEND}, id="through the import table"),
        pytest.param(64, {0x1000: "ff15fa1f0000 c3"}, {SEND}, id="through the import table, relative to RIP"),
        pytest.param(32, {0x1000: "e8fb0f0000 c3", 0x2000: "ff2500300000"}, {SEND}, id="through a thunk"),
        pytest.param(32, {0x1000: "8b3500300000 ffd6 c3"}, {SEND}, id="through a register"),
        pytest.param(32, {0x1000: "8b3500300000 8b3504300000 ffd6 c3"}, set(), id="through one with two values"),
        pytest.param(64, {0x1000: "4c8b15f91f0000 e8f40f0000 c3", 0x2000: "41ffe2"}, {SEND}, id="through a retpoline"),
        pytest.param(32, {0x1000: "ff2500300000"}, {SEND}, id="a tail jump"),
        pytest.param(32, {0x1000: "ff148500300000 c3"}, set(), id="through a table with an index"),
        pytest.param(32, {0x1000: "ff1508300000 c3"}, set(), id="through a slot that points to nothing known"),
        pytest.param(32, {0x1000: "ff150c300000 c3"}, set(), id="through a slot that cannot be read"),
        pytest.param(32, {0x1000: "ff1510300000 c3"}, set(), id="through a slot patched to point into the driver"),
    ],
)
def test_calls_by_name(bits: int, code: Mapping[int, str], names: set[str]) -> None:
    """A call of another module's function is named by what its slot in the import table holds in memory."""
    pytest.importorskip("capstone")
    memory = {start: bytes.fromhex(text) for start, text in code.items()}
    slots = {0x3000: 0x80000000, 0x3004: 0x80000008, 0x3008: 0x90000000, 0x3010: 0x1000}

    def read(address: int) -> bytes:
        return next((data[address - at :] for at, data in memory.items() if at <= address < at + len(data)), b"")

    decode = decoder(read, bits)
    assert decode is not None
    named = {0x80000000: frozenset({SEND}), 0x80000008: frozenset({WAIT})}
    around = Surroundings(decode, lambda at: at < 0x80000000, slots.get, lambda at: named.get(at, frozenset()))
    found = read_program(0x1000, around)
    calls = found.functions[0x1000].calls.values()
    assert {name for call in calls for name in call.names} == names


def audit_of(scene: Scene, folder: Path) -> Audit:
    image = build(scene, load_kernel(scene.kernel))
    path = folder / "code.dmp"
    image.write_dump(path)
    plugin = volatility.construct(path, "windows.apcaudit.ApcAudit", cache=folder.parent / "code-cache")
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
    pytest.importorskip("capstone")
    audit = audit_of(seed.scene(), tmp_path)
    (thread,) = audit.run(Selection())
    explanations = {finding.code: finding.explanation for finding in thread.findings}
    assert "0xba71186a" in explanations[LOOP]
    assert "hal!ExAcquireFastMutex at 0xba711848, fltMgr!FltSendMessage at 0xba71186a" in explanations[UNDER_MUTEX]
    assert DISABLED not in explanations
    assert not [note for note in audit.notes if "start routine" in note or "capstone" in note]


def test_a_look_alike(tmp_path: Path) -> None:
    """A driver that takes the same mutex but has released it when it sends, once, has neither finding."""
    pytest.importorskip("capstone")
    code: dict[int, Code] = {
        START: (
            *(b"\x55\x8b\xec\xff\x15", Slot("ExAcquireFastMutex"), b"\xff\x15", Slot("ExReleaseFastMutex")),
            *(b"\xff\x15", Slot("FltSendMessage"), b"\x5d\xc2\x04\x00"),
        )
    }
    assert codes(audit_of(with_code(code), tmp_path)) == {}


def test_severities(tmp_path: Path) -> None:
    """The loop alone is low: many drivers do it; with the mutex held it is medium."""
    pytest.importorskip("capstone")
    code: dict[int, Code] = {START: (b"\xff\x15", Slot("FltSendMessage"), b"\xeb\xf8")}
    assert codes(audit_of(with_code(code), tmp_path)) == {LOOP: "low"}
    assert codes(audit_of(seed.scene(), tmp_path)) == {LOOP: "low", UNDER_MUTEX: "medium"}


def test_without_capstone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without capstone a note says that the code is not checked, and everything else stays as it is."""
    monkeypatch.setitem(sys.modules, "capstone", None)
    audit = audit_of(seed.scene(), tmp_path)
    (thread,) = audit.run(Selection())
    assert {finding.code for finding in thread.findings} == {"detach-bugcheck"}
    assert thread.thread.stack is not None
    assert len([note for note in audit.notes if "capstone is not installed" in note]) == 1
