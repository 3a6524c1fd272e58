"""YARA over what a user APC would run: which memory is scanned, and what rules know of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from apcaudit.synthetic import libraries
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Process, Thread
from apcaudit.synthetic.situations.owners import SHELLCODE
from apcaudit.synthetic.user import Region, UserImage, UserSpace
from tests.views_image import Audits, audited

WRITTEN, PROTECTED, ORDINARY, NARROW = 0x1000, 0x1004, 0x1008, 0x100C
MARK = b"a mark of ours"
RULES = r"""
rule of_the_program { condition: process == "target.exe" and target_protection == "rwx" and not wow64 and driver == "" }
rule of_a_32_bit_program { condition: process == "narrow.exe" and target_protection == "rx" and wow64 }
rule marked_at_the_target { strings: $mark = "a mark of ours" condition: $mark at start_rva and not hidden }
rule whole { condition: filesize == 0x4000 and uint8(0) == 0x11 }
rule of_the_kernel { condition: process == "" and target_protection == "" and not wow64 }
"""


def _queued(target: str) -> Apc:
    return Apc("nt!IopDeallocateApc", target, mode="user", pool_tag=b"PsAp")


@pytest.fixture(scope="module", params=("xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "11-26100-x64"))
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Audits:
    """Two programs, with APCs to private memory of one kind and another, and to an image."""
    kernel = load_kernel(request.param)
    regions = (
        # Four pages: what precedes the target is scanned with it.
        Region("code", 0x4000, content={0: b"\x11", 0x2010: MARK}),
        Region("opening", protection="EXECUTE_READ", content={0: SHELLCODE}),
    )
    threads = tuple(
        Thread(tid, start="ntdll+0x1100", user_apcs=(_queued(target),))
        for tid, target in (
            (WRITTEN, "memory:code+0x2010"),
            (PROTECTED, "memory:opening"),
            (ORDINARY, "target+0x1200"),
        )
    )
    listed = [Process("target.exe", 0x900, threads, space=UserSpace(libraries.system(kernel), regions))]
    if kernel.is_64bit:
        space = UserSpace(
            (UserImage("narrow.exe", bits=32), *libraries.wow64(kernel)),
            (Region("narrow", protection="EXECUTE_READ", content={0: MARK}),),
        )
        thread = Thread(NARROW, start="ntdll+0x1100", user_apcs=(_queued("wow64:memory:narrow"),))
        listed.append(Process("narrow.exe", 0x980, (thread,), wow64=True, space=space))
    return audited(request.param, tmp_path_factory.mktemp(request.param), (), others=tuple(listed))


def hits(found: Audits, tid: int, rules: Path) -> list[str]:
    """The rules that hit what a thread depends on, of ours."""
    from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
    from volatility3.plugins.windows.apcaudit.signatures.options import RuleOptions

    audit = Audit(*found.source, rules=RuleOptions(file=str(rules), defaults=False))
    row = next(each for each in audit.run(Selection()) if each.thread.members.tid == tid)
    return [] if row.yara is None else row.yara.split(",")


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yar"
    path.write_text(RULES, encoding="ascii")
    return path


def test_what_rules_know(found: Audits, rules: Path) -> None:
    """A region around the target is a unit: its process, its protection, and the target as start_rva."""
    assert hits(found, WRITTEN, rules) == ["marked_at_the_target@start", "of_the_kernel", "of_the_program", "whole"]


def test_a_32_bit_program(found: Audits, rules: Path) -> None:
    """In a 32-bit program wow64 is true, and the target is what the encoded routine says."""
    if not found.image.kernel.is_64bit:
        pytest.skip("only x64 runs 32-bit programs beside others")
    assert hits(found, NARROW, rules) == ["marked_at_the_target@start", "of_a_32_bit_program", "of_the_kernel"]


def test_an_image_is_no_target(found: Audits) -> None:
    """What lies in an image is not scanned: its thread is not even suspect."""
    assert found.of[ORDINARY].yara is None


def test_the_rules_that_ship(found: Audits) -> None:
    """The opening of well-known shellcode is named, in the process and at the address that it is in."""
    row = found.of[PROTECTED]
    address = found.image.address_of["memory:opening"]
    assert [(hit.rule, hit.address, hit.at_start) for hit in row.yara_hits] == [("beacon_opening", address, True)]
    assert row.yara_hits[0].unit == f"the memory from {address:#x} on of target.exe (2304)"
    assert found.of[WRITTEN].yara == ""
