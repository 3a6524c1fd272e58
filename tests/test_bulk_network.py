"""No process of a local scan listens on a socket, and none needs Dask; with a scheduler only Dask's own do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import bulk_images
from tests.bulk_images import apcaudit, listening, need_extra, watched

need_extra()

linux = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are looked up in Linux's /proc")


@linux
def test_a_local_scan_listens_nowhere(tmp_path: Path) -> None:
    """Neither the scan nor a process below it has a listening socket at any moment."""
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    data = bulk_images.write(tmp_path / "image.dmp", "seed").read_bytes()
    for number in range(6):
        (evidence / f"{number}.dmp").write_bytes(bulk_images.distinct(data, number))
    arguments = ("scan", evidence, "-o", tmp_path / "results", "--offline", "--workers", 2)
    running = bulk_images.start(*arguments, cache=tmp_path / "cache")
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


@pytest.mark.parametrize("command", ["scan", "report", "symbols"])
def test_nothing_local_needs_dask(command: str, tmp_path: Path) -> None:
    """Where Dask is not installed everything on one machine works."""
    image = bulk_images.write(tmp_path / "a.dmp", "healthy")
    missing = tmp_path / "missing"
    missing.mkdir()
    for name in ("dask", "distributed"):
        (missing / f"{name}.py").write_text("raise ImportError('not installed')")
    own = {"scan": ("-o", tmp_path / "r", "--offline"), "report": ("-o", tmp_path / "r.html", "--offline")}
    done = apcaudit(command, image, *own.get(command, ()), cache=tmp_path / "cache", before=missing)
    assert done.returncode == 0, done.stderr
