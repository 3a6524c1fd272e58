"""The rules that ship: each hits what it is for, and not what only looks like it; both engines take them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.signatures import sources
from volatility3.plugins.windows.apcaudit.signatures.options import RuleOptions
from volatility3.plugins.windows.apcaudit.signatures.rules import Compiled, Start, UnitFacts, externals

from tests.yara_engines import ENGINES, imported

#: call [address] on x86; call [rip + displacement] on x64.
CALL = bytes.fromhex("ff1510207000")
FILTER = ("fltMgr!FltSendMessage", "hal!ExAcquireFastMutex", "nt!PsCreateSystemThread")
INJECTOR = ("nt!KeInitializeApc", "nt!KeInsertQueueApc")
#: Where a start routine lies in these units, and how long it is.
START = Start(0x400, 0x100)


def unit(*pieces: tuple[int, bytes]) -> bytes:
    """Make a unit of 4 KiB of zeros with these pieces in it."""
    data = bytearray(0x1000)
    for at, piece in pieces:
        data[at : at + len(piece)] = piece
    return bytes(data)


def wide(text: str) -> bytes:
    return text.encode("utf-16-le")


@dataclass(frozen=True)
class Case:
    """What is scanned, and what is known of it."""

    data: bytes
    known: UnitFacts
    start: Start = START


#: push ebp; mov ebp, esp; push ecx; jmp backwards: a routine whose loop lies in front of it.
JUMP_BACK = bytes.fromhex("558bec51eb9b")

BFILTER = Case(unit((0x450, CALL), (0x800, b"\0ScUnInitExcludePath\0")), UnitFacts("Bfilter", "", False, FILTER))
SENDER = Case(unit((0x450, CALL)), UnitFacts("avsend", "", False, FILTER))
DLL = Case(unit((0x800, b"\0LdrLoadDll\0")), UnitFacts("inject", "", False, INJECTOR))
HIDDEN = Case(unit(), UnitFacts("ghost", "", True, ("nt!KeInsertQueueApc",)))
HASHES = Case(unit((0x410, bytes.fromhex("bac45c196d")), (0x430, bytes.fromhex("ba3446ccaf"))), UnitFacts(hidden=True))
# mov rax, gs:[38h]; mov rax, [rax+4]; sub rax, 1000h; cmp word [rax], 'MZ'; jne
WALK_X64 = bytes.fromhex("65488b0425380000 00488b4004 482d00100000 6681384d5a 75f3".replace(" ", ""))
# mov eax, fs:[38h]; mov eax, [eax+4]; sub eax, 1000h; cmp word [eax], 'MZ'; jne
WALK_X86 = bytes.fromhex("64a138000000 8b4004 2d00100000 6681384d5a 75f4".replace(" ", ""))
# mov ecx, C0000082h; rdmsr
LSTAR = bytes.fromhex("b9820000c0 0f32".replace(" ", ""))

# What user APCs would run: private memory of a program.
TARGET = UnitFacts(process="notepad.exe", target_protection="rwx")
REFLECTIVE_X64 = bytes.fromhex("4d5a4152554889e54881ec20000000488d1deaffffff4889df")
REFLECTIVE_X64_CALL = bytes.fromhex("4d5a4152554889e54883ec204883e4f0e8000000005b4881c3b3a20000ffd3")
REFLECTIVE_X86 = bytes.fromhex("4d5ae8000000005b52455589e581c3b3060000ffd3")
REFLECTIVE_X86_KEPT = bytes.fromhex("4d5ae8000000005b89df52455589e581c3b3060000ffd3")
SRDI_X64 = bytes.fromhex("e8000000005949 89c8 4881c1 230b0000".replace(" ", ""))
SRDI_X86 = bytes.fromhex("e800000000 58 5589e5 89c2 0526080000".replace(" ", ""))
BLOCK_API_X64 = bytes.fromhex("fc4883e4f0e8c8000000")
BLOCK_API_X86 = bytes.fromhex("fce88f00000060")
DONUT = bytes.fromhex("5931c0480f88a5050000")

HITS: dict[str, list[Case]] = {
    "reflective_loader_opening": [
        Case(unit((0x400, opening)), TARGET)
        for opening in (
            *(REFLECTIVE_X64, REFLECTIVE_X64_CALL, REFLECTIVE_X86, REFLECTIVE_X86_KEPT, SRDI_X64, SRDI_X86),
        )
    ],
    "beacon_opening": [Case(unit((0x400, opening)), TARGET) for opening in (BLOCK_API_X64, BLOCK_API_X86, DONUT)],
    "bfilter_message_sender": [
        BFILTER,
        replace(BFILTER, data=unit((0x400, CALL))),
        replace(BFILTER, data=unit((0x400, JUMP_BACK), (0x3C0, CALL))),
        replace(BFILTER, known=replace(BFILTER.known, driver="renamed")),
        replace(BFILTER, start=Start()),
    ],
    "flt_send_from_system_thread": [SENDER, BFILTER, replace(SENDER, data=unit((0x400, JUMP_BACK), (0x3C0, CALL)))],
    "kernel_apc_injector": [
        DLL,
        replace(DLL, data=unit((0x800, b"\0" + wide("LoadLibraryW") + b"\0\0"))),
        Case(
            unit(
                (0x700, wide("\0KeInitializeApc\0")), (0x780, wide("\0KeInsertQueueApc\0")), (0x800, b"\0LdrLoadDll\0")
            ),
            UnitFacts("dynamic"),
        ),
    ],
    "kernel_apc_hidden_queuer": [
        HIDDEN,
        Case(unit((0x10, b"\0KeInitializeApc\0"), (0x80, wide("\0KeInsertQueueApc\0"))), UnitFacts(hidden=True)),
    ],
    "shellcode_apc_by_hash": [HASHES],
    "shellcode_finds_kernel": [
        Case(unit((0x420, WALK_X64)), UnitFacts(hidden=True)),
        Case(unit((0x420, WALK_X86)), UnitFacts(hidden=True)),
        Case(unit((0x420, WALK_X64[9:]), (0x480, LSTAR)), UnitFacts(hidden=True)),
    ],
}

MISSES: dict[str, list[Case]] = {
    "reflective_loader_opening": [
        # An image as linkers make it, and an opening in a driver.
        Case(unit((0x400, bytes.fromhex("4d5a90000300000004000000ffff0000b8000000"))), TARGET),
        Case(unit((0x400, REFLECTIVE_X64)), UnitFacts("avhook")),
        # The call alone: position-independent code of any kind.
        Case(unit((0x400, SRDI_X64[:6])), TARGET),
    ],
    "beacon_opening": [
        # A function that aligns its stack; a call that is none of block_api's.
        Case(unit((0x400, bytes.fromhex("554889e54883e4f0e8c8000000"))), TARGET),
        Case(unit((0x400, bytes.fromhex("fc4883e4f0e810000000"))), TARGET),
        Case(unit((0x400, BLOCK_API_X64)), UnitFacts(hidden=True)),
    ],
    "bfilter_message_sender": [
        # A driver of that name that takes no fast mutex.
        replace(BFILTER, known=replace(BFILTER.known, imports=FILTER[:1])),
        # Its neighbour in the list of names is another function.
        replace(
            BFILTER, known=replace(BFILTER.known, imports=("fltMgr!FltSendMessage", "nt!ExAcquireFastMutexUnsafe"))
        ),
        # The thread starts in a routine of it that calls nothing.
        replace(BFILTER, start=Start(0x600, 0x100)),
        replace(BFILTER, known=UnitFacts("other", "", False, FILTER), data=unit((0x450, CALL))),
    ],
    "flt_send_from_system_thread": [
        replace(SENDER, start=Start()),
        replace(SENDER, known=UnitFacts("avsend", "", False, FILTER[1:])),
        replace(SENDER, known=UnitFacts("avsend", "", False, FILTER[:2])),
        replace(SENDER, data=unit((0x900, CALL))),
        # A call in front of a routine that does not go there.
        replace(SENDER, data=unit((0x400, JUMP_BACK[:4]), (0x3C0, CALL))),
    ],
    "kernel_apc_injector": [
        replace(DLL, data=unit()),
        replace(DLL, known=UnitFacts("inject", "", False, INJECTOR[:1])),
        replace(DLL, known=replace(DLL.known, driver="nt")),
        replace(DLL, data=unit((0x800, b"\0LdrLoadDllExtension\0"))),
    ],
    "kernel_apc_hidden_queuer": [
        replace(HIDDEN, known=replace(HIDDEN.known, hidden=False)),
        replace(HIDDEN, known=UnitFacts("ghost", "", True, ("nt!KeInitializeApc",))),
    ],
    "shellcode_apc_by_hash": [Case(unit((0x410, bytes.fromhex("bac45c196d"))), UnitFacts(hidden=True))],
    "shellcode_finds_kernel": [
        # Either half alone: a driver that reads LSTAR, and one that looks for an MZ header.
        Case(unit((0x480, LSTAR)), UnitFacts("hypervisor")),
        Case(unit((0x420, WALK_X64[9:])), UnitFacts("protector")),
        Case(unit((0x420, WALK_X64)), UnitFacts("nt")),
    ],
}


@pytest.fixture(scope="module", params=ENGINES)
def rules(request: pytest.FixtureRequest) -> Compiled:
    """The shipped rules, compiled by each engine that can be imported."""
    return imported(request.param).compile(sources.gather(RuleOptions()))


def _rules_of(case: Case, rules: Compiled) -> dict[str, tuple[tuple[int, int], ...]]:
    return {hit.rule: hit.places for hit in rules.scan(case.data, externals(case.known, case.start))}


@pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule, cases in HITS.items() for case in cases])
def test_hits(rule: str, case: Case, rules: Compiled) -> None:
    """A rule hits what it is for."""
    assert rule in _rules_of(case, rules)


@pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule, cases in MISSES.items() for case in cases])
def test_misses(rule: str, case: Case, rules: Compiled) -> None:
    """A rule does not hit what lacks one of its conditions."""
    assert rule not in _rules_of(case, rules)


@pytest.mark.parametrize("case", [BFILTER, SENDER, HITS["flt_send_from_system_thread"][2]])
def test_a_string_lies_in_the_start_routine(case: Case, rules: Compiled) -> None:
    """The rules about a thread's start have a string in it, so that the hit is tied to the thread."""
    found = _rules_of(case, rules)
    assert all(
        any(START.rva <= at < START.rva + START.size for at, _ in found[rule])
        for rule in {"bfilter_message_sender", "flt_send_from_system_thread"} & set(found)
    )
    assert "flt_send_from_system_thread" in found


def test_nothing_hits_nothing(rules: Compiled) -> None:
    """An image of zeros that nothing is known of is hit by no rule."""
    assert _rules_of(Case(unit(), UnitFacts("plain")), rules) == {}


def _shipped() -> dict[str, str]:
    text = "\n".join(path.read_text(encoding="ascii") for path in sorted(sources.SHIPPED.glob("*.yar")))
    return dict(re.findall(r"^rule (\w+)\n\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE))


def test_every_rule_has_its_cases() -> None:
    """Every rule that ships has a case that hits and one that does not."""
    assert set(_shipped()) == set(HITS) == set(MISSES)


@pytest.mark.parametrize("key", ["description", "why", "false_positives", "reference"])
def test_every_rule_says_what_it_is(key: str) -> None:
    """Every rule says what it finds, why that matters, what it mistakes for it, and where that can be read."""
    missing = [
        name for name, body in _shipped().items() if not re.search(rf'^ +{key} = ".{{10,}}"$', body, re.MULTILINE)
    ]
    assert missing == []


def test_the_hashes_are_those_of_the_names() -> None:
    """The constants are the names' own: rotate right by 13 and add, the terminating zero included."""
    text = (sources.SHIPPED / "kernel_shellcode.yar").read_text(encoding="ascii")
    names = {
        "ke_initialize_apc": "KeInitializeApc",
        "ke_insert_queue_apc": "KeInsertQueueApc",
        "ps_get_current_process": "PsGetCurrentProcess",
        "zw_allocate_virtual_memory": "ZwAllocateVirtualMemory",
        "ps_get_thread_teb": "PsGetThreadTeb",
    }
    for string, name in names.items():
        value = 0
        for character in name.encode() + b"\0":
            value = ((value >> 13 | value << 19) + character) & 0xFFFFFFFF
        assert f"${string} = {{ {value.to_bytes(4, 'little').hex(' ').upper()} }}" in text


def test_no_shipped_rule_is_compiled_for_a_healthy_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread is suspect no rule is compiled."""
    from volatility3.plugins.windows.apcaudit import signatures

    from apcaudit.synthetic.scene import Thread
    from tests.views_image import audited

    compiled: list[RuleOptions] = []
    original: Callable[[RuleOptions], object] = signatures.compile_rules

    def counting(options: RuleOptions) -> object:
        compiled.append(options)
        return original(options)

    monkeypatch.setattr(signatures, "compile_rules", counting)
    audited("10-19041-x64", tmp_path, (Thread(8), Thread(12, kernel_apc_disable=-1)))
    assert compiled == []
