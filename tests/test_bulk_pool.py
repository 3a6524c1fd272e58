"""`apcaudit scan` with several workers on this machine: two images at a time, and how it ends before its time."""

from __future__ import annotations

import re
import signal
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


#: What is on the ninety whole images among the hundred: scene and kernel, the severity, and whether a thread has a
#: kernel APC queued while it is attached.
HUNDRED = {
    "xp": ("seed", "xp-sp3-x86", "critical", True),
    "eleven": ("situations", "11-26100-x64", "critical", True),
    "seven": ("healthy", "7-sp1-x86", "info", False),
    "eight": ("healthy", "8.1-x64", "info", False),
    "ten": ("healthy", "10-19041-x64", "info", False),
    "ten32": ("healthy", "10-19041-x86", "info", False),
}


def test_a_hundred_images(tmp_path: Path, cache: Path) -> None:
    """Of a hundred images of six Windows, ten broken in ten ways, the story is what was planted, told by two at a time.

    Started again, the scan reads none of them.
    """
    evidence = tmp_path / "evidence"
    bulk_images.write_broken(evidence)
    bulk_images.folder_of(tmp_path, {name: (scene, kernel) for name, (scene, kernel, *_) in HUNDRED.items()}, 15)
    results = tmp_path / "results"
    arguments = ("scan", evidence, "-o", results, "--offline", "--workers", 2)
    running = bulk_images.start(*arguments, "--fail-on", "critical", cache=cache)
    assert bulk_images.two_at_once(running)
    _, stderr = running.communicate(timeout=240)
    assert running.returncode == 3, stderr
    assert "100 images, 10 failed" in stderr
    assert len(re.findall(r"^/.*\[\d+/100 images", stderr, re.MULTILINE)) == 100
    rows = {Path(row.source.partition("::")[0]).name: row for row in store.images(results)}
    assert {name for name, row in rows.items() if row.status == "failed"} == set(BROKEN)
    found = {name: (row.severity, row.windows) for name, row in rows.items() if row.status == "scanned"}
    versions = {name: ".".join(map(str, load_kernel(kernel).version)) for name, (_, kernel, *_) in HUNDRED.items()}
    assert found == {
        f"{name}{number}.dmp": (severity, versions[name])
        for name, (_, _, severity, _) in HUNDRED.items()
        for number in range(15)
    }
    (rare,) = [each for each in stack.stack(results, ["finding"]) if each.name == "detach-bugcheck"]
    attached = [name for name, (*_, queued) in HUNDRED.items() if queued]
    assert {Path(source).name for source in rare.sources} == {
        f"{n}{number}.dmp" for n in attached for number in range(15)
    }
    assert rare.of == 90
    again = apcaudit(*arguments, cache=cache)
    assert again.returncode == 2, again.stderr
    assert again.stderr.count("scanned earlier") == 100


def test_interrupted(tmp_path: Path, cache: Path) -> None:
    """Ctrl-C ends the scan at once: no process is left, no image has failed, and the next run does all."""
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    raw = bulk_images.write_raw(tmp_path / "seed.raw", "seed").read_bytes()
    for number in range(3):
        (evidence / f"{number}.raw").write_bytes(bulk_images.distinct(raw, number))
    results = tmp_path / "results"
    arguments = ("scan", evidence, "-o", results, "--offline", "--workers", 2)
    running = bulk_images.start(*arguments, cache=cache)
    wait_for_reader(running.pid, after=0.2)
    below = bulk_images.descendants(running.pid)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=20)
    assert running.returncode == 1
    assert stderr.splitlines()[-1] == "apcaudit: interrupted: the same command goes on where this one was"
    assert "Traceback" not in stderr
    assert gone(below)
    assert "failed" not in {row.status for row in store.images(results)}
    done = apcaudit(*arguments, cache=cache)
    assert done.returncode == 0, done.stderr
    assert len(store.images(results)) == 3
