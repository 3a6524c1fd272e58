"""No process of a local scan listens on a socket, and none needs Dask; with a scheduler only Dask's own do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import bulk_images
from tests.bulk_images import in_turn, listening, need_extra, watched

need_extra()

linux = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are looked up in Linux's /proc")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own."""
    return bulk_images.indexed(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def missing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder by which Python finds no Dask."""
    folder = tmp_path_factory.mktemp("missing")
    for name in ("dask", "distributed"):
        (folder / f"{name}.py").write_text("raise ImportError('not installed')")
    return folder


@linux
def test_a_local_scan_listens_nowhere(tmp_path: Path, cache: Path, missing: Path) -> None:
    """Neither the scan nor a process below it has a listening socket at any moment; and Dask need not be installed."""
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    data = bulk_images.write(tmp_path / "image.dmp", "seed").read_bytes()
    for number in range(3):
        (evidence / f"{number}.dmp").write_bytes(bulk_images.distinct(data, number))
    arguments = ("scan", evidence, "-o", tmp_path / "results", "--offline", "--workers", 2)
    running = bulk_images.start(*arguments, cache=cache, before=missing)
    sockets, seen = watched(running)
    _, stderr = running.communicate()
    assert running.returncode == 0, stderr
    assert sockets == set()
    # The scan, the two processes that read for it, and one forked for each image, or most of them.
    assert len(seen) > 3


SERVER = "import socket, sys; made = socket.create_server((sys.argv[1], 0)); print(flush=True); sys.stdin.read()"


@linux
@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_the_test_sees_who_listens(address: str) -> None:
    """What a scan is watched by sees a server, so that its silence means something."""
    command = [sys.executable, "-c", SERVER, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(listening(process.pid)) == 1
        process.communicate()


def test_nothing_local_needs_dask(tmp_path: Path, cache: Path, missing: Path) -> None:
    """Where Dask is not installed everything else on one machine works too."""
    image = bulk_images.write(tmp_path / "a.dmp", "healthy")
    page = tmp_path / "r.html"
    done = in_turn(("symbols", image), ("report", image, "-o", page, "--offline"), cache=cache, before=missing)
    assert [code for code, _ in done] == [0, 0], done
    assert page.exists()
