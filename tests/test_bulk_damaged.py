"""Results that a disk, a person or another release has changed: one line names the file, the other images are shown."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apcaudit.bulk import store
from apcaudit.bulk.damage import lines
from apcaudit.cli import main
from tests import bulk_images, command
from tests.bulk_images import need_extra
from tests.report_results import suspect, write

need_extra()

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def change(path: Path, made: Callable[[Any], Any]) -> None:
    """Write a table again as something else."""
    parquet.write_table(made(parquet.ParquetFile(path).read()), path)


def empty(path: Path) -> None:
    """Keep the name alone, as a full disk does."""
    path.write_bytes(b"")


def cut(path: Path) -> None:
    """Keep the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def random(path: Path) -> None:
    """Put bytes there that are no table."""
    path.write_bytes(bytes(index * index * 7919 >> 8 & 0xFF for index in range(4096)))


def spoilt(path: Path) -> None:
    """Turn bytes behind the magic round, where the first column's values begin; what describes them stays whole."""
    data = bytearray(path.read_bytes())
    data[4:68] = bytes(each ^ 0xFF for each in data[4:68])
    path.write_bytes(data)


def missing(path: Path) -> None:
    """Remove it."""
    path.unlink()


def folder(path: Path) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    """Put a FIFO in its place that nobody writes to."""
    if os.name == "nt":
        pytest.skip("FIFOs are those of POSIX")
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    """Put a link to a device that never ends in its place."""
    if not Path("/dev/zero").exists():
        pytest.skip("this system has no /dev/zero")
    path.unlink()
    path.symlink_to("/dev/zero")


def forbidden(path: Path) -> None:
    """Let nobody read it."""
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


def column(name: str, values: Any) -> Callable[[Path], None]:
    """Make what puts other values, of another type too, into a column."""

    def made(path: Path) -> None:
        change(
            path,
            lambda table: table.set_column(
                table.schema.get_field_index(name), name, arrow.array([values] * table.num_rows)
            ),
        )

    return made


def metadata(name: str, value: str) -> Callable[[Path], None]:
    """Make what puts another value into the file's metadata."""

    def made(path: Path) -> None:
        change(
            path, lambda table: table.replace_schema_metadata({**table.schema.metadata, name.encode(): value.encode()})
        )

    return made


def without(name: str) -> Callable[[Path], None]:
    """Make what removes a column."""
    return lambda path: change(path, lambda table: table.drop_columns([name]))


def twice(name: str) -> Callable[[Path], None]:
    """Make what writes a column twice."""
    return lambda path: change(path, lambda table: table.append_column(name, table[name]))


def nothing(name: str) -> Callable[[Path], None]:
    """Make what empties a column that must have values."""
    return lambda path: change(
        path,
        lambda table: table.set_column(
            table.schema.get_field_index(name),
            name,
            arrow.nulls(table.num_rows, table.schema.field(name).type),
        ),
    )


def no_text(path: Path) -> None:
    """Put bytes that are no UTF-8 where text is."""
    bad = arrow.array([b"\xff\xfe"]).cast(arrow.binary()).view(arrow.string())
    change(path, lambda table: table.set_column(table.schema.get_field_index("severity"), "severity", bad))


def plain(path: Path) -> None:
    """Write it as a tool does that keeps no metadata."""
    change(path, lambda table: table.replace_schema_metadata(None))


def doubled(path: Path) -> None:
    """Write each row twice."""
    change(path, lambda table: arrow.concat_tables([table, table]))


def another(path: Path) -> None:
    """Put another table of the image in its place."""
    shutil.copy(path.with_name("drivers.parquet"), path)


#: What is done to one file, and words that its line has.
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (empty, "it is empty"),
    "cut": (cut, "Parquet"),
    "random": (random, "Parquet"),
    "missing": (missing, "it is missing"),
    "a folder": (folder, "it is a folder"),
    "a fifo": (fifo, "it is a FIFO"),
    "a device": (endless, "it is a device"),
    "forbidden": (forbidden, "Permission denied"),
    "spoilt values": (spoilt, "damaged"),
    "a number for text": (column("severity", 3), "column severity is int64 and not string"),
    "text for a number": (column("image", None), "column image"),
    "a list for text": (column("severity", ["high"]), "column severity is list"),
    "a structure for text": (column("severity", {"is": "high"}), "column severity is struct"),
    "a column less": (without("severity"), "column severity is missing"),
    "a column twice": (twice("severity"), "column severity is there 2 times"),
    "no value": (nothing("severity"), "column severity has rows without a value"),
    "no text": (no_text, "UTF8"),
    "another image's": (column("image", "f" * 64), "its rows are another image's"),
    "no metadata": (plain, "no table of apcaudit"),
    "another table": (another, "it holds the table drivers"),
    "a schema that is none": (metadata("apcaudit.schema", "x"), "no table of apcaudit"),
}

#: Commands over results: the arguments, what they print about the image that stays, and about the one with the damage.
COMMANDS: dict[str, tuple[str, ...]] = {
    "stack": ("stack", "RESULTS"),
    "stack --jsonl": ("stack", "RESULTS", "--jsonl"),
    "export jsonl": ("export", "RESULTS"),
    "export csv": ("export", "RESULTS", "--format", "csv"),
    "export timesketch": ("export", "RESULTS", "--format", "timesketch"),
    "report": ("report", "RESULTS", "-o", "PAGE"),
}

WHOLE, HURT = suspect(1, "whole.exe", (("undelivered", "medium"),)), suspect(2, "hurt.exe", (("apc-loop", "high"),))
"""Two images whose findings have no code in common."""


def call(words: tuple[str, ...], results: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command in this process; give its exit code, what it made, and its stderr."""
    page = results.with_name("page.html")
    places = {"RESULTS": str(results), "PAGE": str(page)}
    code = main([places.get(each, each) for each in words])
    out, err = capsys.readouterr()
    return code, page.read_text(encoding="utf-8") if page.exists() else out, err


@pytest.fixture
def results(tmp_path: Path, written: Path) -> Path:
    """The results of both."""
    return shutil.copytree(written, tmp_path / "results")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write them once."""
    return write(tmp_path_factory.mktemp("written") / "results", WHOLE, HURT)


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("table", ["findings", "images"])
def test_damage_is_a_value(table: str, damage: Callable[[Path], None], words: str, results: Path) -> None:
    """Whatever became of a file, the other image is read, and what names the file says what is wrong and what to do."""
    file = results / HURT.image.image / f"{table}.parquet"
    damage(file)
    found = store.read(results)
    assert found.images == [WHOLE.image]
    (told,) = lines(found.damages)
    assert told.startswith(f"{file}: ")
    assert words in told
    assert told.endswith(": scan its image again, or remove its folder")
    assert store.find(results, HURT.image.image) is None


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("name", ["empty", "cut", "random", "missing", "a structure for text"])
def test_what_a_command_makes_of_it(
    name: str, command: tuple[str, ...], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line names the file; the other image is shown; the exit code is 2."""
    damage, words = DAMAGES[name]
    file = results / HURT.image.image / "findings.parquet"
    damage(file)
    code, made, err = call(command, results, capsys)
    assert code == 2, err
    (line,) = [line for line in err.splitlines() if str(file) in line]
    assert words in line
    assert "undelivered" in made
    assert "apc-loop" not in made


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("2", "a later apcaudit wrote it (schema 2, this one reads 1): upgrade apcaudit, or use another folder"),
        ("0", "an earlier apcaudit wrote it (schema 0, this one reads 1): scan its image again"),
    ],
)
def test_another_schema(
    version: str, words: str, command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results of another schema are left out, and the line says what to do, once for all of them."""
    results = write(tmp_path / "results", WHOLE, *(suspect(2 + each, codes=(("apc-loop", "high"),)) for each in (0, 1)))
    for path in results.glob("*/*.parquet"):
        if path.parent.name != WHOLE.image.image:
            metadata("apcaudit.schema", version)(path)
    code, made, err = call(command, results, capsys)
    assert code == 2
    (line,) = [line for line in err.splitlines() if "(schema " in line]
    assert words in line
    assert line.endswith("; so it is with 1 more")
    assert "undelivered" in made
    assert "apc-loop" not in made


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_later_release_of_the_same_schema(
    command: tuple[str, ...], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns that are added, and columns in another order, are no damage: a version's columns stay what they are."""
    for path in results.glob("*/*.parquet"):
        change(path, lambda table: table.append_column("more", arrow.array([["x"]] * table.num_rows)))
        change(path, lambda table: table.select(table.column_names[::-1]))
    code, made, err = call(command, results, capsys)
    assert (code, "damaged" in err) == (0, False)
    assert "undelivered" in made
    assert "apc-loop" in made


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_nothing_is_left(command: tuple[str, ...], results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where all results are damaged each is named, and it is an error that there are no others."""
    for path in results.glob("*/images.parquet"):
        cut(path)
    code, made, err = call(command, results, capsys)
    assert (code, made) == (1, "")
    assert len(err.splitlines()) == 3
    assert "none of its results can be read" in err.splitlines()[-1]


def test_the_report_says_so(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads the page alone learns that an image is not in it, and why."""
    cut(results / HURT.image.image / "threads.parquet")
    _, made, _ = call(COMMANDS["report"], results, capsys)
    assert f"{HURT.image.image}/threads.parquet" in made.replace("<wbr>", "")
    assert "<b>1</b> left out" in made


def test_a_table_that_is_not_asked_for(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage to a table that a command does not need costs it nothing."""
    cut(results / HURT.image.image / "drivers.parquet")
    assert call(COMMANDS["export jsonl"], results, capsys)[0] == 0
    assert call(("stack", "RESULTS", "--kind", "finding"), results, capsys)[0] == 0
    assert call(("stack", "RESULTS", "--kind", "driver"), results, capsys)[0] == 2


def test_a_damaged_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A baseline without one of its images is told, by name: what that one has counts as new."""
    results, baseline = write(tmp_path / "results", WHOLE), write(tmp_path / "baseline", suspect(7), HURT)
    file = baseline / suspect(7).image.image / "findings.parquet"
    empty(file)
    code, made, err = call(("stack", "RESULTS", "--baseline", str(baseline)), results, capsys)
    assert (code, "undelivered" in made) == (2, True)
    assert err.startswith(f"{file}: ")


@pytest.fixture(scope="module")
def cache() -> Iterator[Path]:
    """The cache that tests share."""
    with bulk_images.shared_cache() as made:
        yield made


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """An image and its results."""
    place = tmp_path_factory.mktemp("scanned")
    bulk_images.write(place / "seed.dmp", "seed")
    assert main(["scan", str(place / "seed.dmp"), "-o", str(place / "results"), "--offline", "--workers", "1"]) == 0
    return place


#: What is done to the results of an image each, and to which table.
PUT_RIGHT = [
    ("empty", "images"),
    ("random", "findings"),
    ("missing", "images"),
    ("missing", "findings"),
    ("a folder", "images"),
    ("spoilt values", "findings"),
    ("a list for text", "findings"),
]


@dataclass(frozen=True)
class Scans:
    """A scan of images whose results are damaged, and the same scan again: which files, and what they said."""

    files: list[Path]
    first: command.Done
    second: command.Done


@pytest.fixture(scope="module")
def scans(scanned: Path, tmp_path_factory: pytest.TempPathFactory) -> Scans:
    """Make an image with results for each damage, damage these, and scan the images twice."""
    place = tmp_path_factory.mktemp("scans")
    (place / "evidence").mkdir()
    (whole,) = (scanned / "results").glob("[!.]*")
    files = []
    for number, (damage, table) in enumerate(PUT_RIGHT):
        data = bulk_images.distinct((scanned / "seed.dmp").read_bytes(), number)
        (place / "evidence" / f"{number}.dmp").write_bytes(data)
        results = shutil.copytree(whole, place / "results" / hashlib.sha256(data).hexdigest())
        for path in results.iterdir():
            column("image", results.name)(path)
        files.append(results / f"{table}.parquet")
        DAMAGES[damage][0](files[-1])
    arguments = ("scan", place / "evidence", "-o", place / "results", "--offline", "--workers", 1)
    return Scans(files, *(command.run(*arguments) for _ in range(2)))


@pytest.mark.parametrize("number", range(len(PUT_RIGHT)), ids=[" of ".join(each) for each in PUT_RIGHT])
def test_a_scan_puts_it_right(number: int, scans: Scans) -> None:
    """The same scan again names the damaged file and scans its image; the next one finds it sound."""
    file, words = scans.files[number], DAMAGES[PUT_RIGHT[number][0]][1]
    assert scans.first.returncode == scans.second.returncode == 0
    (line,) = [line for line in scans.first.stderr.splitlines() if line.startswith(f"{file}: ")]
    assert words in line
    assert "scanned earlier" not in scans.first.stderr
    (line,) = [line for line in scans.second.stderr.splitlines() if f"/{number}.dmp" in line]
    assert "scanned earlier" in line
    assert str(file) not in scans.second.stderr


def test_a_scan_of_other_images(scanned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where damaged results are of an image that is not scanned they stay damaged, and the exit code says so."""
    results = shutil.copytree(scanned / "results", tmp_path / "results")
    write(results, HURT)
    file = results / HURT.image.image / "apcs.parquet"
    cut(file)
    before = file.read_bytes()
    assert main(["scan", str(scanned / "seed.dmp"), "-o", str(results), "--offline", "--workers", "1"]) == 2
    assert f"{file}: " in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_scan_into_results_of_a_later_release(
    scanned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results of a newer schema are not mixed with ours and not replaced: an error in use that says what to do."""
    results = shutil.copytree(scanned / "results", tmp_path / "results")
    for path in results.glob("*/*.parquet"):
        metadata("apcaudit.schema", "2")(path)
    before = {path: path.read_bytes() for path in results.rglob("*.parquet")}
    assert main(["scan", str(scanned / "seed.dmp"), "-o", str(results), "--offline", "--workers", "1"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "upgrade apcaudit, or use another folder" in err
    assert {path: path.read_bytes() for path in results.rglob("*.parquet")} == before


def test_results_of_an_earlier_release_are_made_again(
    scanned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results of an older schema do not count as done."""
    results = shutil.copytree(scanned / "results", tmp_path / "results")
    for path in results.glob("*/*.parquet"):
        metadata("apcaudit.schema", "0")(path)
    assert main(["scan", str(scanned / "seed.dmp"), "-o", str(results), "--offline", "--workers", "1"]) == 0
    assert "scanned earlier" not in capsys.readouterr().err
    assert main(["export", str(results)]) == 0
    assert {json.loads(line)["process"] for line in capsys.readouterr().out.splitlines()} == {"System"}


@pytest.mark.parametrize("name", ["images", "findings"])
def test_no_byte_changes_unseen(name: str, results: Path) -> None:
    """Wherever a file is cut, and whichever of its bytes is turned round, its rows are as they were, or it is told."""
    file = results / HURT.image.image / f"{name}.parquet"
    # The other image's tables would be read again for each change.
    shutil.rmtree(results / WHOLE.image.image)
    whole, before = file.read_bytes(), store.read(results, (name,)).tables[name]
    places = range(0, len(whole), len(whole) // 80)
    told = 0
    for data in (
        *(whole[:at] for at in places),
        *(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in places),
    ):
        file.write_bytes(data)
        found = store.read(results, (name,))
        assert [str(each.path) for each in found.damages] == [str(file)] or found.tables[name].equals(before)
        told += len(found.damages)
    assert told >= len(places)
