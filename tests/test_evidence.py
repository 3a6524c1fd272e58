"""Evidence is only read, and nothing is left behind: every command, on an image as it is and packed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import bulk_images
from tests.bulk_images import need_extra
from tests.conftest import ROOT
from tests.volatility import VOL

need_extra()


def state(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Give each file's hash and when its bytes and its entry were last changed."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
            path.stat().st_ctime_ns,
        )
        for path in files
    }


#: Python imports it at its start, in every process of a command: it notes whoever looks up or connects to a machine.
HOOK = """import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["NETWORK_LOG"], "a") as file:
            file.write(f"{event} {arguments!r}\\n")
sys.addaudithook(note)
"""


class Place:
    """A folder of evidence and the folders that commands may write to, one each for what is to be kept and what not."""

    def __init__(self, folder: Path) -> None:
        self.evidence, self.kept, self.scratch = (folder / name for name in ("evidence", "kept", "scratch"))
        for each in (self.evidence, self.kept, self.scratch):
            each.mkdir()
        self.network = folder / "network.log"
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)
        self._paths = os.pathsep.join((str(folder / "hook"), str(ROOT)))
        whole = bulk_images.write(self.evidence / "seed.dmp", "seed")
        (self.evidence / "packed.dmp.gz").write_bytes(bulk_images.gzip.compress(whole.read_bytes() + b"x"))
        for each in self.evidence.iterdir():
            each.chmod(0o444)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours with the evidence for its working directory."""
        environment = {
            **os.environ,
            "PYTHONPATH": self._paths,
            "NETWORK_LOG": str(self.network),
            "TMPDIR": str(self.scratch),
            "XDG_CACHE_HOME": str(self.kept / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(
            [sys.executable, *command], cwd=self.evidence, env=environment, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Build the evidence once."""
    return Place(tmp_path_factory.mktemp("place"))


def test_every_command(place: Place) -> None:
    """No command changes a byte or a time of the evidence, adds a file to it, leaves what it unpacked, or calls out."""
    before = state(place.evidence)
    cache = place.kept / "vol"
    cache.mkdir()
    vol = ["-c", VOL, "-q", "--offline", "--cache-path", str(cache), "-p", str(ROOT / "vol_plugins")]
    vol += ["-s", str(ROOT / "symbols"), "-r", "jsonl", "-f", str(place.evidence / "seed.dmp"), "windows.apcaudit"]
    results, rows = str(place.kept / "results"), place.kept / "rows.jsonl"
    commands = {
        "vol": [*vol, "--scan", "--all", "--wide"],
        "show": ["-m", "apcaudit", "show", str(rows)],
        "symbols": ["-m", "apcaudit", "symbols", str(place.evidence)],
        "scan": ["-m", "apcaudit", "scan", str(place.evidence), "-o", results, "--workers", "1", "--offline"],
        "stack": ["-m", "apcaudit", "stack", results],
        "export": ["-m", "apcaudit", "export", results, "--format", "csv", "--table", "images"],
        "report": ["-m", "apcaudit", "report", results, "-o", str(place.kept / "report.html")],
    }
    for name, command in commands.items():
        done = place.run(*command)
        assert done.returncode == 0, (name, done.stdout, done.stderr)
        if name == "vol":
            rows.write_text(done.stdout)
        assert state(place.evidence) == before, name
        left = [each.name for each in place.scratch.iterdir() if "apcaudit" in each.name]
        assert left == [], name
        assert not place.network.exists(), (name, place.network.read_text())


def test_the_test_hears_of_the_network(place: Place) -> None:
    """What the commands are watched by notes a look-up, so that its silence means something."""
    place.run("-c", "import socket; socket.getaddrinfo('localhost', 80)")
    assert "socket.getaddrinfo" in place.network.read_text()
    place.network.unlink()
