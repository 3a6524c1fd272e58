"""Vol removes a symbol file that is there and that its index misses: it never can one that our processes are given."""

from __future__ import annotations

import json
import lzma
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import volatility3.symbols
from volatility3.framework import constants, contexts, exceptions
from volatility3.framework.automagic import symbol_cache
from volatility3.framework.symbols.windows import pdbutil

from apcaudit.bulk import worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.outcome import Scanned, Settings
from apcaudit.bulk.reader_cache import INDEX, ReaderCache
from apcaudit.bulk.readers import cache_folder
from apcaudit.synthetic.build import build
from apcaudit.synthetic.intermediate import Pdb
from apcaudit.synthetic.isf import write_derived
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import SCENES
from tests.bulk_images import apcaudit, environment, indexed, need_extra, own_cache, put_index

need_extra()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[Path]:
    """A cache of each test's own."""
    with own_cache(tmp_path / "cache") as folder:
        yield folder


@dataclass(frozen=True, slots=True)
class Machine:
    """An image, the folder that alone has its kernel's symbol file, that file and its PDB."""

    image: Path
    symbols: Path
    file: Path
    pdb: Pdb

    def survives(self, before: bytes) -> bool:
        """Tell whether the file has not been touched, and nothing was put beside it."""
        return self.file.is_file() and self.file.read_bytes() == before and len(list(self.file.parent.iterdir())) == 1


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Build a machine whose kernel is none of those that ship."""
    own = load_kernel("10-19041-x64")
    kernel = replace(own, pdb=Pdb(own.pdb.name, "A9C0DEEE" + own.pdb.guid[8:], 1))
    image = tmp_path / "seldom.dmp"
    build(SCENES["healthy"](kernel="10-19041-x64"), kernel).write_dump(image)
    return Machine(image, tmp_path / "symbols", write_derived(kernel, tmp_path / "symbols"), kernel.pdb)


def wrong_index(path: Path, machine: Machine) -> None:
    """Make an index that has the file as another kernel's, so that vol neither reads it again nor finds it."""
    put_index(path.parent)
    with sqlite3.connect(path) as database:
        database.execute(
            "INSERT INTO cache (location, identifier, operating_system, hash, local, cached)"
            " VALUES (?, 'another', 'windows', '', 1, datetime('now'))",
            (machine.file.as_uri(),),
        )
    database.close()


def of_another_age(path: Path, machine: Machine) -> None:
    """Make the file say another age than its name, as vol writes it of a PDB whose own age is not its image's."""
    put_index(path.parent)
    document = json.loads(lzma.decompress(machine.file.read_bytes()))
    document["metadata"]["windows"]["pdb"]["age"] += 1
    machine.file.write_bytes(lzma.compress(json.dumps(document).encode(), preset=0))


def load(machine: Machine) -> None:
    """Ask vol for the kernel's symbol table, as it does when it has found the kernel in an image."""
    pdbutil.PDBUtility.load_windows_symbol_table(
        contexts.Context(), machine.pdb.guid, machine.pdb.age, machine.pdb.name, "", "kernel"
    )


@pytest.mark.parametrize("prepare", [wrong_index, of_another_age])
def test_vol_removes_it(
    prepare: Callable[[Path, Machine], None], machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is what the other tests are about: vol's own function, an index that misses the file, a folder of a user."""
    (tmp_path / "plain").mkdir()
    prepare(tmp_path / "plain" / INDEX, machine)
    monkeypatch.setattr(volatility3.symbols, "__path__", [str(machine.symbols)])
    monkeypatch.setattr(constants, "CACHE_PATH", str(tmp_path / "plain"))
    monkeypatch.setattr(constants, "OFFLINE", True)
    symbol_cache.SqliteCache(str(tmp_path / "plain" / INDEX)).update()  # type: ignore[abstract]
    with pytest.raises(exceptions.OfflineException):
        load(machine)
    if machine.file.exists():
        pytest.skip("this volatility3 leaves the file where it is")
    assert list(machine.symbols.rglob("*.json*")) == []


#: Does what a process that reads images does before the first, then what vol does when its index misses a file.
SERVER = """
import sys
from pathlib import Path
from apcaudit.bulk import framework
from apcaudit.bulk.reader_cache import ReaderCache
own, shared, symbols, name, guid, age = sys.argv[1:]
framework.prepare((Path(symbols),), ReaderCache(Path(own), Path(shared)), offline=True)
from volatility3.framework import contexts
from volatility3.framework.symbols.windows import pdbutil
pdbutil.PDBUtility.download_pdb_isf(contexts.Context(), guid, int(age), name)
"""


def test_our_process_leaves_it(machine: Machine, tmp_path: Path, cache: Path) -> None:
    """The same function, in a process as `apcaudit scan` sets it up, touches no folder but the process's own."""
    before = machine.file.read_bytes()
    own = tmp_path / "own"
    own.mkdir()
    arguments = [
        own,
        put_index(tmp_path / "shared"),
        machine.symbols,
        machine.pdb.name,
        machine.pdb.guid,
        machine.pdb.age,
    ]
    command = [sys.executable, "-c", SERVER, *map(str, arguments)]
    done = subprocess.run(command, env=environment(cache), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert machine.survives(before)
    # It did try: the folder that it makes for the file is there, in its own place.
    assert [each.name for each in (own / "symbols" / "windows").iterdir()] == [machine.pdb.name]


def as_it_is(path: Path, machine: Machine) -> None:
    """Leave it to vol to index the file, which the index of all the others does not have."""
    put_index(path.parent)


@pytest.mark.parametrize("prepare", [as_it_is, wrong_index, of_another_age])
def test_a_scan_uses_and_leaves_it(prepare: Callable[[Path, Machine], None], machine: Machine, tmp_path: Path) -> None:
    """Whether vol's index has it or misses it, the image that needs it is scanned, and the user's file stays."""
    settings = Settings(tmp_path / "results", (machine.symbols,), offline=True)
    prepare(cache_folder(settings.symbols) / INDEX, machine)
    before = machine.file.read_bytes()
    outcome = worker.scan(Evidence(machine.image), settings)
    assert machine.survives(before)
    assert isinstance(outcome, Scanned)


def test_no_process_leaves_its_own(machine: Machine, tmp_path: Path, cache: Path) -> None:
    """When the command has ended, the folders of its processes are gone, and the index is there for the next ones."""
    indexed(cache, machine.symbols)
    arguments = ("scan", machine.image, "-o", tmp_path / "results", "-s", machine.symbols, "--workers", 1)
    done = apcaudit(*arguments, "--offline", cache=cache)
    assert done.returncode == 0, done.stderr
    (kept,) = (cache / "apcaudit").iterdir()
    assert {each.name for each in kept.iterdir()} == {INDEX, "symbols"}
    with sqlite3.connect(kept / INDEX) as database:
        query = "SELECT count(*) FROM cache WHERE location = ?"
        assert database.execute(query, (machine.file.as_uri(),)).fetchall() == [(1,)]
    database.close()


def test_the_index_has_the_name_that_vol_gives_it() -> None:
    """What is copied is what vol looks for."""
    assert constants.IDENTIFIERS_FILENAME == INDEX


def cache_of(folder: Path, name: str) -> ReaderCache:
    """Begin a process's cache: each has a folder of its own."""
    (folder / name).mkdir(exist_ok=True)
    made = ReaderCache(folder / name, folder / "shared")
    made.begin()
    return made


def test_what_was_fetched_serves_others(tmp_path: Path) -> None:
    """A file that vol has fetched is there for every process, whole; what is left of a killed one is nobody's."""
    one, other = cache_of(tmp_path, "one"), cache_of(tmp_path, "other")
    name = Path("windows", "ntkrnlmp.pdb", "0-1.json.xz")
    fetched = one.first / name
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(b"half")
    # Killed here: the next image begins without it.
    one.clear()
    one.keep()
    assert list(other.last.rglob("*.xz")) == []
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(b"whole")
    one.keep()
    assert (other.last / name).read_bytes() == b"whole"
    assert list(other.first.iterdir()) == []


def test_what_was_indexed_serves_others(tmp_path: Path) -> None:
    """The next process begins with the index of an earlier one, and changes its own copy alone."""
    one = cache_of(tmp_path, "one")
    (one.own / INDEX).write_bytes(b"of one")
    one.keep()
    two, three = cache_of(tmp_path, "two"), cache_of(tmp_path, "three")
    (two.own / INDEX).write_bytes(b"of two")
    assert (three.own / INDEX).read_bytes() == (three.shared / INDEX).read_bytes() == b"of one"


def test_what_cannot_be_left_is_no_error(tmp_path: Path) -> None:
    """Where nothing can be left to others, a folder in the place of a file say, each process works for itself."""
    one = cache_of(tmp_path, "one")
    (one.shared / INDEX / "something").mkdir(parents=True)
    (one.own / INDEX).write_bytes(b"of one")
    one.keep()
    assert (one.own / INDEX).read_bytes() == b"of one"
