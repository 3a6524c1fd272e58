"""Crash dumps of synthetic machines: the header says what the scene and the memory behind it say."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Bugcheck, Process, Scene, Thread
from tests.volatility import CACHE, rows


def _crashed(kernel: str) -> Image:
    thread = Thread(8, state="Running", running_on=0)
    scene = Scene(
        "crashed",
        "",
        kernel,
        (Process("System", 4, (thread,), parent=0),),
        bugcheck=Bugcheck(0x20, (0x1111, 2, "nt!KeBugCheck", 0)),
        crashing_thread=8,
        crash_irql=1,
    )
    return build(scene, load_kernel(kernel))


#: (kernel, signature, PAE byte, offsets of code, parameters and type, pointer format, offset of the runs, pages)
HEADERS = [
    ("xp-sp3-x86", b"PAGEDUMP", 1, (0x28, 0x2C, 0xF88), "I", 0x64, 1),
    ("10-19041-x86", b"PAGEDUMP", 1, (0x28, 0x2C, 0xF88), "I", 0x64, 1),
    ("10-19041-x64", b"PAGEDU64", None, (0x38, 0x40, 0xF98), "Q", 0x88, 2),
]


@pytest.mark.parametrize(("kernel", "signature", "pae", "offsets", "form", "runs_at", "pages"), HEADERS)
def test_header(
    kernel: str, signature: bytes, pae: int | None, offsets: tuple[int, int, int], form: str, runs_at: int, pages: int
) -> None:
    """Signature, PaeEnabled, bugcheck, dump type 1, and runs that add up to the file's size."""
    image = _crashed(kernel)
    data = image.dump()
    assert data[:8] == signature
    if pae is not None:
        assert data[0x5C] == pae
    code, parameters, dump_type = offsets
    mask = (1 << (64 if form == "Q" else 32)) - 1
    assert struct.unpack_from("<I", data, code) == (0x20,)
    assert struct.unpack_from(f"<4{form}", data, parameters) == (
        0x1111,
        2,
        image.kernel.address("KeBugCheck") & mask,
        0,
    )
    assert struct.unpack_from("<I", data, dump_type) == (1,)
    count_form = "<I4xQ" if form == "Q" else "<II"
    run_count, page_count = struct.unpack_from(count_form, data, runs_at)
    start = runs_at + struct.calcsize(count_form)
    runs = struct.unpack_from(f"<{2 * run_count}{form}", data, start)
    assert sum(runs[1::2]) == page_count
    assert len(data) == (pages + page_count) * 0x1000


@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])
def test_dump_and_raw_hold_the_same_memory(kernel: str) -> None:
    """Each run of the dump is a piece of the raw image."""
    image = _crashed(kernel)
    data, raw = image.dump(), image.raw()
    wide = image.kernel.is_64bit
    at, form, offset = (0x98, "<QQ", 0x2000) if wide else (0x6C, "<II", 0x1000)
    (count,) = struct.unpack_from("<I", data, 0x88 if wide else 0x64)
    for number in range(count):
        first, pages = struct.unpack_from(form, data, at + number * struct.calcsize(form))
        size = pages * 0x1000
        assert data[offset : offset + size] == raw[first * 0x1000 : first * 0x1000 + size]
        offset += size


@pytest.mark.parametrize(("kernel", "kind"), [("xp-sp3-x86", "332"), ("11-26100-x64", "34404")])
def test_volatility_reads_the_header(kernel: str, kind: str, tmp_path: Path) -> None:
    """windows.crashinfo gives the full dump's fields."""
    path = tmp_path / "memory.dmp"
    _crashed(kernel).write_dump(path)
    (row,) = rows(path, "windows.crashinfo.Crashinfo", cache=CACHE)
    assert row["DumpType"] == "Full Dump (0x1)"
    assert str(row["MachineImageType"]) == kind
    assert row["SystemTime"].isoformat() == "2026-01-02T03:04:05+00:00"


@pytest.mark.parametrize("kernel", ["7-sp1-x86", "7-sp1-x64", "11-26100-x64"])
def test_crash_irql_is_saved(kernel: str) -> None:
    """The IRQL at the crash is kept where Windows keeps it, in the crashing processor's KPRCB."""
    image = _crashed(kernel)
    assert image.memory.read(image.address_of["kprcb:0"], "_KPRCB", "DebuggerSavedIRQL") == 1


@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])
def test_same_scene_same_bytes(kernel: str) -> None:
    """Building twice gives the same file, byte for byte."""
    first, second = _crashed(kernel), _crashed(kernel)
    assert first.dump() == second.dump()
    assert first.raw() == second.raw()
