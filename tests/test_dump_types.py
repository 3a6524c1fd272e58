"""Every kind of crash dump (DumpType), of either width: what it is, and what to do where it cannot be read."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volatility3.framework import contexts
from volatility3.framework.layers import physical
from volatility3.plugins.windows.apcaudit.dumps.cut import expected_size
from volatility3.plugins.windows.apcaudit.dumps.kernel_dump import KernelDumpLayer, PageBitmap, page_runs
from volatility3.plugins.windows.apcaudit.formats.crash_header import parse_crash_header
from volatility3.plugins.windows.apcaudit.vol.automagic import KernelDumpStacker
from volatility3.plugins.windows.apcaudit.vol.diagnosis import diagnose

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import healthy
from tests import volatility
from tests.minidump_builder import MinidumpScene, write_minidump
from tests.minidump_of_image import audit_minidump, minidump_scene
from tests.test_bad_input import vol
from tests.volatility import REPOSITORY_SYMBOLS

KERNELS = {64: "10-19041-x64", 32: "xp-sp3-x86"}
WIDTHS = pytest.mark.parametrize("bits", KERNELS)

#: Offsets of Attributes (DUMP_FILE_ATTRIBUTES of mindumpdef.h), and its bits of live and of encrypted dumps.
ATTRIBUTES = {64: 0x1050, 32: 0x8A0}
LIVE, ENCRYPTED = 0x10, 0x100

#: Offsets of DumpType in DUMP_HEADER64 and DUMP_HEADER (Dump.h), of the physical memory descriptor, and the header's
#: size.
DUMP_TYPE = {64: 0xF98, 32: 0xF88}
DESCRIPTOR = {64: 0x88, 32: 0x64}
HEADER = {64: 0x2000, 32: 0x1000}
UNSET = int.from_bytes(b"PAGE", "little")

SET = "set the machine to write kernel, active or complete memory dumps"
RAW = f"acquire raw memory, or {SET}"

#: What is said of each DumpType, and what to do: DUMP_TYPE of wdm.h up to 7, then those of WinDbg (kdmp-parser).
KINDS = {
    0: ("a crash dump whose header does not say of which kind (DumpType 0x0)", "acquire it again"),
    3: ("the header of a dump, without memory (DumpType 3), which vol does not read", SET),
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


def with_attributes(dump: bytes, bits: int, attributes: int) -> bytes:
    """Change a dump's Attributes."""
    return dump[: ATTRIBUTES[bits]] + struct.pack("<I", attributes) + dump[ATTRIBUTES[bits] + 4 :]


def told(path: Path, content: bytes) -> str:
    """Ask what keeps a file in which vol found nothing from being audited, less what its header tells of a crash."""
    path.write_bytes(content)
    context = contexts.Context()
    context.config["automagic.LayerStacker.single_location"] = path.as_uri()
    return diagnose(context, "plugins.ApcAudit.kernel").partition(". The machine stopped: ")[0]


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
@pytest.mark.parametrize("kind", [8, 3])
def test_what_vol_prints(kind: int, bits: int, dumps: dict[int, bytes], tmp_path: Path) -> None:
    """The same in a run of vol, whatever its search for page tables finds in such a file."""
    image = tmp_path / "x.dmp"
    image.write_bytes(of_type(dumps[bits], bits, kind))
    done = vol(image, REPOSITORY_SYMBOLS)
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


def kernel_dump(dump: bytes, bits: int, kind: int) -> bytes:
    """Make a kernel memory dump of a complete one: a bitmap of its pages instead of runs."""
    at = DESCRIPTOR[bits] + {64: 0x10, 32: 8}[bits]
    (count,) = struct.unpack_from("<I", dump, DESCRIPTOR[bits])
    runs = list(struct.iter_unpack({64: "<2Q", 32: "<2I"}[bits], dump[at : at + count * {64: 16, 32: 8}[bits]]))
    pages = sum(size for _, size in runs)
    highest = max(first + size for first, size in runs)
    # Of a number of pages that no word of the bitmap ends at.
    bitmap_size = highest + 3
    bitmap = bytearray(-(-bitmap_size // 8))
    for first, size in runs:
        for page in range(first, first + size):
            bitmap[page // 8] |= 1 << page % 8
    begin = HEADER[bits] + 0x40 + len(bitmap)
    begin += -begin % 0x1000
    if kind == 2:
        # SUMMARY_DUMP32 and SUMMARY_DUMP64: DumpOptions, HeaderSize, BitmapSize, Pages, SizeOfBitMap, _reserved0.
        form = {64: "<4s4s4xIIII4xQ", 32: "<4s4s4xIIIII"}[bits]
        summary = struct.pack(form, b"SDMP", b"DUMP", begin, bitmap_size, pages, bitmap_size, 0)
    else:
        summary = struct.pack("<4s4s24x3Q", b"SDMP", b"DUMP", begin, pages, bitmap_size)
    header = of_type(dump, bits, kind)[: HEADER[bits]]
    return (header + summary + bitmap).ljust(begin, b"\0") + dump[HEADER[bits] :]


@WIDTHS
@pytest.mark.parametrize("kind", [2, 6])
def test_a_kernel_dump_is_read(kind: int, bits: int, dumps: dict[int, bytes], tmp_path: Path) -> None:
    """Kernel memory dumps, live ones among them, give the rows that the complete dump of the machine gives."""
    (tmp_path / "full.dmp").write_bytes(dumps[bits])
    (tmp_path / "kernel.dmp").write_bytes(kernel_dump(dumps[bits], bits, kind))
    names = ("full.dmp", "kernel.dmp")
    complete, kernel = (volatility.rows(tmp_path / name, cache=volatility.CACHE, all=True, scan=True) for name in names)
    assert complete
    assert kernel == complete


@WIDTHS
@pytest.mark.parametrize("kind", [2, 6])
def test_a_damaged_kernel_dump(kind: int, bits: int, dumps: dict[int, bytes], tmp_path: Path) -> None:
    """A kernel memory dump that ends early, or that has no bitmap, says so."""
    whole = kernel_dump(dumps[bits], bits, kind)
    name = {2: "a kernel memory dump (DumpType 2)", 6: "a kernel, automatic or live kernel memory dump (DumpType 6)"}
    assert told(tmp_path / "cut.dmp", whole[:-1]).startswith(
        f"cut.dmp is {name[kind]} that is truncated: it has {len(whole) - 1:,} of the {len(whole):,} bytes"
    )
    without = whole[: HEADER[bits]] + bytes(0x100) + whole[HEADER[bits] + 0x100 :]
    assert told(tmp_path / "x.dmp", without).startswith(f"x.dmp is {name[kind]} that holds no page tables of Windows")
    context = contexts.Context()
    for number, data in enumerate((without, whole[: HEADER[bits] + 0x20], dumps[bits])):
        context.add_layer(physical.BufferDataLayer(context, f"file{number}", f"file{number}", data))
        assert KernelDumpStacker.stack(context, f"file{number}") is None


@WIDTHS
@pytest.mark.parametrize("kind", [2, 6])
def test_a_bitmap_that_lies(kind: int, bits: int, dumps: dict[int, bytes], caplog: pytest.LogCaptureFixture) -> None:
    """A bitmap of another number of pages than the header says puts pages in wrong places, which is told."""
    lying = bytearray(kernel_dump(dumps[bits], bits, kind))
    start = HEADER[bits] + {2: 0x14, 6: 0x28}[kind]
    (pages,) = struct.unpack_from("<I", lying, start)
    struct.pack_into("<I", lying, start, pages - 1)
    context = contexts.Context()
    context.add_layer(physical.BufferDataLayer(context, "file", "file", bytes(lying)))
    assert isinstance(KernelDumpStacker.stack(context, "file"), KernelDumpLayer)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"the kernel memory dump contradicts itself: its bitmap has {pages:,} pages, its header says {pages - 1:,};"
    )


@WIDTHS
def test_an_encrypted_dump(bits: int, dumps: dict[int, bytes], tmp_path: Path) -> None:
    """An encrypted dump of any kind is called so: nothing behind its header can be read."""
    kernel = kernel_dump(dumps[bits], bits, 6)
    for whole in (dumps[bits], kernel):
        said = told(tmp_path / "x.dmp", with_attributes(whole, bits, ENCRYPTED))
        assert said == "x.dmp is an encrypted crash dump: decrypt it first, with the key that the machine was given"
    context = contexts.Context()
    data = with_attributes(kernel, bits, ENCRYPTED)
    context.add_layer(physical.BufferDataLayer(context, "file", "file", data))
    assert KernelDumpStacker.stack(context, "file") is None


@pytest.mark.parametrize(("attributes", "stopped"), [(LIVE, False), (0, True), (UNSET, True)])
@WIDTHS
def test_a_live_kernel_dump(bits: int, attributes: int, stopped: bool) -> None:
    """A live dump is of a running machine, whatever code its header has; one that says nothing of it is of a crash."""
    image = build(healthy.scene(KERNELS[bits]), load_kernel(KERNELS[bits]))
    tid = next(thread.tid for process in image.scene.processes for thread in process.threads)
    scene = minidump_scene(image, tid)
    header = {**scene.header, "BugCheckCode": 0x161, "Attributes": attributes}
    found = audit_minidump(write_minidump(replace(scene, header=header)), image.kernel)
    assert found.audit.facts.stopped is stopped
    note = "this is a live kernel dump, made for 0x161: the machine was not stopped by it"
    assert (note in found.audit.notes) is not stopped


@given(st.binary(min_size=1, max_size=64), st.integers(0, 7))
def test_the_runs_of_a_bitmap(data: bytes, unused: int) -> None:
    """The runs hold each page whose bit is set, and no other, in ascending order and as few as possible."""
    bits = len(data) * 8 - unused
    runs = list(page_runs(PageBitmap(0, bits, 1, 0), lambda at, length: data[at : at + length]))
    assert [page for first, count in runs for page in range(first, first + count)] == [
        page for page in range(bits) if data[page // 8] >> page % 8 & 1
    ]
    assert all(one[0] + one[1] < other[0] for one, other in itertools.pairwise(runs))


@WIDTHS
def test_a_cut_minidump(bits: int, tmp_path: Path) -> None:
    """A minidump that ends early is called cut, with its sizes; no page tables or symbols are talked of."""
    base = {64: 0xFFFFF80312000000, 32: 0x804D7000}[bits]
    whole = write_minidump(MinidumpScene(bits == 64, base, thread=b"t" * 0x100, memory={base: bytes(0x200)}))
    name = "x.dmp is a kernel minidump (DumpType 4) that is cut"
    assert told(tmp_path / "x.dmp", whole[:-1]) == (
        f"{name}: it has {len(whole) - 1:,} of at least {len(whole):,} bytes: acquire it again"
    )
    end = HEADER[bits] + 0x10
    assert (
        told(tmp_path / "x.dmp", whole[:end]) == f"{name} right behind its crash header, at {end:#x}: acquire it again"
    )
    assert "whose kernel could not be identified" in told(tmp_path / "x.dmp", whole)


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
        done = vol(image, REPOSITORY_SYMBOLS)
        assert done.returncode == 0, done.stdout
        note = f"the crash dump is truncated: it has {len(content):,} of the {len(longer):,} bytes"
        assert (note in done.stderr) is says
