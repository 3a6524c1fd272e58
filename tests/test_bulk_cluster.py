"""`apcaudit scan` over several workers: Dask on this machine, and a scheduler and workers of their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apcaudit.bulk import stack, store
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import seed
from tests import bulk_images
from tests.bulk_images import BROKEN, apcaudit, gone, need_extra, wait_for_reader

need_extra()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own."""
    return tmp_path_factory.mktemp("cache")


@contextlib.contextmanager
def dask(*arguments: str, says: str, cache: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a `dask` command; yield it and what it says once it is ready."""
    command = [sys.executable, "-m", "dask", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=bulk_images.environment(cache)
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            found = re.search(says, line)
            if found:
                yield process, found[0]
                return
        raise AssertionError(f"dask {' '.join(arguments)} ended")
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def cluster(
    cache: Path, folder: Path, count: int = 2, threads: int = 1
) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """Run a scheduler and workers, two of one thread each, on the loopback interface."""
    here = ("--host", "127.0.0.1")
    with contextlib.ExitStack() as stack:
        scheduler = dask(
            "scheduler", *here, "--port", "0", "--no-dashboard", says=r"tcp://127\.0\.0\.1:\d+", cache=cache
        )
        _, address = stack.enter_context(scheduler)
        workers = []
        for number in range(count):
            local = (
                "--nthreads",
                str(threads),
                "--no-nanny",
                "--no-dashboard",
                "--local-directory",
                str(folder / str(number)),
            )
            worker = dask(
                "worker", address, *here, "--nthreads", str(threads), *local, says="Registered to", cache=cache
            )
            workers.append(stack.enter_context(worker)[0])
        yield address, workers


def test_a_cluster_loses_a_worker(tmp_path: Path, cache: Path) -> None:
    """A worker killed in the middle of an image loses nothing and doubles nothing: the other one does that image."""
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    # Raw memory takes seconds: the worker dies in the middle.
    raw = bulk_images.write_raw(tmp_path / "seed.raw", "seed").read_bytes()
    dump = bulk_images.write(tmp_path / "seed.dmp", "seed").read_bytes()
    for number in range(2):
        (evidence / f"raw{number}.raw").write_bytes(bulk_images.distinct(raw, number))
    for number in range(4):
        (evidence / f"dump{number}.dmp").write_bytes(bulk_images.distinct(dump, number))
    results = tmp_path / "results"
    with cluster(cache, tmp_path) as (address, workers):
        arguments = ("scan", f"{evidence}/raw*", f"{evidence}/dump*", "-o", results, "--offline")
        running = bulk_images.start(*arguments, "--scheduler", address, cache=cache)
        reader = wait_for_reader(workers[0].pid, after=0.3)
        os.kill(workers[0].pid, signal.SIGKILL)
        _, stderr = running.communicate(timeout=120)
        assert running.returncode == 0, stderr
        assert workers[1].poll() is None
        assert not Path(f"/proc/{reader}").exists()
    rows = store.images(results)
    assert [Path(row.source).name for row in rows] == [*(f"dump{n}.dmp" for n in range(4)), "raw0.raw", "raw1.raw"]
    assert {row.status for row in rows} == {"scanned"}
    assert {row.worker.rpartition(":")[2] for row in rows} <= {str(worker.pid) for worker in workers}
    query = "SELECT image, apc FROM apcs"
    assert sorted(store.connect(results).execute(query).fetchall()) == sorted((row.image, seed.KAPC) for row in rows)


def test_a_worker_of_several_threads(tmp_path: Path, cache: Path) -> None:
    """A worker that has two threads reads two images at once, each in a process of its own."""
    planted = {"xp": ("seed", None), "eleven": ("situations", "11-26100-x64")}
    evidence = folder_of(tmp_path, planted)
    results = tmp_path / "results"
    with cluster(cache, tmp_path, count=1, threads=2) as (address, workers):
        running = bulk_images.start("scan", evidence, "-o", results, "--offline", "--scheduler", address, cache=cache)
        assert two_at_once(workers[0])
        _, stderr = running.communicate(timeout=120)
        assert running.returncode == 0, stderr
    found = {Path(row.source).name: (row.severity, row.reason) for row in store.images(results)}
    assert found == {f"{name}{number}.dmp": ("critical", None) for name in planted for number in range(4)}


def folder_of(tmp_path: Path, planted: dict[str, tuple[str, str | None]], count: int = 4) -> Path:
    """Make so many images of each scene."""
    evidence = tmp_path / "evidence"
    evidence.mkdir(exist_ok=True)
    for name, (scene, kernel) in planted.items():
        data = bulk_images.write(tmp_path / "image.dmp", scene, kernel).read_bytes()
        for number in range(count):
            (evidence / f"{name}{number}.dmp").write_bytes(bulk_images.distinct(data, number))
    return evidence


def two_at_once(process: subprocess.Popen[str]) -> bool:
    """Tell whether two images are read at the same time below a process, while that or its scan runs."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit and process.poll() is None:
        if len(bulk_images.reading(process.pid)) == 2:
            return True
        time.sleep(0.01)
    return False


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
    folder_of(tmp_path, {name: (scene, kernel) for name, (scene, kernel, *_) in HUNDRED.items()}, 15)
    results = tmp_path / "results"
    arguments = ("scan", evidence, "-o", results, "--offline", "--workers", 2)
    running = bulk_images.start(*arguments, "--fail-on", "critical", cache=cache)
    assert two_at_once(running)
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
    (rare,) = [each for each in stack.stack(store.read(results), ["finding"]) if each.name == "detach-bugcheck"]
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


def test_no_scheduler(tmp_path: Path, cache: Path) -> None:
    """A scheduler that does not answer is an error in use."""
    (tmp_path / "a.raw").write_bytes(b"a")
    done = apcaudit("scan", tmp_path / "a.raw", "-o", tmp_path / "r", "--scheduler", "tcp://127.0.0.1:1", cache=cache)
    assert done.returncode == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in done.stderr
