"""Kernels recognised by addresses of their variables; symbol files read once."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
from volatility3.plugins.windows.apcaudit.dumps.kernel_match import KernelSymbolFile, SymbolCache, match_kernel

from tests.minidump_machine import GUID, RVAS, Machine


def kernel(guid: str, **symbols: int) -> KernelSymbolFile:
    return KernelSymbolFile(f"file:///{guid}.json", "ntkrnlmp.pdb", guid, 1, symbols, {})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([kernel("AA", a=1, b=2, c=3)], "AA"),
        ([kernel("AA", a=1, b=2, c=3), kernel("BB", a=1, b=2, c=4)], "AA"),
        ([kernel("AA", a=1, b=2, c=3), kernel("AA", a=1, b=2, c=3)], "AA"),
        ([kernel("AA", a=1, b=2, c=3), kernel("BB", a=1, b=2, c=3, d=9)], None),
        ([kernel("AA", a=1, b=2)], None),
        ([], None),
    ],
    ids=["fits", "one disagrees", "same PDB twice", "two PDBs fit", "too few to tell", "no files"],
)
def test_match(files: list[KernelSymbolFile], expected: str | None) -> None:
    """A kernel is taken if three or more addresses agree, none disagrees, and no other PDB fits as well."""
    found = match_kernel({"a": 1, "b": 2, "c": 3}, files).kernel
    assert (found.guid if found else None) == expected


@dataclass
class Files:
    """Symbol files by URL, and which of them were opened."""

    contents: dict[str, bytes]
    opened: list[str] = field(default_factory=list)

    def open(self, url: str) -> IO[bytes]:
        """Open a file, and remember it."""
        self.opened.append(url)
        return io.BytesIO(self.contents[url])


URLS = [f"file:///{number}.json" for number in range(5)]


def files() -> Files:
    return Files({url: json.dumps(Machine(True).isf()).encode() for url in URLS})


@pytest.mark.parametrize(
    ("stamp", "damage", "reads"),
    [
        pytest.param([1, 1], None, 1, id="unchanged"),
        pytest.param([1, 2], None, 2, id="another time"),
        pytest.param([2, 1], None, 2, id="another size"),
        pytest.param([1, 1], b"{", 2, id="no JSON"),
        pytest.param([1, 1], b"[" * 100_000, 2, id="deep JSON"),
        pytest.param([1, 1], b'{"version": 2}', 2, id="incomplete"),
        pytest.param([1, 1], b"", 2, id="empty"),
    ],
)
def test_symbol_files_are_read_once(tmp_path: Path, stamp: list[int], damage: bytes | None, reads: int) -> None:
    """A symbol file is read again only when its size or time changed, or what was kept of it is damaged."""
    made = files()
    for each in ([1, 1], stamp):
        found = SymbolCache(str(tmp_path / "kept")).symbols(URLS[0], each, made.open)
        assert found is not None
        assert (found.guid, dict(found.symbols)) == (GUID, RVAS)
        for path in (tmp_path / "kept").iterdir() if damage is not None else ():
            path.write_bytes(damage)
    assert len(made.opened) == reads


def test_a_damaged_symbol_file_is_read_once(tmp_path: Path) -> None:
    """That a file is no kernel's is kept too."""
    made = Files({URLS[0]: b"no JSON"})
    for _ in range(2):
        assert SymbolCache(str(tmp_path)).symbols(URLS[0], [1, 1], made.open) is None
    assert made.opened == [URLS[0]]


def test_a_killed_search_keeps_what_it_has_read(tmp_path: Path) -> None:
    """A search that ends in the middle of a file has kept all files before it, and leaves nothing unfinished."""
    made = files()

    class KilledError(BaseException):
        pass

    def killed(url: str) -> IO[bytes]:
        if url == URLS[3]:
            raise KilledError
        return made.open(url)

    cache = SymbolCache(str(tmp_path))
    for url in URLS[:3]:
        cache.symbols(url, [1, 1], killed)
    with pytest.raises(KilledError):
        cache.symbols(URLS[3], [1, 1], killed)
    assert made.opened == URLS[:3]
    for url in URLS:
        SymbolCache(str(tmp_path)).symbols(url, [1, 1], made.open)
    assert made.opened == URLS
    assert len(list(tmp_path.iterdir())) == len(URLS)


def test_processes_share_what_they_read(tmp_path: Path) -> None:
    """Each of several that search at once finds what the others have read, and none loses it."""
    one, two = files(), files()
    first, second = SymbolCache(str(tmp_path)), SymbolCache(str(tmp_path))
    for url in URLS[:3]:
        first.symbols(url, [1, 1], one.open)
    for url in reversed(URLS):
        second.symbols(url, [1, 1], two.open)
    for url in URLS:
        first.symbols(url, [1, 1], one.open)
    assert (one.opened, two.opened) == (URLS[:3], [URLS[4], URLS[3]])


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """Where the folder cannot be made, the search goes on without."""
    (tmp_path / "file").write_bytes(b"")
    assert SymbolCache(str(tmp_path / "file" / "kept")).symbols(URLS[0], [1, 1], files().open) is not None
