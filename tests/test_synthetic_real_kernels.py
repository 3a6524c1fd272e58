"""Scenes on real kernels' symbol files, and on layouts without symbols: Volatility reads them with those very files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from apcaudit.synthetic import isf, ntsymbols
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import Kernel, load_kernel
from apcaudit.synthetic.scenes import healthy
from tests.volatility import CACHE, ROOT, alone, rows

SHARED = ROOT.parent / "shared"
_EXPECTED_TIDS = [8, 12, 16, 20, 24, 28, 32, 36, 804, 808, 812, 2044, 2048]

#: Versions of the files by the first digits of their GUIDs, as their layouts show.
VERSIONS = {
    "22597D0B": (6, 3, 9600),
    "32C1A669": (10, 0, 22000),
    "35A038B1": (10, 0, 18362),
    "3844DBB9": (6, 1, 7601),
    "517E128F": (10, 0, 14393),
    "5278AFF8": (10, 0, 19041),
    "879AD95F": (10, 0, 20348),
    "8B11040A": (10, 0, 17763),
    "30B5FB31": (5, 1, 2600),
    "FC47DB45": (6, 1, 7601),
}

FOUND = ("30B5FB31", "879AD95F")


def _files(pattern: str) -> list[Path]:
    return sorted(SHARED.glob(pattern)) or [Path("missing")]


def _names(path: Path) -> str:
    return path.name.partition(".json")[0]


@pytest.fixture(scope="module", params=_files("symbols/windows/*/*.json.xz"), ids=_names)
def real(request: pytest.FixtureRequest, shared: Path) -> tuple[Path, Kernel]:
    """A real symbol file and its kernel."""
    return request.param, load_kernel(request.param)


def test_real_symbol_files(real: tuple[Path, Kernel], tmp_path: Path) -> None:
    """A scene built with a real symbol file reads back by that file: its GUID, its addresses, its layouts."""
    path, kernel = real
    image = build(healthy.scene(str(path)), kernel)
    dump = tmp_path / "memory.dmp"
    image.write_dump(dump)
    # Two are found by their GUID, for which vol searches the image; that takes longer than all else.
    known = None if path.name[:8] in FOUND else kernel
    symbols = alone(path, tmp_path)
    found = rows(dump, "windows.threads.Threads", cache=CACHE, symbols=(symbols,), kernel=known)
    assert [row["TID"] for row in found] == _EXPECTED_TIDS
    start = image.resolve("nt!ExpWorkerThread")
    assert found[1]["StartAddress"] == start & (0xFFFFFFFFFFFF if image.kernel.is_64bit else 0xFFFFFFFF)


def test_our_names_are_real_ones(real: tuple[Path, Kernel]) -> None:
    """Every function that our kernel of a version has, the real one of that version has too."""
    path, kernel = real
    ours = ntsymbols.addresses(VERSIONS[path.name[:8]], kernel.layout.pointer_size)
    assert sorted(ours.keys() - kernel.addresses.keys()) == []


#: Four of all the layouts, the same each time, are read through Volatility; test_shared builds and audits every one.
_READ = random.Random(6).sample(_files("layouts/*.json.xz"), min(4, len(_files("layouts/*.json.xz"))))


@pytest.mark.parametrize("path", _READ, ids=_names)
def test_layouts_without_symbols(path: Path, shared: Path, tmp_path: Path) -> None:
    """A types-only file gets our symbols and an invented GUID; the derived file reads its images."""
    kernel = load_kernel(path)
    image = build(healthy.scene(str(path)), kernel)
    assert image.memory.read(image.address_of[8], "_ETHREAD", "Tcb.ApcStateIndex") == 0
    isf.write_derived(kernel, tmp_path / "symbols")
    dump = tmp_path / "memory.dmp"
    image.write_dump(dump)
    found = rows(dump, "windows.threads.Threads", cache=CACHE, symbols=(tmp_path / "symbols",))
    assert [row["TID"] for row in found] == _EXPECTED_TIDS
