"""`apcaudit scan` with several workers on this machine: two images at a time, and how it ends before its time."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apcaudit.bulk import stack, store
from apcaudit.synthetic.kernels import load_kernel
from tests import bulk_images
from tests.bulk_images import BROKEN, apcaudit, gone, need_extra, wait_for_reader

need_extra()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own."""
    return tmp_path_factory.mktemp("cache")


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

COPIES = 2
"""Images of each of these: the second finds the process that read the first."""

EVERY = len(BROKEN) + COPIES * len(WHOLE)


def test_every_kind_of_image(tmp_path: Path, cache: Path) -> None:
    """Of images of six Windows and ones broken in ten ways the story is what was planted, told by two at a time.

    Started again, the scan reads none of them.
    """
    evidence = tmp_path / "evidence"
    bulk_images.write_broken(evidence)
    bulk_images.folder_of(tmp_path, {name: (scene, kernel) for name, (scene, kernel, *_) in WHOLE.items()}, COPIES)
    results = tmp_path / "results"
    arguments = ("scan", evidence, "-o", results, "--offline", "--workers", 2)
    running = bulk_images.start(*arguments, "--fail-on", "critical", cache=cache)
    assert bulk_images.two_at_once(running)
    _, stderr = running.communicate(timeout=240)
    assert running.returncode == 3, stderr
    assert f"{EVERY} images, {len(BROKEN)} failed" in stderr
    assert len(re.findall(rf"^/.*\[\d+/{EVERY} images", stderr, re.MULTILINE)) == EVERY
    rows = {Path(row.source.partition("::")[0]).name: row for row in store.images(results)}
    assert {name for name, row in rows.items() if row.status == "failed"} == set(BROKEN)
    found = {name: (row.severity, row.windows) for name, row in rows.items() if row.status == "scanned"}
    versions = {name: ".".join(map(str, load_kernel(kernel).version)) for name, (_, kernel, *_) in WHOLE.items()}
    assert found == {
        f"{name}{number}.dmp": (severity, versions[name])
        for name, (_, _, severity, _) in WHOLE.items()
        for number in range(COPIES)
    }
    (rare,) = [each for each in stack.stack(store.read(results), ["finding"]) if each.name == "detach-bugcheck"]
    attached = [name for name, (*_, queued) in WHOLE.items() if queued]
    assert {Path(source).name for source in rare.sources} == {
        f"{n}{number}.dmp" for n in attached for number in range(COPIES)
    }
    assert rare.of == COPIES * len(WHOLE)
    again = apcaudit(*arguments, cache=cache)
    assert again.returncode == 2, again.stderr
    assert again.stderr.count("scanned earlier") == EVERY


def write_packed(folder: Path, count: int) -> None:
    """Write so many packed images of one machine."""
    folder.mkdir()
    data = bulk_images.write(folder / "whole", "seed").read_bytes()
    (folder / "whole").unlink()
    for index in range(count):
        (folder / f"{index}.dmp.gz").write_bytes(gzip.compress(bulk_images.distinct(data, index), 1))


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
def test_interrupted(number: str, receivers: Callable[[int], list[int]], tmp_path: Path, cache: Path) -> None:
    """A signal ends the scan at once: nothing is left behind, no image has failed, the next run does all."""
    evidence, temporary = tmp_path / "evidence", tmp_path / "temporary"
    temporary.mkdir()
    write_packed(evidence, 2)
    results = tmp_path / "results"
    arguments = ("scan", evidence, "-o", results, "--offline", "--workers", 2)
    running = bulk_images.start(*arguments, cache=cache, TMPDIR=str(temporary))
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
    assert "failed" not in {row.status for row in store.images(results)}
    done = apcaudit(*arguments, cache=cache)
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


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks on Windows")
def test_killed_at_any_moment(tmp_path: Path, cache: Path) -> None:
    """Whenever a scan is killed, its results can be read and its processes end; a later run clears up."""
    evidence, temporary = tmp_path / "evidence", tmp_path / "temporary"
    temporary.mkdir()
    write_packed(evidence, 4)
    results = tmp_path / "results"
    arguments = ("scan", evidence, "-o", results, "--offline", "--workers", 2)
    for moment in (0.7, 1.3, 1.9, 2.5):
        running = bulk_images.start(*arguments, cache=cache, TMPDIR=str(temporary))
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(timeout=moment)
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
