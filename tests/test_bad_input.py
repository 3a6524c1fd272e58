"""What cannot be audited: one line that says what is missing and what to do, a non-zero exit, no traceback."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import healthy
from tests import volatility
from tests.conftest import ROOT

KERNEL = "10-19041-x64"


def vol(image: Path, symbols: Path, *options: str) -> subprocess.CompletedProcess[str]:
    places = ("--cache-path", volatility.CACHE, "-p", ROOT / "vol_plugins", "-s", symbols, "-f", image)
    return volatility.vol("-q", "--offline", *places, "windows.apcaudit", *options)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Build a crash dump of an ordinary machine."""
    kernel = load_kernel(KERNEL)
    return build(healthy.scene(KERNEL), kernel).dump()


CASES = {
    "empty": (b"", "is empty"),
    "noise": (bytes(range(256)) * 4096, "holds no page tables of Windows"),
    "text": (b"a report, no memory\n" * 100, "holds no page tables of Windows"),
    "gzip": (b"\x1f\x8b\x08" + bytes(4096), "compressed with gzip: unpack it first"),
    "user minidump": (b"MDMP\x93\xa7" + bytes(4096), "user-mode minidump"),
    "Linux": (b"EMiL" + bytes(4096), "LiME"),
    "kernel dump": (b"PAGEDU64" + bytes(0xF90) + (2).to_bytes(4, "little") + bytes(0x1064), "kernel memory dump"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_windows_memory(case: str, tmp_path: Path) -> None:
    """A file that holds no Windows memory is named, with what it is and what to do, in one line."""
    content, expected = CASES[case]
    image = tmp_path / "image.raw"
    image.write_bytes(content)
    run = vol(image, ROOT / "symbols")
    said = [line for line in run.stdout.splitlines() if "apcaudit" in line.lower()]
    assert run.returncode == 1
    assert "Traceback" not in run.stdout + run.stderr
    assert len(said) == 1
    assert expected in said[0]
    assert "image.raw" in said[0]


def test_truncated_dump(machine: bytes, tmp_path: Path) -> None:
    """A crash dump cut off in its page tables says that it may be truncated."""
    image = tmp_path / "cut.dmp"
    image.write_bytes(machine[:0x6000])
    run = vol(image, ROOT / "symbols")
    assert run.returncode == 1
    assert "Traceback" not in run.stdout + run.stderr
    assert "truncated" in run.stdout


@pytest.mark.parametrize("lie", ["no runs", "as many pages as there can be", "a run beyond the file", "a run twice"])
def test_a_dump_whose_header_lies(lie: str, machine: bytes, tmp_path: Path) -> None:
    """A crash dump that lies about its physical memory is one clear error, or audited with what it holds."""
    # PHYSICAL_MEMORY_DESCRIPTOR64 in DUMP_HEADER64: NumberOfRuns, NumberOfPages, then (BasePage, PageCount) a run.
    descriptor, run = 0x88, 0x98
    first = struct.unpack_from("<QQ", machine, run)
    lying = bytearray(machine)
    if lie == "no runs":
        struct.pack_into("<I", lying, descriptor, 0)
    elif lie == "a run twice":
        struct.pack_into("<IxxxxQ4Q", lying, descriptor, 2, 2 * first[1], *first, *first)
    else:
        struct.pack_into("<QQ", lying, run, *((first[0], (1 << 64) - 1) if "pages" in lie else ((1 << 50), first[1])))
    image = tmp_path / "lying.dmp"
    image.write_bytes(lying)
    run_of_vol = vol(image, ROOT / "symbols")
    assert "Traceback" not in run_of_vol.stdout + run_of_vol.stderr
    said = [line for line in run_of_vol.stdout.splitlines() if "lying.dmp" in line]
    assert (run_of_vol.returncode == 0) != (len(said) == 1)


def test_no_symbol_file(machine: bytes, tmp_path: Path) -> None:
    """A kernel without a symbol file is named by PDB name, GUID and age, with the command that makes the file."""
    image = tmp_path / "image.dmp"
    kernel = load_kernel(KERNEL)
    # Another GUID than any installed symbol file's, so that the test means the same wherever it runs.
    guid = bytes.fromhex(kernel.pdb.guid)
    planted = guid[3::-1] + guid[5:3:-1] + guid[7:5:-1] + guid[8:]
    other = "0123456789ABCDEF0123456789ABCDEF"
    raw = bytes.fromhex(other)
    assert planted in machine
    image.write_bytes(machine.replace(planted, raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]))
    run = vol(image, tmp_path)
    assert run.returncode == 1
    assert "Traceback" not in run.stdout + run.stderr
    assert f"no symbol file for this kernel, ntkrnlmp.pdb {other}-1" in run.stdout
    assert f"pdbconv -p ntkrnlmp.pdb -g {other}1 -o {other}-1.json.xz" in run.stdout


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    """A path that names nothing is an error of vol's own, with a non-zero exit."""
    run = vol(tmp_path / "missing.raw", ROOT / "symbols")
    assert run.returncode != 0
    assert "Traceback" not in run.stderr


def test_an_unknown_severity_is_refused(machine: bytes, tmp_path: Path) -> None:
    """An option's value that does not exist is refused before the image is opened."""
    image = tmp_path / "image.dmp"
    image.write_bytes(machine)
    run = vol(image, ROOT / "symbols", "--min-severity", "worst")
    assert run.returncode == 2
    assert "invalid choice" in run.stderr
