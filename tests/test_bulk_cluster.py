"""`apcaudit scan --scheduler`: a Dask scheduler and workers of their own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from apcaudit.bulk import store
from apcaudit.synthetic.scenes import seed
from tests import bulk_images, forked
from tests.bulk_images import apcaudit, need_extra, own_cache, wait_for_reader
from tests.command import run

need_extra()
pytest.importorskip("distributed", reason="an extra is missing: pip install '.[cluster]'")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own."""
    return bulk_images.indexed(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def unanswered(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[forked.Running]:
    """Let a command wait five seconds for a scheduler that is none, while the other tests run."""
    folder = tmp_path_factory.mktemp("unanswered")
    (folder / "a.raw").write_bytes(b"a")
    arguments = ("scan", folder / "a.raw", "-o", folder / "r", "--scheduler", "tcp://127.0.0.1:1")
    with forked.start(*arguments, cache=cache) as running:
        yield running


@contextlib.contextmanager
def dask(
    *arguments: str, says: str, cache: Path, before: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a `dask` command; yield it and what it says once it is ready. Modules of `before` are found first."""
    command = [sys.executable, "-m", "dask", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=bulk_images.environment(cache, before),
        # Not in the checkout: Python finds first what is in the working directory.
        cwd=cache,
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


HERE = ("--host", "127.0.0.1")


@contextlib.contextmanager
def scheduler(cache: Path) -> Iterator[str]:
    """Run a scheduler on the loopback interface; yield its address."""
    said = r"tcp://127\.0\.0\.1:\d+"
    with dask("scheduler", *HERE, "--port", "0", "--no-dashboard", says=said, cache=cache) as (_, address):
        yield address


@contextlib.contextmanager
def worker(
    address: str, cache: Path, folder: Path, *, threads: int = 1, before: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a worker, which finds modules of `before` first."""
    local = ("--no-nanny", "--no-dashboard", "--local-directory", str(folder / "dask"))
    arguments = ("worker", address, *HERE, "--nthreads", str(threads), *local)
    with dask(*arguments, says="Registered to", cache=cache, before=before) as (process, _):
        yield process


@dataclass(frozen=True)
class Cluster:
    """A scheduler's address, and a worker of two threads that differs in nothing."""

    address: str
    worker: subprocess.Popen[str]

    def scan(self, *images: object, results: Path) -> tuple[object, ...]:
        """Return the words of the command that scans images."""
        return ("scan", *images, "-o", results, "--offline", "--scheduler", self.address)


@pytest.fixture(scope="module")
def cluster(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster to which tests may add workers; what they have added is gone when they end."""
    folder = tmp_path_factory.mktemp("cluster")
    with scheduler(cache) as address, worker(address, cache, folder, threads=2) as process, own_cache(cache):
        yield Cluster(address, process)


def workers_of(results: Path) -> set[str]:
    """Return the process IDs of the workers that made results."""
    return {row.worker.rpartition(":")[2] for row in store.images(results)}


def test_a_cluster_loses_a_worker(tmp_path: Path, cache: Path, cluster: Cluster) -> None:
    """A worker killed in the middle of an image loses nothing and doubles nothing: the other one does that image."""
    # An image of 1,500 threads takes long enough for the worker to die in the middle of it.
    planted = {"desktop": ("desktop", None), "seed": ("seed", None)}
    evidence = bulk_images.folder_of(tmp_path, planted, 2)
    results = tmp_path / "results"
    with worker(cluster.address, cache, tmp_path) as victim, ThreadPoolExecutor(1) as executor:

        def kill() -> int:
            reader = wait_for_reader(victim.pid, after=0.1)
            victim.kill()
            return reader

        killed = executor.submit(kill)
        done = run(*cluster.scan(f"{evidence}/desktop*", f"{evidence}/seed*", results=results), seconds=240)
        reader = killed.result()
    assert done.returncode == 0, done.stderr
    assert cluster.worker.poll() is None
    assert not Path(f"/proc/{reader}").exists()
    rows = store.images(results)
    assert [Path(row.source).name for row in rows] == [f"{name}{number}.dmp" for name in planted for number in range(2)]
    assert {row.status for row in rows} == {"scanned"}
    assert workers_of(results) <= {str(victim.pid), str(cluster.worker.pid)}
    seeds = [row.image for row in rows if Path(row.source).name.startswith("seed")]
    query = "SELECT image, apc FROM apcs"
    found = store.connect(results).execute(query).fetchall()
    assert sorted(row for row in found if row[0] in seeds) == sorted((image, seed.KAPC) for image in seeds)


PLANTED = {"xp": ("seed", None), "eleven": ("situations", "11-26100-x64")}


@dataclass(frozen=True)
class Watched:
    """A scan in the cluster that was looked at until it ended."""

    results: Path
    both: bool
    readers: set[int]
    listening: set[str]


@pytest.fixture(scope="module")
def watched(cluster: Cluster, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Scan four images, and look at the scan and at what reads images for the worker."""
    folder = tmp_path_factory.mktemp("watched")
    evidence = bulk_images.folder_of(folder, PLANTED, 2)
    running = bulk_images.start(*cluster.scan(evidence, results=folder / "results"), cache=cache)
    both, below, seen = False, set(), set()
    while running.poll() is None:
        both = both or len(bulk_images.reading(cluster.worker.pid)) == 2
        readers = bulk_images.descendants(cluster.worker.pid)
        seen |= set(readers)
        every = {running.pid, *bulk_images.descendants(running.pid), *readers}
        below.update(socket for each in every for socket in bulk_images.listening(each))
        time.sleep(0.005)
    _, stderr = running.communicate()
    assert running.returncode == 0, stderr
    return Watched(folder / "results", both, seen, below)


def test_a_worker_of_several_threads(watched: Watched) -> None:
    """A worker that has two threads reads two images at once, each in a process of its own."""
    assert watched.both
    found = {Path(row.source).name: (row.severity, row.reason) for row in store.images(watched.results)}
    assert found == {f"{name}{number}.dmp": ("critical", None) for name in PLANTED for number in range(2)}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are looked up in Linux's /proc")
def test_what_listens(watched: Watched, cluster: Cluster) -> None:
    """Nothing listens but the scheduler and the workers themselves: not the scan, not what reads images."""
    assert bulk_images.listening(cluster.worker.pid)
    assert watched.readers
    assert watched.listening == set()


def another_version(folder: Path, version: str = "4.0.0") -> Path:
    """Make a folder by which Python takes capstone for another version."""
    (folder / f"capstone-{version}.dist-info").mkdir(parents=True)
    (folder / f"capstone-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: capstone\nVersion: {version}\n"
    )
    return folder


def without_it(folder: Path) -> Path:
    """Make a folder by which Python finds an apcaudit that has nothing of this one."""
    (folder / "apcaudit").mkdir(parents=True)
    (folder / "apcaudit" / "__init__.py").write_text("")
    return folder


def test_workers_that_differ(tmp_path: Path, cache: Path, cluster: Cluster) -> None:
    """A worker with another version, or that lacks ours, is named and gets no image; the others do them all.

    So it is with one that joins while images are read, and gives back what it is given, and when it is there before.
    """
    pytest.importorskip("capstone")
    evidence = bulk_images.folder_of(tmp_path, {"xp": ("seed", None)}, 3)
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(1))

        def join() -> None:
            wait_for_reader(cluster.worker.pid, after=0)
            stopped = bulk_images.descendants(cluster.worker.pid)
            for each in stopped:
                os.kill(each, signal.SIGSTOP)
            for made in (another_version(tmp_path / "one"), without_it(tmp_path / "two")):
                stack.enter_context(worker(cluster.address, cache, made, before=made))
            for each in stopped:
                os.kill(each, signal.SIGCONT)

        joined = executor.submit(join)
        runs = [run(*cluster.scan(evidence, results=tmp_path / "first"), seconds=240)]
        joined.result()
        runs.append(run(*cluster.scan(evidence, results=tmp_path / "second"), seconds=240))
    here = re.escape(importlib.metadata.version("capstone"))
    told = rf"the worker tcp://127\.0\.0\.1:\d+ .*: capstone is 4\.0\.0, on the machine of the scan {here}$"
    for done, results in zip(runs, (tmp_path / "first", tmp_path / "second"), strict=True):
        assert done.returncode == 0, done.stderr
        refused = [line for line in done.stderr.splitlines() if "is given no images" in line]
        assert len(refused) == 2
        assert len([line for line in refused if re.match(told, line)]) == 1
        other = [line for line in refused if "cannot say in what it differs" in line and "ModuleNotFoundError" in line]
        assert len(other) == 1
        assert workers_of(results) == {str(cluster.worker.pid)}
        assert [row.status for row in store.images(results)] == ["scanned"] * 3


def test_every_worker_differs(tmp_path: Path, cache: Path, cluster: Cluster) -> None:
    """Where none is left the scan does not begin: one line a worker, one that says what is needed."""
    pytest.importorskip("capstone")
    image = bulk_images.write(tmp_path / "a.dmp", "seed")
    results = tmp_path / "results"
    before = another_version(tmp_path / "one", "4.0.1")
    done = apcaudit(*cluster.scan(image, results=results), cache=cache, before=before)
    assert done.returncode == 1, done.stderr
    assert "on the machine of the scan 4.0.1" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("apcaudit: no worker is left: each needs the same versions")
    assert store.images(results) == []


def test_the_scheduler_goes_away(tmp_path: Path, cache: Path) -> None:
    """When the scheduler ends in the middle, so does the scan, in one line; nothing has failed for it."""
    raw = bulk_images.write_raw(tmp_path / "seed.raw", "seed")
    results = tmp_path / "results"
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(scheduler(cache))
        reading = stack.enter_context(worker(address, cache, tmp_path))
        running = bulk_images.start("scan", raw, "-o", results, "--offline", "--scheduler", address, cache=cache)
        wait_for_reader(reading.pid, after=0)
        stack.close()
        _, stderr = running.communicate(timeout=120)
    assert running.returncode == 1, stderr
    assert "the Dask scheduler went away: the same command goes on" in stderr.splitlines()[-1]
    assert store.images(results) == []


def test_no_scheduler(unanswered: forked.Running) -> None:
    """A scheduler that does not answer is an error in use."""
    done = unanswered.end()
    assert done.returncode == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in done.stderr
