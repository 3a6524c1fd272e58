"""Symbol files that are parsed once for many images."""

from __future__ import annotations

import codecs
import io
import json
from typing import Any

import pytest

from apcaudit.bulk.symbol_files import SymbolFiles

FOLDER = "/symbols"


class Shelf:
    """Symbol files by name, and vol's check of them, which counts how often it is asked."""

    def __init__(self, **files: dict[str, Any]) -> None:
        self.files = files
        self.checked = 0

    def open(self, url: str) -> io.BytesIO:
        """Open a file."""
        return io.BytesIO(json.dumps(self.files[url.rpartition("/")[2]]).encode())

    def valid(self, parsed: Any) -> bool:
        """Check what was parsed."""
        self.checked += 1
        return "metadata" in parsed

    def read(self, files: SymbolFiles, url: str) -> tuple[Any, bool]:
        """Read a file as vol does."""
        parsed = files.load(codecs.getreader("utf-8")(self.open(url)))
        return parsed, files.validate(parsed)


def url(name: str) -> str:
    return f"file://{FOLDER}/windows/ntkrnlmp.pdb/{name}"


def test_parsed_once() -> None:
    """From the second use on a file is neither parsed nor checked again."""
    shelf = Shelf(a={"metadata": {}, "symbols": {"PsActiveProcessHead": 1}})
    files = SymbolFiles(shelf.open, shelf.valid, [FOLDER])
    assert [files.used(url("a")) for _ in range(3)] == [False, True, False]
    assert shelf.checked == 1
    first, again = shelf.read(files, "a"), shelf.read(files, "a")
    assert first == again == (shelf.files["a"], True)
    assert first[0] is again[0]
    assert shelf.checked == 1


def test_used_once() -> None:
    """What one image needs is not kept: it is parsed and checked each time."""
    shelf = Shelf(a={"metadata": {}})
    files = SymbolFiles(shelf.open, shelf.valid, [FOLDER])
    files.used(url("a"))
    assert shelf.read(files, "a")[0] is not shelf.read(files, "a")[0]
    assert shelf.checked == 2


def test_a_changed_file_is_read_anew() -> None:
    """A file is its contents: what comes to lie at the same place later is parsed and checked."""
    shelf = Shelf(a={"metadata": {}, "symbols": {"old": 1}})
    files = SymbolFiles(shelf.open, shelf.valid, [FOLDER])
    files.used(url("a"))
    files.used(url("a"))
    shelf.files["a"] = {"symbols": {"new": 1}}
    assert shelf.read(files, "a") == ({"symbols": {"new": 1}}, False)


def test_what_is_no_symbol_file_is_not_kept() -> None:
    """A file that vol's check refuses is refused each time."""
    shelf = Shelf(a={"symbols": {}})
    files = SymbolFiles(shelf.open, shelf.valid, [FOLDER])
    assert [files.used(url("a")) for _ in range(3)] == [False, False, False]
    assert not shelf.read(files, "a")[1]


def test_few_are_kept() -> None:
    """Of many symbol files the first eight are kept: more would cost memory, and turns would cost parsing."""
    names = [f"file{number}" for number in range(10)]
    shelf = Shelf(**{name: {"metadata": {"of": name}} for name in names})
    files = SymbolFiles(shelf.open, shelf.valid, [FOLDER])
    for name in names:
        files.used(url(name))
        files.used(url(name))
    kept = [name for name in names if shelf.read(files, name)[0] is shelf.read(files, name)[0]]
    assert kept == names[:8]


@pytest.mark.parametrize(
    "place",
    ["file:///etc/a", "http://127.0.0.1/symbols/a", "file:///symbols/../etc/a", "file:///symbols.old/a", "a", ""],
)
def test_elsewhere_nothing_is_opened(place: str) -> None:
    """Only files in a folder of symbol files are opened, whatever a process that read an image says."""
    shelf = Shelf(a={"metadata": {}})
    files = SymbolFiles(shelf.open, shelf.valid, [FOLDER])
    assert [files.used(place) for _ in range(3)] == [False, False, False]
    assert shelf.checked == 0
