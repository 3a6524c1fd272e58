"""LiME images of Windows machines: whole ones, and ones that end too early, read as far as they go."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import pytest
from volatility3.framework import contexts
from volatility3.plugins.windows.apcaudit.dumps.cut import RANGES_BOUND, parse_lime
from volatility3.plugins.windows.apcaudit.vol.diagnosis import diagnose

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import healthy
from tests.volatility import CACHE, rows

KERNEL = "10-19041-x64"

#: lime_mem_range_header: magic, version, s_addr, e_addr (the last byte's address), reserved.
HEADER = 32


def of_range(start: int, data: bytes, *, length: int | None = None, version: int = 1) -> bytes:
    """Write a range with its header, which may claim another length."""
    last = start + (len(data) if length is None else length) - 1
    return struct.pack("<4sI3Q", b"EMiL", version, start, last & (1 << 64) - 1, 0) + data


def parsed(data: bytes) -> Any:
    return parse_lime(lambda offset, length: data[offset : offset + length], len(data))


@pytest.fixture(scope="module")
def memory() -> bytes:
    """Physical memory of an ordinary machine."""
    return bytes(build(healthy.scene(KERNEL), load_kernel(KERNEL)).raw())


def lime_of(memory: bytes) -> bytes:
    """Write memory as a PC has it: a range below 640 KiB and one from 1 MiB on."""
    return of_range(0, memory[:0xA0000]) + of_range(0x100000, memory[0x100000:])


#: How an image ends too early, behind all that the machine's memory holds, and what is said of it.
CUTS = {
    "in a header": (
        lambda data: data + of_range(1 << 32, b"")[:20],
        "is cut at offset {end:#x}, in the header of its range 3",
    ),
    "behind a header": (
        lambda data: data + of_range(1 << 32, b"", length=0x5000),
        "is cut at offset {end:#x}, in its range 3 (physical 0x100000000 to 0x100004fff), lacking 20,480 of its 20,480",
    ),
    "in a range": (
        lambda data: data + of_range(1 << 32, bytes(0x1800), length=0x5000),
        "is cut at offset {end:#x}, in its range 3 (physical 0x100000000 to 0x100004fff), lacking 14,336 of its 20,480",
    ),
    "no header": (lambda data: data + b"\xff" * 100, "is damaged at offset {whole:#x}: there is no header of a range"),
    "another version": (
        lambda data: data + of_range(1 << 32, bytes(8), version=2),
        "is damaged at offset {whole:#x}: a range of version 2, where 1 is known",
    ),
    "back to the front": (
        lambda data: data + of_range(0x1000, bytes(8)),
        "is damaged at offset {whole:#x}: a range from 0x1000 to 0x1007, which does not follow the one before it",
    ),
    "backwards": (
        lambda data: data + of_range(1 << 32, bytes(8), length=0),
        "is damaged at offset {whole:#x}: a range from 0x100000000 to 0xffffffff, which does not follow",
    ),
}


@pytest.mark.parametrize("cut", CUTS)
def test_an_image_that_is_cut(cut: str, memory: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A Windows machine in a cut LiME image is audited as far as that goes, and a warning says where it ends."""
    whole = lime_of(memory)
    change, says = CUTS[cut]
    image = tmp_path / "cut.lime"
    image.write_bytes(change(whole))
    expected = _threads(tmp_path / "whole.lime", whole, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert _threads(image, change(whole), tmp_path) == expected
    assert len(expected) > 10
    notes = [each.getMessage() for each in caplog.records if "LiME" in each.getMessage()]
    assert len(notes) == 1
    assert says.format(end=len(change(whole)), whole=len(whole)) in notes[0]


def _threads(image: Path, content: bytes, folder: Path) -> set[tuple[Any, ...]]:
    image.write_bytes(content)
    found = rows(image, cache=CACHE, all=True)
    return {(row["Thread"], row["TID"], row["Process"], row["StartRoutine"], row["Findings"]) for row in found}


def test_a_whole_image_says_nothing(memory: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A whole LiME image is vol's own, without a warning."""
    with caplog.at_level(logging.WARNING):
        assert len(_threads(tmp_path / "whole.lime", lime_of(memory), tmp_path)) > 10
    assert [each.getMessage() for each in caplog.records if "LiME" in each.getMessage()] == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lime_of(bytes(0x200000)), "x.lime is a whole LiME image (2 ranges) that holds no page tables of Windows: "),
        (of_range(0, bytes(0x1000)), "x.lime is a whole LiME image (1 range) that holds no page tables of Windows: "),
        (
            lime_of(bytes(0x200000))[:-0x1000],
            (
                "x.lime is a LiME image that is cut at offset 0x19f040, in its range 2 (physical 0x100000 to 0x1fffff),"
                " lacking 4,096 of its 1,048,576 bytes, and ranges behind that are not known: acquire it again"
            ),
        ),
        (b"EMiL\1", "x.lime is a LiME image that is cut at offset 0x5, in the header of its range 1, and ranges"),
        (b"EMiL" + bytes(4096), "x.lime is a LiME image that is damaged at offset 0x0: a range of version 0"),
    ],
)
def test_an_image_without_windows(content: bytes, says: str, tmp_path: Path) -> None:
    """A LiME image in which no Windows is found is called one, with where it is cut and what it lacks."""
    path = tmp_path / "x.lime"
    path.write_bytes(content)
    context = contexts.Context()
    context.config["automagic.LayerStacker.single_location"] = path.as_uri()
    assert diagnose(context, "plugins.ApcAudit.kernel").startswith(says)


def test_ranges_are_bounded() -> None:
    """Of ranges of a byte each no more are read than the bound."""
    data = b"".join(of_range(at * 2, b"x") for at in range(RANGES_BOUND + 2))
    found = parsed(data)
    assert len(found.ranges) == RANGES_BOUND
    assert found.cut == f"is damaged at offset {RANGES_BOUND * (HEADER + 1):#x}: more than {RANGES_BOUND} ranges"
    assert parsed(data[: RANGES_BOUND * (HEADER + 1)]).cut is None
