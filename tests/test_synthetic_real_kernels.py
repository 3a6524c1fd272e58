"""Scenes on real kernels' symbol files, and on layouts without symbols: Volatility reads them with those very files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from apcaudit.synthetic import isf, ntsymbols
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import healthy
from tests.volatility import CACHE, ROOT, rows

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


def _files(pattern: str) -> list[Path]:
    return sorted(SHARED.glob(pattern)) or [Path("missing")]


def _names(path: Path) -> str:
    return path.name.partition(".json")[0]


@pytest.mark.parametrize("path", _files("symbols/windows/*/*.json.xz"), ids=_names)
def test_real_symbol_files(path: Path, shared: Path, tmp_path: Path) -> None:
    """A scene built with a real symbol file reads back by that file: its GUID, its addresses, its layouts."""
    image = build(healthy.scene(str(path)), load_kernel(path))
    dump = tmp_path / "memory.dmp"
    image.write_dump(dump)
    # Only this file in the path: the identifier cache reads every file that it meets.
    alone = tmp_path / "symbols" / "windows" / path.parent.name
    alone.mkdir(parents=True)
    (alone / path.name).symlink_to(path)
    found = rows(dump, "windows.threads.Threads", cache=CACHE, symbols=(tmp_path / "symbols",))
    assert [row["TID"] for row in found] == _EXPECTED_TIDS
    start = image.resolve("nt!ExpWorkerThread")
    assert found[1]["StartAddress"] == start & (0xFFFFFFFFFFFF if image.kernel.is_64bit else 0xFFFFFFFF)


@pytest.mark.parametrize("path", _files("symbols/windows/*/*.json.xz"), ids=_names)
def test_our_names_are_real_ones(path: Path, shared: Path) -> None:
    """Every function that our kernel of a version has, the real one of that version has too."""
    real = load_kernel(path)
    ours = ntsymbols.addresses(VERSIONS[path.name[:8]], real.layout.pointer_size)
    assert sorted(ours.keys() - real.addresses.keys()) == []


#: Four of all the layouts each run reads through Volatility, the same each time; every one of them is built.
_READ = random.Random(6).sample(_files("layouts/*.json.xz"), min(4, len(_files("layouts/*.json.xz"))))


@pytest.mark.parametrize("path", _files("layouts/*.json.xz"), ids=_names)
def test_layouts_without_symbols(path: Path, shared: Path, tmp_path: Path) -> None:
    """A types-only file gets our symbols and an invented GUID; the derived file reads its images."""
    kernel = load_kernel(path)
    image = build(healthy.scene(str(path)), kernel)
    assert kernel.pdb.guid.startswith("A9C0DEFF")
    assert image.memory.read(image.address_of[8], "_ETHREAD", "Tcb.ApcStateIndex") == 0
    if path not in _READ:
        return
    isf.write_derived(kernel, tmp_path / "symbols")
    dump = tmp_path / "memory.dmp"
    image.write_dump(dump)
    found = rows(dump, "windows.threads.Threads", cache=CACHE, symbols=(tmp_path / "symbols",))
    assert [row["TID"] for row in found] == _EXPECTED_TIDS
