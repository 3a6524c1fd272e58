"""Results on a full disk: nothing that was there is lost, nothing counts as done that is not, and one line says it."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from apcaudit.bulk import store
from tests import bulk_images
from tests.bulk_images import need_extra, own_cache
from tests.command import run
from tests.full_disk import LimitedFiles, Place, SmallDisk, small_disk
from tests.report_results import suspect, write

need_extra()

pytestmark = pytest.mark.skipif(os.name == "nt", reason="these limits are those of POSIX")

BEFORE = "what was there"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own."""
    return bulk_images.indexed(tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=["files limited", "a small disk"])
def place(request: pytest.FixtureRequest, tmp_path: Path, cache: Path) -> Iterator[Place]:
    """A folder that will be full: for any file of more than a page, or for more than a page of files."""
    (tmp_path / "place").mkdir()
    if request.param == "files limited":
        yield LimitedFiles(tmp_path / "place", cache)
        return
    with small_disk(tmp_path / "place", cache, free=4096) as disk:
        yield disk


@pytest.fixture
def disk(tmp_path: Path, cache: Path) -> Iterator[SmallDisk]:
    """A small disk."""
    (tmp_path / "place").mkdir()
    with small_disk(tmp_path / "place", cache) as made:
        yield made


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images."""
    folder = tmp_path_factory.mktemp("images")
    data = bulk_images.write(folder / "0.dmp", "healthy").read_bytes()
    (folder / "1.dmp").write_bytes(bulk_images.distinct(data, 1))
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of an image whose page and whose findings take more than a page of memory."""
    folder = tmp_path_factory.mktemp("results")
    write(folder, *[suspect(number) for number in range(1, 30)])
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a folder."""
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*.parquet")}


@pytest.fixture(scope="module")
def earlier(images: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the first image."""
    results = tmp_path_factory.mktemp("earlier") / "results"
    with own_cache(cache):
        assert run("scan", images / "0.dmp", "-o", results, "--offline").returncode == 0
    return results


def test_results_of_a_scan(place: Place, images: Path, earlier: Path) -> None:
    """Earlier results stay byte for byte, and an image whose results had no room is read by the next scan.

    The scan that has no room asks for more than the earlier one, so that it would replace what that has left.
    """
    output = place.path / "results"
    arguments = ("scan", images, "-o", output, "--offline", "--workers")
    shutil.copytree(earlier, place.seen / "results")
    before = content(place.seen / "results")
    place.fill()
    done = place.run(*arguments, 2, "--scan")
    advice = "free some, and the same command goes on where this one was; nothing is lost"
    last = f"apcaudit: no room left in {output} ({place.reason}): {advice}"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, last)
    assert done.stderr.count("no room") == 1
    assert "Traceback" not in done.stderr
    assert content(place.seen / "results") == before
    (row,) = store.images(place.seen / "results")
    assert Path(row.source).name == "0.dmp"
    assert place.names("results") == {".known", row.image}
    assert not [name for name in place.names("results/.known") if name.startswith(".")]
    place.clear()
    again = place.run(*arguments, 1)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("scanned earlier") == 1
    assert [Path(row.source).name for row in store.images(place.seen / "results")] == ["0.dmp", "1.dmp"]


def test_no_room_for_the_folder_of_results(disk: SmallDisk, images: Path) -> None:
    """Where not even the folder of results can be made, one line says it."""
    disk.fill()
    output = disk.path / "results"
    done = disk.run("scan", images, "-o", output, "--offline")
    line = f"apcaudit: no room left in {output} ({disk.reason}): free some, or name another folder with -o\n"
    assert (done.returncode, done.stderr) == (1, line)
    assert disk.names() == set()


@pytest.mark.parametrize("command", ["export RESULTS -o OUT", "report RESULTS -o OUT"])
def test_what_is_made_of_results(command: str, place: Place, results: Path) -> None:
    """What was in the place of an export or a report stays, and one line names the file."""
    make(place, *command.split(), named={"RESULTS": results})


def test_report_of_an_image(disk: SmallDisk, images: Path) -> None:
    """The same holds of the report of an image, which is read first."""
    make(disk, "report", "IMAGE", "-o", "OUT", "--offline", named={"IMAGE": images / "0.dmp"})


def make(place: Place, *words: str, named: dict[str, Path]) -> None:
    """Make a file where there is no room, and look at what is there then."""
    out = place.path / "out"
    (place.seen / "out").write_text(BEFORE)
    place.fill()
    done = place.run(*[(named | {"OUT": out}).get(word, word) for word in words])
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (1, 1, "")
    assert done.stderr.startswith(f"apcaudit: {out}: ")
    assert place.reason in done.stderr
    assert (place.seen / "out").read_text() == BEFORE
    assert place.names() == {"out"}


@pytest.fixture
def packed(tmp_path: Path, images: Path) -> Path:
    """A packed image, larger than what the places have room for."""
    path = tmp_path / "0.dmp.gz"
    path.write_bytes(gzip.compress((images / "0.dmp").read_bytes()))
    return path


def test_scratch_too_small(disk: SmallDisk, packed: Path, tmp_path: Path) -> None:
    """An image that finds no room to be unpacked has failed, says which folder is full, and is read when there is."""
    arguments = ("scan", packed, "-o", tmp_path / "results", "--offline", "--scratch", disk.path)
    assert reason(disk.run(*arguments), tmp_path / "results").startswith(f"no room to unpack it in {disk.path}/")
    assert disk.names() == set()
    # A gigabyte is left free where images are unpacked.
    disk.grow("2g")
    again = disk.run(*arguments)
    assert again.returncode == 0, again.stderr
    (row,) = store.images(tmp_path / "results")
    assert row.status == "scanned"


def test_scratch_full(disk: SmallDisk, packed: Path, tmp_path: Path) -> None:
    """Where not even the folder to unpack in can be made, it is said in the same way."""
    disk.fill()
    done = disk.run("scan", packed, "-o", tmp_path / "results", "--offline", "--scratch", disk.path)
    assert reason(done, tmp_path / "results").startswith(f"no room left in {disk.path} ({disk.reason})")
    assert disk.names() == set()


def test_scratch_with_a_limit_of_files(tmp_path: Path, cache: Path, packed: Path) -> None:
    """So it is with a limit of file sizes, that results keep and the image does not."""
    (tmp_path / "place").mkdir()
    place = LimitedFiles(tmp_path / "place", cache, kilobytes=200)
    place.fill()
    done = place.run("scan", packed, "-o", tmp_path / "results", "--offline", "--scratch", place.path)
    said = reason(done, tmp_path / "results")
    assert said.startswith(f"no room left in {place.path}/")
    assert place.reason in said
    assert place.names() == set()


def reason(done: subprocess.CompletedProcess[str], results: Path) -> str:
    """Return why the one image of a scan failed, which the machine is to blame for."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (row,) = store.images(results)
    assert (row.status, row.settings) == ("failed", "")
    assert row.reason is not None
    assert row.reason.endswith(": give another folder with --scratch")
    return row.reason


CACHE_ADVICE = "free some, or name another folder for caches with XDG_CACHE_HOME"


def test_cache_too_small(tmp_path: Path, images: Path) -> None:
    """A cache that vol's index does not fit into is each image's reason, and the next scan reads them."""
    (tmp_path / "place").mkdir()
    with small_disk(tmp_path / "place", tmp_path / "place", free=8192) as disk:
        disk.fill()
        arguments = ("scan", images / "0.dmp", "-o", tmp_path / "results", "--offline")
        done = disk.run(*arguments)
        assert done.returncode == 2, done.stderr
        assert f"no room left in {disk.path}/apcaudit/" in done.stderr
        assert f"(database or disk is full): {CACHE_ADVICE}" in done.stderr
        assert "Traceback" not in done.stderr
        disk.clear()
        again = disk.run(*arguments)
        assert again.returncode == 0, again.stderr


def test_cache_full(tmp_path: Path, images: Path) -> None:
    """Where no folder can be made in the cache no image can be read, which one line says."""
    (tmp_path / "place").mkdir()
    with small_disk(tmp_path / "place", tmp_path / "place") as disk:
        disk.fill()
        done = disk.run("scan", images, "-o", tmp_path / "results", "--offline")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"apcaudit: no room left in {disk.path}/apcaudit/")
        assert done.stderr.endswith(f"({disk.reason}): {CACHE_ADVICE}\n")
