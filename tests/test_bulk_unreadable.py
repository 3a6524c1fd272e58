"""Evidence that the system will not read, and folders that fail: a row or one clear line, never the end of the scan."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from apcaudit.bulk import pool, store
from apcaudit.bulk.evidence import Evidence, find
from apcaudit.bulk.outcome import Failed, Outcome, Scanned, Settings
from apcaudit.bulk.records import ImageRow
from apcaudit.cli import main
from tests import bulk_images
from tests.bulk_images import need_extra
from tests.command import Done, run

need_extra()

pytestmark = pytest.mark.skipif(os.name == "nt", reason="FIFOs and such links are those of POSIX")

#: Seconds within which a command has to end that has nothing to wait for.
SOON = 60


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[None]:
    """The cache that tests share."""
    with bulk_images.shared_cache():
        yield


def fifo(path: Path) -> Path:
    """Make a FIFO that nobody writes to."""
    os.mkfifo(path)
    return path


def endless(path: Path) -> Path:
    """Make a link to a device that never ends."""
    path.symlink_to("/dev/zero")
    return path


def input_output_error(path: Path) -> Path:
    """Make a link to a file that opens, and cannot be read: nothing is mapped at address 0 of a process."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("this system has no /proc/self/mem")
    path.symlink_to("/proc/self/mem")
    return path


def no_status(path: Path) -> Path:
    """Make a folder with a link of which the system does not even tell what it leads to (ENAMETOOLONG)."""
    path.mkdir()
    (path / "a.raw").symlink_to("x" * 300)
    return path


def forbidden(path: Path) -> Path:
    """Make a file that its user may not read."""
    path.write_bytes(b"memory")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    return path


def hidden_behind(path: Path) -> Path:
    """Make a file in a folder that lists its names and no more."""
    path.mkdir()
    (path / "a.raw").write_bytes(b"memory")
    path.chmod(0o400)
    if os.access(path / "a.raw", os.R_OK):
        pytest.skip("this user may read everything")
    return path


def closed(path: Path) -> Path:
    """Make a folder that cannot be listed."""
    path.mkdir()
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    return path


UNREADABLE = {
    "fifo": (fifo, "is a FIFO"),
    "device": (endless, "is a device"),
    "input-output-error": (input_output_error, "Input/output error"),
    "no-status": (no_status, "File name too long"),
    "forbidden": (forbidden, "Permission denied"),
    "hidden-behind": (hidden_behind, "Permission denied"),
    "closed": (closed, "Permission denied"),
}


@dataclass(frozen=True)
class Told:
    """What commands say of evidence that cannot be read, each asked once for all kinds of it."""

    paths: dict[str, Path]
    whole: Path
    scan: Done
    rows: list[ImageRow]
    symbols: Done


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Put all kinds before an image, and let `scan` and `symbols` read them, one at a time."""
    folder = tmp_path_factory.mktemp("told")
    paths = {}
    for name, (make, _) in UNREADABLE.items():
        # What this user reads all the same, or what this system does not have, is left out; its own test is skipped.
        with contextlib.suppress(pytest.skip.Exception):
            paths[name] = make(folder / f"{name}.raw")
    every = [paths[name] for name in UNREADABLE if name in paths]
    whole = bulk_images.write(folder / "whole.dmp", "healthy")
    results = folder / "results"
    limits = ("--timeout", SOON)
    scan = run("scan", *every, whole, "-o", results, "--offline", "--workers", 1, *limits, seconds=4 * SOON)
    symbols = run("symbols", *every, *limits, seconds=SOON)
    return Told(paths, whole, scan, store.images(results), symbols)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """An image whose name is no UTF-8 is an image as others are, for every command that reads it."""
    folder = tmp_path / "evidence"
    folder.mkdir()
    whole = bulk_images.write(tmp_path / "whole.dmp", "seed")
    odd = os.fsdecode(bytes(folder) + b"/b\xfcro")
    try:
        shutil.copy(whole, odd + ".dmp")
    except OSError:
        pytest.skip("this file system takes no such name")
    Path(odd + ".raw").write_bytes(b"no memory")
    done = run("scan", folder, "-o", tmp_path / "results", "--offline", "--workers", 1, seconds=SOON)
    assert done.returncode == 2, done.stderr
    rows = {row.source: row for row in store.images(tmp_path / "results")}
    assert {source: row.severity for source, row in rows.items()} == {
        f"{folder}/b%FCro.dmp": "critical",
        f"{folder}/b%FCro.raw": "info",
    }
    assert "no page tables" in (rows[f"{folder}/b%FCro.raw"].reason or "")
    symbols = run("symbols", folder, seconds=SOON)
    assert f"{folder}/b%FCro.dmp: ntkrnlpa.pdb" in symbols.stdout
    page = run("report", odd + ".dmp", "-o", tmp_path / "page.html", "--offline", seconds=SOON)
    assert page.returncode == 0, page.stderr


EACH = pytest.mark.parametrize("name", UNREADABLE)


@EACH
def test_a_row_among_others(name: str, told: Told) -> None:
    """What cannot be read is a failed image's row that says why."""
    path = made(name, told)
    (row,) = [each for each in told.rows if each.source.startswith(str(path))]
    assert row.status == "failed"
    assert UNREADABLE[name][1] in (row.reason or "")
    assert row.seconds < SOON / 2


def test_the_image_among_them(told: Told) -> None:
    """The image behind all of these is scanned."""
    assert told.scan.returncode == 2, told.scan.stderr
    assert "Traceback" not in told.scan.stderr
    (row,) = [each for each in told.rows if each.source == str(told.whole)]
    assert row.status == "scanned"
    assert len(told.rows) == len(told.paths) + 1


@EACH
def test_symbols_says_why(name: str, told: Told) -> None:
    """`apcaudit symbols` says it in the image's line."""
    path = made(name, told)
    (line,) = [each for each in told.symbols.stdout.splitlines() if each.startswith(str(path))]
    assert UNREADABLE[name][1] in line
    assert told.symbols.returncode == 2, told.symbols.stderr
    assert "Traceback" not in told.symbols.stderr


def made(name: str, told: Told) -> Path:
    """Return what could be made."""
    if name not in told.paths:
        pytest.skip("this user may read everything, or this system has no such file")
    return told.paths[name]


@pytest.mark.parametrize("name", ["fifo", "input-output-error"])
def test_a_report_of_it(name: str, tmp_path: Path) -> None:
    """`apcaudit report` of such an image is a page that says why."""
    make, reason = UNREADABLE[name]
    page = tmp_path / "page.html"
    done = run("report", make(tmp_path / "odd.raw"), "-o", page, "--offline", seconds=SOON)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert reason in page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadPoolExecutor]:
    """One image at a time, as a scan with one worker has them."""
    with pool.opened(Settings(tmp_path_factory.mktemp("results"), offline=True), 1) as made:
        yield made


def scan(executor: ThreadPoolExecutor, settings: Settings, *evidence: Evidence) -> list[Outcome]:
    """Scan images."""
    return sorted(pool.run(executor, evidence, settings, lambda *_: None), key=lambda outcome: outcome.source)


def test_a_folder_to_unpack_in_that_is_gone(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    """Where the scratch folder has gone each image is a row."""
    images = [bulk_images.write(tmp_path / f"{scene}.dmp", scene) for scene in ("healthy", "seed")]
    settings = Settings(tmp_path / "results", offline=True, scratch=tmp_path / "gone")
    outcomes = scan(executor, settings, *find([str(each) for each in images]))
    assert [type(each) for each in outcomes] == [Failed, Failed]
    assert all("No such file or directory" in (row.reason or "") for row in store.images(settings.results))
    assert [Path(row.source).name for row in store.images(settings.results)] == ["healthy.dmp", "seed.dmp"]


def test_results_that_cannot_be_written(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    """Where an image's results cannot take their place it is a row, and the next one is scanned."""
    images = [bulk_images.write(tmp_path / f"{scene}.dmp", scene) for scene in ("healthy", "seed")]
    settings = Settings(tmp_path / "results", offline=True)
    settings.results.mkdir()
    (settings.results / hashlib.sha256(images[0].read_bytes()).hexdigest()).write_text("a file of somebody else's")
    first, second = scan(executor, settings, *find([str(each) for each in images]))
    assert isinstance(first, Failed)
    assert isinstance(second, Scanned)
    assert {Path(row.source).name: row.status for row in store.images(settings.results)} == {
        "healthy.dmp": "failed",
        "seed.dmp": "scanned",
    }


def test_a_folder_in_the_place_of_an_image(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    """A folder where a file was found is a row."""
    (tmp_path / "a.raw").mkdir()
    settings = Settings(tmp_path / "results", offline=True)
    (outcome,) = scan(executor, settings, Evidence(tmp_path / "a.raw"))
    assert isinstance(outcome, Failed)
    assert "is a folder" in outcome.reason


def test_show_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`apcaudit show` of what is no file is one line."""
    assert main(["show", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{tmp_path} is a folder" in message
