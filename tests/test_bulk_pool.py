"""`apcaudit scan` with several workers on this machine: two images at a time, and how it ends before its time."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from apcaudit.bulk import stack, store
from apcaudit.bulk.records import ImageRow
from apcaudit.synthetic.kernels import load_kernel
from tests import bulk_images
from tests.bulk_images import BROKEN, apcaudit, gone, need_extra, own_cache, wait_for_reader
from tests.command import Done, run

need_extra()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own."""
    return bulk_images.indexed(tmp_path_factory.mktemp("cache"))


#: What is on the whole images: scene and kernel, the severity, and whether a thread has a kernel APC queued while it is
#: attached.
WHOLE = {
    "xp": ("seed", "xp-sp3-x86", "critical", True),
    "eleven": ("situations", "11-26100-x64", "critical", True),
    "seven": ("healthy", "7-sp1-x86", "info", False),
    "eight": ("healthy", "8.1-x64", "info", False),
    "ten": ("healthy", "10-19041-x64", "info", False),
    "ten32": ("healthy", "10-19041-x86", "info", False),
}

COPIES = {"xp": 2, "eleven": 2}
"""Images of some of these, one of the others: the second finds the process that read the first."""

IMAGES = {f"{name}{number}.dmp": name for name in WHOLE for number in range(COPIES.get(name, 1))}

EVERY = len(BROKEN) + len(IMAGES)


@dataclass(frozen=True)
class Story:
    """What a scan of images of every kind, two at a time, left and said, and the same scan again."""

    results: Path
    both: bool
    first: tuple[int, str]
    again: Done

    @property
    def rows(self) -> dict[str, ImageRow]:
        """The images' rows by the names of their files."""
        return {Path(row.source.partition("::")[0]).name: row for row in store.images(self.results)}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Story:
    """Scan images of six Windows, and ones broken in ten ways."""
    folder = tmp_path_factory.mktemp("story")
    bulk_images.write_broken(folder / "evidence")
    for name, (scene, kernel, *_) in WHOLE.items():
        bulk_images.folder_of(folder, {name: (scene, kernel)}, COPIES.get(name, 1))
    arguments = ("scan", folder / "evidence", "-o", folder / "results", "--offline", "--workers", 2)
    running = bulk_images.start(*arguments, "--fail-on", "critical", cache=cache)
    both = bulk_images.two_at_once(running)
    _, stderr = running.communicate(timeout=240)
    with own_cache(cache):
        return Story(folder / "results", both, (running.returncode, stderr), run(*arguments))


def test_every_kind_of_image(story: Story) -> None:
    """Of images of six Windows the story is what was planted, told by two at a time."""
    code, stderr = story.first
    assert story.both
    assert code == 3, stderr
    assert f"{EVERY} images, {len(BROKEN)} failed" in stderr
    assert len(re.findall(rf"^/.*\[\d+/{EVERY} images", stderr, re.MULTILINE)) == EVERY
    found = {name: (row.severity, row.windows) for name, row in story.rows.items() if row.status == "scanned"}
    assert found == {
        file: (WHOLE[name][2], ".".join(map(str, load_kernel(WHOLE[name][1]).version))) for file, name in IMAGES.items()
    }
    (rare,) = [each for each in stack.stack(store.read(story.results), ["finding"]) if each.name == "detach-bugcheck"]
    assert {Path(source).name for source in rare.sources} == {file for file, name in IMAGES.items() if WHOLE[name][3]}
    assert rare.of == len(IMAGES)


def test_broken_images_are_rows(story: Story) -> None:
    """Ten images broken in ten ways are ten rows that say why and where; the whole ones beside them are scanned."""
    rows = story.rows
    assert {name for name, row in rows.items() if row.status == "failed"} == set(BROKEN)
    for name, word in BROKEN.items():
        row = rows[name]
        assert word in (row.reason or ""), name
        assert row.stage in ("unpack", "hash", "open", "audit")
        assert row.seconds > 0


def test_started_again(story: Story) -> None:
    """Started again, the scan reads none of them; what failed is its exit code, and it prints nothing on stdout."""
    assert story.again.returncode == 2, story.again.stderr
    assert story.again.stdout == ""
    assert story.again.stderr.count("scanned earlier") == EVERY


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four packed images of one machine."""
    folder = tmp_path_factory.mktemp("packed")
    data = bulk_images.write(folder / "whole", "seed").read_bytes()
    (folder / "whole").unlink()
    for index in range(4):
        (folder / f"{index}.dmp.gz").write_bytes(gzip.compress(bulk_images.distinct(data, index), 1))
    return folder


def left_in(*places: Path) -> list[str]:
    """Name what processes of a scan have left in folders for temporary files and in a cache."""
    return [str(each) for place in places for each in place.rglob("*apcaudit-*")]


def to_itself(process: int) -> list[int]:
    return [process]


def to_all(process: int) -> list[int]:
    return [*bulk_images.descendants(process), process]


@pytest.mark.skipif(sys.platform == "win32", reason="these signals are those of POSIX")
@pytest.mark.parametrize(
    ("number", "receivers"),
    [("SIGINT", to_itself), ("SIGTERM", to_itself), ("SIGHUP", to_itself), ("SIGTERM", to_all)],
    ids=["ctrl-c", "kill", "terminal closed", "machine shuts down"],
)
def test_interrupted(
    number: str, receivers: Callable[[int], list[int]], packed: Path, tmp_path: Path, cache: Path
) -> None:
    """A signal ends the scan at once: nothing is left behind, no image has failed, the next run does all.

    That run has only these results and the images to go by, and so it is enough to see it after two of the signals.
    """
    temporary, results = tmp_path / "temporary", tmp_path / "results"
    temporary.mkdir()
    arguments = ("scan", packed / "0.dmp.gz", packed / "1.dmp.gz", "-o", results, "--offline", "--workers")
    running = bulk_images.start(*arguments, 2, cache=cache, TMPDIR=str(temporary))
    wait_for_reader(running.pid, after=0.05)
    below = bulk_images.descendants(running.pid)
    for each in receivers(running.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, getattr(signal, number))
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert stderr.splitlines()[-1] == "apcaudit: interrupted: the same command goes on where this one was"
    assert "Traceback" not in stderr
    assert gone(below)
    assert left_in(temporary, cache / "apcaudit") == []
    rows = store.images(results)
    assert "failed" not in {row.status for row in rows}
    assert {each.name for each in results.iterdir()} <= {".known", *(row.image for row in rows)}
    if number == "SIGINT" or receivers is to_all:
        with own_cache(cache):
            done = run(*arguments, 1)
        assert done.returncode == 0, done.stderr
        assert len(store.images(results)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="these signals are those of POSIX")
@pytest.mark.parametrize("command", ["symbols", "report"])
def test_other_commands_end_in_order(command: str, tmp_path: Path, cache: Path) -> None:
    """What else reads images ends as a scan does when it is asked to, and again while it ends."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    image = bulk_images.write_raw(tmp_path / "seed.raw", "seed")
    output = ("-o", tmp_path / "page.html", "--offline") if command == "report" else ()
    running = bulk_images.start(command, image, *output, cache=cache, TMPDIR=str(temporary))
    wait_for_reader(running.pid, after=0.1)
    below = bulk_images.descendants(running.pid)
    for _ in range(20):
        running.terminate()
    _, stderr = running.communicate(timeout=60)
    assert (running.returncode, stderr) == (1, "apcaudit: interrupted\n")
    assert gone(below)
    assert left_in(temporary, cache / "apcaudit") == []
    assert not (tmp_path / "page.html").exists()


def starts(process: int, _: set[str]) -> bool:
    """Tell whether the scan has begun to start the processes that read images."""
    return bool(bulk_images.descendants(process))


def reads(process: int, _: set[str]) -> bool:
    """Tell whether an image has begun to be read."""
    return bool(bulk_images.reading(process))


def reads_two(process: int, _: set[str]) -> bool:
    """Tell whether two images are read at once."""
    return len(bulk_images.reading(process)) == 2


def writes(_: int, new: set[str]) -> bool:
    """Tell whether results of an image are being written, or have been."""
    return bool(new - {".known"})


def names(folder: Path) -> set[str]:
    """Name what is in a folder that may not be there."""
    return {each.name for each in folder.glob("*")}


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks on Windows")
def test_killed_at_any_moment(packed: Path, tmp_path: Path, cache: Path) -> None:
    """Whenever a scan is killed, its results can be read and its processes end; a later run clears up."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    results = tmp_path / "results"
    arguments = ("scan", packed, "-o", results, "--offline", "--workers", 2)
    for moment in (starts, reads, reads_two, writes):
        before = names(results)
        running = bulk_images.start(*arguments, cache=cache, TMPDIR=str(temporary))
        while running.poll() is None and not moment(running.pid, names(results) - before):
            time.sleep(0.01)
        below = bulk_images.descendants(running.pid)
        running.kill()
        running.communicate()
        assert gone(below)
        assert {row.status for row in store.images(results)} <= {"scanned"}
    done = apcaudit(*arguments, cache=cache, temporary=temporary)
    assert done.returncode == 0, done.stderr
    rows = store.images(results)
    assert [Path(row.source).name for row in rows] == [f"{index}.dmp.gz" for index in range(4)]
    assert left_in(temporary, cache / "apcaudit") == []
    assert {each.name for each in results.iterdir()} == {".known", *(row.image for row in rows)}
    assert list(results.glob(".known/.*")) == []
