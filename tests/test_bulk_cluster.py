"""`apcaudit scan --scheduler`: a Dask scheduler and workers of their own."""

from __future__ import annotations

import contextlib
import importlib.metadata
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
pytest.importorskip("distributed", reason="an extra is missing: pip install '.[cluster]'")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own."""
    return bulk_images.indexed(tmp_path_factory.mktemp("cache"))


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


@contextlib.contextmanager
def cluster(
    cache: Path, folder: Path, *befores: Path | None, threads: int = 1
) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """Run a scheduler and workers on the loopback interface, one for each folder of modules that it finds first."""
    here = ("--host", "127.0.0.1")
    with contextlib.ExitStack() as stack:
        scheduler = dask(
            "scheduler", *here, "--port", "0", "--no-dashboard", says=r"tcp://127\.0\.0\.1:\d+", cache=cache
        )
        _, address = stack.enter_context(scheduler)
        workers = []
        for number, before in enumerate(befores):
            local = ("--no-nanny", "--no-dashboard", "--local-directory", str(folder / f"dask{number}"))
            worker = dask(
                *("worker", address, *here, "--nthreads", str(threads), "--name", f"worker{number}", *local),
                says="Registered to",
                cache=cache,
                before=before,
            )
            workers.append(stack.enter_context(worker)[0])
        yield address, workers


def test_a_cluster_loses_a_worker(tmp_path: Path, cache: Path) -> None:
    """A worker killed in the middle of an image loses nothing and doubles nothing: the other one does that image."""
    # An image of 1,500 threads takes long enough for the worker to die in the middle of it.
    planted = {"desktop": ("desktop", None), "seed": ("seed", None)}
    evidence = bulk_images.folder_of(tmp_path, planted, 2)
    results = tmp_path / "results"
    with cluster(cache, tmp_path, None, None) as (address, workers):
        arguments = ("scan", f"{evidence}/desktop*", f"{evidence}/seed*", "-o", results, "--offline")
        running = bulk_images.start(*arguments, "--scheduler", address, cache=cache)
        reader = wait_for_reader(workers[0].pid, after=0.3)
        os.kill(workers[0].pid, signal.SIGKILL)
        _, stderr = running.communicate(timeout=120)
        assert running.returncode == 0, stderr
        assert workers[1].poll() is None
        assert not Path(f"/proc/{reader}").exists()
    rows = store.images(results)
    assert [Path(row.source).name for row in rows] == [f"{name}{number}.dmp" for name in planted for number in range(2)]
    assert {row.status for row in rows} == {"scanned"}
    assert {row.worker.rpartition(":")[2] for row in rows} <= {str(worker.pid) for worker in workers}
    seeds = [row.image for row in rows if Path(row.source).name.startswith("seed")]
    query = "SELECT image, apc FROM apcs"
    found = store.connect(results).execute(query).fetchall()
    assert sorted(row for row in found if row[0] in seeds) == sorted((image, seed.KAPC) for image in seeds)


def test_a_worker_of_several_threads(tmp_path: Path, cache: Path) -> None:
    """A worker that has two threads reads two images at once, each in a process of its own."""
    planted = {"xp": ("seed", None), "eleven": ("situations", "11-26100-x64")}
    evidence = bulk_images.folder_of(tmp_path, planted, 2)
    results = tmp_path / "results"
    with cluster(cache, tmp_path, None, threads=2) as (address, workers):
        running = bulk_images.start("scan", evidence, "-o", results, "--offline", "--scheduler", address, cache=cache)
        assert bulk_images.two_at_once(workers[0])
        _, stderr = running.communicate(timeout=120)
        assert running.returncode == 0, stderr
    found = {Path(row.source).name: (row.severity, row.reason) for row in store.images(results)}
    assert found == {f"{name}{number}.dmp": ("critical", None) for name in planted for number in range(2)}


def another_version(folder: Path) -> Path:
    """Make a folder by which Python takes capstone for version 4.0.0."""
    (folder / "capstone-4.0.0.dist-info").mkdir(parents=True)
    (folder / "capstone-4.0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: capstone\nVersion: 4.0.0\n"
    )
    return folder


def without_it(folder: Path) -> Path:
    """Make a folder by which Python finds an apcaudit that has nothing of this one."""
    (folder / "apcaudit").mkdir(parents=True)
    (folder / "apcaudit" / "__init__.py").write_text("")
    return folder


def test_workers_that_differ(tmp_path: Path, cache: Path) -> None:
    """A worker with another version, or that lacks ours, is named and gets no image; the others do them all."""
    pytest.importorskip("capstone")
    evidence = bulk_images.folder_of(tmp_path, {"xp": ("seed", None)}, 2)
    results = tmp_path / "results"
    befores = (another_version(tmp_path / "one"), without_it(tmp_path / "two"), None)
    with cluster(cache, tmp_path, *befores) as (address, workers):
        arguments = ("scan", evidence, "-o", results, "--offline", "--scheduler", address)
        done = apcaudit(*arguments, cache=cache)
    assert done.returncode == 0, done.stderr
    refused = [line for line in done.stderr.splitlines() if "is given no images" in line]
    here = importlib.metadata.version("capstone")
    told = rf"the worker tcp://127\.0\.0\.1:\d+ .*: capstone is 4\.0\.0, on the machine of the scan {re.escape(here)}$"
    assert len([line for line in refused if re.match(told, line)]) == 1
    assert (
        len([line for line in refused if "cannot say in what it differs" in line and "ModuleNotFoundError" in line])
        == 1
    )
    assert len(refused) == 2
    rows = store.images(results)
    assert {row.worker.rpartition(":")[2] for row in rows} == {str(workers[2].pid)}
    assert [row.status for row in rows] == ["scanned"] * 2


def test_every_worker_differs(tmp_path: Path, cache: Path) -> None:
    """Where none is left the scan does not begin: one line a worker, one that says what is needed."""
    pytest.importorskip("capstone")
    image = bulk_images.write(tmp_path / "a.dmp", "seed")
    results = tmp_path / "results"
    with cluster(cache, tmp_path, another_version(tmp_path / "one")) as (address, _):
        done = apcaudit("scan", image, "-o", results, "--offline", "--scheduler", address, cache=cache)
    assert done.returncode == 1, done.stderr
    assert "capstone is 4.0.0" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("apcaudit: no worker is left: each needs the same versions")
    assert store.images(results) == []


def test_a_worker_that_joins_and_differs(tmp_path: Path, cache: Path) -> None:
    """A worker that comes later and differs gives back what it is given."""
    pytest.importorskip("capstone")
    evidence = bulk_images.folder_of(tmp_path, {"xp": ("seed", None)}, 12)
    results = tmp_path / "results"
    with cluster(cache, tmp_path, None) as (address, workers):
        arguments = ("scan", evidence, "-o", results, "--offline", "--scheduler", address)
        running = bulk_images.start(*arguments, cache=cache)
        wait_for_reader(workers[0].pid, after=0)
        late = ("worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard")
        late = (*late, "--local-directory", str(tmp_path / "late"))
        with dask(*late, says="Registered to", cache=cache, before=another_version(tmp_path / "one")):
            _, stderr = running.communicate(timeout=240)
    assert running.returncode == 0, stderr
    rows = store.images(results)
    assert {row.worker.rpartition(":")[2] for row in rows} == {str(workers[0].pid)}
    assert [row.status for row in rows] == ["scanned"] * 12


def test_the_scheduler_goes_away(tmp_path: Path, cache: Path) -> None:
    """When the scheduler ends in the middle, so does the scan, in one line; nothing has failed for it."""
    raw = bulk_images.write_raw(tmp_path / "seed.raw", "seed")
    results = tmp_path / "results"
    with contextlib.ExitStack() as stack:
        address, (worker,) = stack.enter_context(cluster(cache, tmp_path, None))
        running = bulk_images.start("scan", raw, "-o", results, "--offline", "--scheduler", address, cache=cache)
        wait_for_reader(worker.pid, after=0)
        stack.close()
        _, stderr = running.communicate(timeout=120)
    assert running.returncode == 1, stderr
    assert "the Dask scheduler went away: the same command goes on" in stderr.splitlines()[-1]
    assert store.images(results) == []


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are looked up in Linux's /proc")
def test_what_listens(tmp_path: Path, cache: Path) -> None:
    """Nothing listens but the scheduler and the workers themselves: not the scan, not what reads images."""
    evidence = bulk_images.folder_of(tmp_path, {"xp": ("seed", None)}, 2)
    with cluster(cache, tmp_path, None) as (address, (worker,)):
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
