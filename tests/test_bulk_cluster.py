"""`apcaudit scan --scheduler`: a Dask scheduler and workers of their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apcaudit.bulk import store
from apcaudit.synthetic.scenes import seed
from tests import bulk_images
from tests.bulk_images import apcaudit, need_extra, wait_for_reader

need_extra()
pytest.importorskip("distributed", reason="an extra is missing: pip install 'apcaudit[cluster]'")


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
    evidence = bulk_images.folder_of(tmp_path, planted)
    results = tmp_path / "results"
    with cluster(cache, tmp_path, count=1, threads=2) as (address, workers):
        running = bulk_images.start("scan", evidence, "-o", results, "--offline", "--scheduler", address, cache=cache)
        assert bulk_images.two_at_once(workers[0])
        _, stderr = running.communicate(timeout=120)
        assert running.returncode == 0, stderr
    found = {Path(row.source).name: (row.severity, row.reason) for row in store.images(results)}
    assert found == {f"{name}{number}.dmp": ("critical", None) for name in planted for number in range(4)}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are looked up in Linux's /proc")
def test_what_listens(tmp_path: Path, cache: Path) -> None:
    """Nothing listens but the scheduler and the workers themselves: not the scan, not what reads images."""
    evidence = bulk_images.folder_of(tmp_path, {"xp": ("seed", None)})
    with cluster(cache, tmp_path, count=1) as (address, (worker,)):
        arguments = ("scan", evidence, "-o", tmp_path / "results", "--offline", "--scheduler", address)
        running = bulk_images.start(*arguments, cache=cache)
        below: set[str] = set()
        seen: set[int] = set()
        while running.poll() is None:
            readers = bulk_images.descendants(worker.pid)
            seen |= set(readers)
            every = {running.pid, *bulk_images.descendants(running.pid), *readers}
            below.update(socket for each in every for socket in bulk_images.listening(each))
        _, stderr = running.communicate()
        assert bulk_images.listening(worker.pid)
    assert running.returncode == 0, stderr
    assert seen
    assert below == set()


def test_no_scheduler(tmp_path: Path, cache: Path) -> None:
    """A scheduler that does not answer is an error in use."""
    (tmp_path / "a.raw").write_bytes(b"a")
    done = apcaudit("scan", tmp_path / "a.raw", "-o", tmp_path / "r", "--scheduler", "tcp://127.0.0.1:1", cache=cache)
    assert done.returncode == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in done.stderr
