"""Crash dumps in a scan whose kernels have no symbol file: what their headers tell, and what is missing, named once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import volatility3.symbols
from volatility3.framework import constants
from volatility3.plugins.windows.apcaudit.dumps.minidump_layer import find_kernel
from volatility3.plugins.windows.apcaudit.formats.triage import parse_minidump

from apcaudit.bulk import progress, store
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.outcome import Failed, Settings
from apcaudit.bulk.records import ImageRow
from apcaudit.bulk.worker import scan
from tests import bulk_images, command
from tests.bulk_images import need_extra
from tests.minidump_builder import FILETIME_2021, write_minidump
from tests.minidump_machine import Machine
from tests.volatility import REPOSITORY_SYMBOLS

need_extra()

MACHINE = Machine(True)

#: The builder's time in seconds since 1970, which is FILETIME 116444736000000000.
TIME = (FILETIME_2021 - 116444736000000000) / 10_000_000


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own."""
    with bulk_images.own_cache(bulk_images.indexed(tmp_path_factory.mktemp("cache"))) as folder:
        yield folder


def minidump(code: int = 0x1000007E) -> bytes:
    """A minidump of a kernel of our own, of which there is no symbol file."""
    made = MACHINE.scene()
    header = {
        **made.header,
        "BugCheckCode": code,
        "BugCheckParameter1": 0xFFFFFFFFC0000005,
        "BugCheckParameter2": MACHINE.base + 0x1000010,
        "SystemUpTime": 36 * 10_000_000,
        "NumberProcessors": 4,
    }
    return write_minidump(replace(made, header=header))


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, tuple[Failed, Path]]:
    """The outcomes and results of a minidump and of a complete dump, neither of which has a symbol file."""
    folder = tmp_path_factory.mktemp("evidence")
    (folder / "mini.dmp").write_bytes(minidump())
    whole = bulk_images.write(folder / "whole.dmp", "seed").read_bytes()
    at = whole.index(b"RSDS") + 4
    (folder / "whole.dmp").write_bytes(whole[:at] + bytes(range(16)) + whole[at + 16 :])
    settings = Settings(tmp_path_factory.mktemp("results"), offline=True)
    found = {}
    for name in ("mini.dmp", "whole.dmp"):
        outcome = scan(Evidence(folder / name), settings)
        assert isinstance(outcome, Failed), name
        found[name] = (outcome, settings.results)
    return found


def row_of(scanned: dict[str, tuple[Failed, Path]], name: str) -> ImageRow:
    outcome, results = scanned[name]
    row = store.find(results, outcome.image)
    assert row is not None
    return row


def test_a_minidump_without_symbols(scanned: dict[str, tuple[Failed, Path]]) -> None:
    """Its row has failed, and yet has bugcheck, time, uptime, version, processors and bits, from the header."""
    row = row_of(scanned, "mini.dmp")
    assert (row.status, row.stage) == ("failed", "open")
    assert (row.windows, row.bits, row.processors, row.partial) == ("10.0.19041", 64, 4, True)
    assert (row.system_time, row.up_time, row.bugcheck) == (TIME, 36.0, 0x7E)
    assert row.bugcheck_parameters == f"0xffffffffc0000005 {MACHINE.base + 0x1000010:#x} 0x0 0x0"
    assert row.crash is not None
    assert row.crash.startswith("bugcheck 0x7e (SYSTEM_THREAD_EXCEPTION_NOT_HANDLED), parameters 0xffffffffc0000005")
    assert "(address of the exception: Bfilter+0x10)" in row.crash
    assert (row.severity, row.findings, row.crashing_thread) == ("info", 0, None)


def test_its_drivers(scanned: dict[str, tuple[Failed, Path]]) -> None:
    """The loaded and the unloaded drivers of the dump are rows; nothing else is."""
    outcome, results = scanned["mini.dmp"]
    database = store.connect(results)
    query = f"SELECT name, base, size, status, path FROM drivers WHERE image = '{outcome.image}' ORDER BY base"
    assert database.execute(query).fetchall() == [
        ("ntoskrnl.exe", MACHINE.base, 0x214000, "loaded", r"\WINDOWS\system32\ntoskrnl.exe"),
        ("Bfilter.sys", MACHINE.base + 0x1000000, 0x9000, "loaded", r"\SystemRoot\System32\Drivers\Bfilter.sys"),
        ("Cdaudio.SYS", MACHINE.base + 0x2000000, 0x5000, "unloaded", None),
    ]
    assert database.execute("SELECT count(*) FROM threads").fetchone() == (0,)


def test_a_complete_dump_without_symbols(scanned: dict[str, tuple[Failed, Path]]) -> None:
    """The header of a complete dump tells the same, but no drivers; the reason names its symbol file."""
    row = row_of(scanned, "whole.dmp")
    assert (row.status, row.windows, row.bits, row.bugcheck, row.partial) == ("failed", "5.1.2600", 32, 6, False)
    assert "no symbol file for this kernel, ntkrnlpa.pdb 03020100050407060809" in (row.reason or "")
    assert (row.crash or "").startswith("bugcheck 0x6 (INVALID_PROCESS_DETACH_ATTEMPT), no parameters; ")


def test_the_line_of_a_failure(scanned: dict[str, tuple[Failed, Path]]) -> None:
    """A scan's line on an image says once how its machine stopped."""
    for outcome, _ in scanned.values():
        assert progress.text_of(outcome).lower().count("the machine stopped: bugcheck ") == 1


def test_each_missing_file_once(tmp_path: Path) -> None:
    """`apcaudit symbols` has a short line an image, and names each missing file once, the most needed first."""
    for number in range(3):
        (tmp_path / f"{number}.dmp").write_bytes(minidump(code=number + 1))
    bulk_images.write(tmp_path / "there.dmp", "seed")
    other = bulk_images.write(tmp_path / "whole.dmp", "seed").read_bytes()
    at = other.index(b"RSDS") + 4
    (tmp_path / "whole.dmp").write_bytes(other[:at] + bytes(range(16)) + other[at + 16 :])
    (there,) = (REPOSITORY_SYMBOLS / "windows" / "ntkrnlpa.pdb").glob("*.json.xz")
    done = command.run("symbols", tmp_path)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert [line.partition(": ")[2] for line in lines if line.startswith(str(tmp_path))] == [
        *["the PDB of ntoskrnl.exe 4802516A214000: NO SYMBOL FILE"] * 3,
        f"ntkrnlpa.pdb {there.name.partition('.')[0]}: symbol file there",
        "ntkrnlpa.pdb 030201000504070608090A0B0C0D0E0F-1: NO SYMBOL FILE",
    ]
    start = lines.index("missing symbol files: 2")
    assert lines[start + 1 : start + 4] == [
        "  the PDB of ntoskrnl.exe 4802516A214000: 3 images",
        "  ntkrnlpa.pdb 030201000504070608090A0B0C0D0E0F-1: 1 image",
        "",
    ]
    assert done.stdout.count("https://msdl.microsoft.com/") == 1
    assert done.stdout.count("pdbconv") == 2  # one command, and the function that fetches by an image


def test_vol_knows_what_a_scan_has_learned(
    cache: Path, scanned: dict[str, tuple[Failed, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a scan has read of the symbol files lies in vol's own cache folder: vol reads none of them again."""
    monkeypatch.setattr(volatility3.symbols, "__path__", [str(REPOSITORY_SYMBOLS)])
    monkeypatch.setattr(constants, "CACHE_PATH", str(cache / "volatility3"))
    data = minidump()
    dump = parse_minidump(lambda offset, length: data[offset : offset + length], len(data))
    read: list[str] = []
    match = find_kernel(dump, lambda _, text: read.append(text))
    assert match.files_seen == len(list(REPOSITORY_SYMBOLS.rglob("*.json.xz")))
    assert read == []
    # None of the folders that a scan's processes have of their own is left with such files.
    assert not list((cache / "apcaudit").rglob("apcaudit_kernel_symbols*"))
    assert hashlib.sha256(data).hexdigest() == scanned["mini.dmp"][0].image
