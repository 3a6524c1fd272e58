"""Every kind of crash dump (DumpType), of either width: what it is, and what to do where it cannot be read."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from volatility3.framework import contexts
from volatility3.plugins.windows.apcaudit.dumps.missing import expected_size
from volatility3.plugins.windows.apcaudit.formats.crash_header import parse_crash_header
from volatility3.plugins.windows.apcaudit.vol.diagnosis import diagnose

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import healthy
from tests.test_bad_input import vol
from tests.volatility import CACHE, REPOSITORY_SYMBOLS

KERNELS = {64: "10-19041-x64", 32: "xp-sp3-x86"}
WIDTHS = pytest.mark.parametrize("bits", KERNELS)

#: Offsets of DumpType in DUMP_HEADER64 and DUMP_HEADER (Dump.h), of the physical memory descriptor, and the header's
#: size.
DUMP_TYPE = {64: 0xF98, 32: 0xF88}
DESCRIPTOR = {64: 0x88, 32: 0x64}
HEADER = {64: 0x2000, 32: 0x1000}
UNSET = int.from_bytes(b"PAGE", "little")

SET = "set the machine to write complete or active memory dumps"
RAW = f"acquire raw memory, or {SET}"

#: What is said of each DumpType, and what to do: DUMP_TYPE of wdm.h up to 7, then those of WinDbg (kdmp-parser).
KINDS = {
    0: ("a crash dump whose header does not say of which kind (DumpType 0x0)", "acquire it again"),
    2: ("a kernel memory dump (DumpType 2), which vol does not read", SET),
    3: ("the header of a dump, without memory (DumpType 3), which vol does not read", SET),
    6: ("an automatic, kernel or live kernel memory dump (DumpType 6), which vol does not read", SET),
    7: ("an automatic memory dump (DumpType 7), which vol does not read", SET),
    8: ("a dump of the kernel's memory that WinDbg wrote (.dump /k) (DumpType 8)", RAW),
    9: ("a dump of the kernel's and the programs' memory that WinDbg wrote (.dump /ka) (DumpType 9)", RAW),
    10: ("a dump of all memory that WinDbg wrote (.dump /f) (DumpType 10)", RAW),
    11: ("a crash dump of a kind that is not known (DumpType 0xb)", RAW),
    0x1234: ("a crash dump of a kind that is not known (DumpType 0x1234)", RAW),
    0xFFFFFFFF: ("a crash dump whose header does not say of which kind (DumpType 0xffffffff)", "acquire it again"),
    UNSET: ("a crash dump whose header does not say of which kind (DumpType 0x0)", "acquire it again"),
}


@pytest.fixture(scope="module")
def dumps() -> dict[int, bytes]:
    """Complete memory dumps of ordinary machines of both widths."""
    return {bits: build(healthy.scene(kernel), load_kernel(kernel)).dump() for bits, kernel in KERNELS.items()}


def of_type(dump: bytes, bits: int, kind: int) -> bytes:
    """Change a dump's DumpType."""
    return dump[: DUMP_TYPE[bits]] + struct.pack("<I", kind) + dump[DUMP_TYPE[bits] + 4 :]


def told(path: Path, content: bytes) -> str:
    """Ask what keeps a file from being audited, in which vol found nothing."""
    path.write_bytes(content)
    context = contexts.Context()
    context.config["automagic.LayerStacker.single_location"] = path.as_uri()
    return diagnose(context, "plugins.ApcAudit.kernel")


@WIDTHS
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_not_read(kind: int, bits: int, dumps: dict[int, bytes], tmp_path: Path) -> None:
    """A dump of a kind that vol does not read is named by its kind, never called truncated, with what to do."""
    what, to_do = KINDS[kind]
    said = told(tmp_path / "x.dmp", of_type(dumps[bits], bits, kind))
    assert said.startswith(f"x.dmp is {what}")
    assert said.endswith(f": {to_do}")
    assert "truncated" not in said


@WIDTHS
@pytest.mark.parametrize("kind", [8, 6])
def test_what_vol_prints(kind: int, bits: int, dumps: dict[int, bytes], tmp_path: Path) -> None:
    """The same in a run of vol, whatever its search for page tables finds in such a file."""
    image = tmp_path / "x.dmp"
    image.write_bytes(of_type(dumps[bits], bits, kind))
    done = vol(image, REPOSITORY_SYMBOLS, CACHE)
    assert done.returncode == 1
    assert f"x.dmp is {KINDS[kind][0]}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@WIDTHS
def test_a_complete_dump(bits: int, dumps: dict[int, bytes], tmp_path: Path) -> None:
    """A complete dump says whether it is truncated, by its own header, or damaged."""
    whole = dumps[bits]
    assert told(tmp_path / "cut.dmp", whole[:0x6000]).startswith(
        f"cut.dmp is a complete memory dump (DumpType 1) that is truncated: it has 24,576 of the {len(whole):,} bytes"
    )
    assert told(tmp_path / "x.dmp", whole).startswith(
        "x.dmp is a complete memory dump (DumpType 1) that holds no page tables of Windows where its header says, at 0x"
    )
    assert "x.dmp is a crash dump that is truncated in its header, at 0x800" in told(tmp_path / "x.dmp", whole[:0x800])


def active(dump: bytes, bits: int, pages: int, *, begin: int) -> bytes:
    """Make an active dump (DumpType 5) with a bitmap of so many pages, in front of memory."""
    # _SUMMARY_DUMP: Signature, ValidDump, HeaderSize, Pages, BitmapSize.
    summary = struct.pack("<4s4s24x3Q", b"SDMP", b"DUMP", begin, pages, pages) + b"\xff" * (pages // 8)
    header = of_type(dump, bits, 5)[: HEADER[bits]]
    return (header + summary).ljust(begin, b"\0") + bytes(pages * 0x1000)


@WIDTHS
def test_an_active_dump(bits: int, dumps: dict[int, bytes], tmp_path: Path) -> None:
    """An active dump says the same by its bitmap's header."""
    whole = active(dumps[bits], bits, 64, begin=HEADER[bits] + 0x1000)
    assert told(tmp_path / "cut.dmp", whole[:-1]).startswith(
        f"cut.dmp is an active memory dump (DumpType 5) that is truncated: it has {len(whole) - 1:,} of the"
    )
    assert "(DumpType 5) that holds no page tables of Windows where its" in told(tmp_path / "x.dmp", whole)
    assert "(DumpType 5) that holds no page tables" in told(tmp_path / "x.dmp", whole[: HEADER[bits] + 8])


@WIDTHS
@pytest.mark.parametrize("count", [0, 1000, UNSET])
def test_a_header_that_does_not_say_how_much(bits: int, count: int, dumps: dict[int, bytes], tmp_path: Path) -> None:
    """Where the descriptor of physical memory is unset, or lies, nothing is said of what is missing."""
    lying = bytearray(dumps[bits])
    struct.pack_into("<I", lying, DESCRIPTOR[bits], count)
    header = parse_crash_header(bytes(lying[:0x2000]))
    assert header is not None
    assert expected_size(header, lambda at, length: bytes(lying[at : at + length])) is None
    assert "it is damaged or truncated" in told(tmp_path / "x.dmp", bytes(lying))


@WIDTHS
def test_a_dump_that_is_audited_without_its_end(bits: int, dumps: dict[int, bytes], tmp_path: Path) -> None:
    """A dump of which only the end is missing is audited as far as it goes, and a warning says so."""
    whole = dumps[bits] + bytes(0x1000)
    # One page more behind the last, which nobody needs: so the header promises it, and the file has it or not.
    run = DESCRIPTOR[bits] + {64: 0x10, 32: 8}[bits]
    form = {64: "<2Q", 32: "<2I"}[bits]
    (runs,) = struct.unpack_from("<I", whole, DESCRIPTOR[bits])
    last = run + (runs - 1) * struct.calcsize(form)
    begin, pages = struct.unpack_from(form, whole, last)
    longer = bytearray(whole)
    struct.pack_into(form, longer, last, begin, pages + 1)
    image = tmp_path / "x.dmp"
    for content, says in ((bytes(longer), False), (bytes(longer[:-0x1000]), True)):
        image.write_bytes(content)
        done = vol(image, REPOSITORY_SYMBOLS, CACHE)
        assert done.returncode == 0, done.stdout
        note = f"the crash dump is truncated: it has {len(content):,} of the {len(longer):,} bytes"
        assert (note in done.stderr) is says
