"""Evidence is only read, and nothing is left behind: every command, on an image as it is and packed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import bulk_images
from tests.bulk_images import need_extra
from tests.conftest import ROOT
from tests.volatility import VOL, put_index

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


#: Takes commands from its stdin and gives their exit codes on its stdout, neither of which the commands have.
IN_TURN = """import json, os, sys
asked, codes = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
from apcaudit.cli import main
for command in asked:
    print(main(json.loads(command)), file=codes, flush=True)
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
        whole = bulk_images.write(self.evidence / "seed.dmp", "seed")
        (self.evidence / "packed.dmp.gz").write_bytes(bulk_images.gzip.compress(whole.read_bytes() + b"x"))
        for each in self.evidence.iterdir():
            each.chmod(0o444)
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(folder / "hook"), str(ROOT))),
            "NETWORK_LOG": str(self.network),
            "TMPDIR": str(self.scratch),
            "XDG_CACHE_HOME": str(bulk_images.indexed(self.kept / "cache")),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run Python with the evidence for its working directory."""
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, **self._where())

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[Callable[[list[str]], tuple[int, str]]]:
        """Start a process that runs one command of ours after the other; give their exit codes and what they print."""
        with (
            tempfile.TemporaryFile("w+") as printed,
            subprocess.Popen(
                [sys.executable, "-c", IN_TURN],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                text=True,
                **self._where(),
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            asked, answers = process.stdin, process.stdout

            def run(command: list[str]) -> tuple[int, str]:
                print(json.dumps(command), file=asked, flush=True)
                code = answers.readline()
                printed.seek(0)
                return int(code or -1), printed.read()

            yield run

    def _where(self) -> dict[str, Any]:
        return {"cwd": self.evidence, "env": self._environment}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Build the evidence once."""
    return Place(tmp_path_factory.mktemp("place"))


def test_every_command(place: Place) -> None:
    """No command changes a byte or a time of the evidence, adds a file to it, leaves what it unpacked, or calls out."""
    before = state(place.evidence)

    def check(name: str) -> None:
        assert state(place.evidence) == before, name
        left = [each.name for each in place.scratch.iterdir() if "apcaudit" in each.name]
        assert left == [], name
        assert not place.network.exists(), (name, place.network.read_text())

    cache = place.kept / "vol"
    cache.mkdir()
    put_index(cache)
    vol = ["-c", VOL, "-q", "--offline", "--cache-path", str(cache), "-p", str(ROOT / "vol_plugins")]
    vol += ["-s", str(ROOT / "symbols"), "-r", "jsonl", "-f", str(place.evidence / "seed.dmp"), "windows.apcaudit"]
    done = place.run(*vol, "--scan", "--all", "--wide")
    assert done.returncode == 0, (done.stdout, done.stderr)
    check("vol")
    results, rows = str(place.kept / "results"), place.kept / "rows.jsonl"
    rows.write_text(done.stdout)
    commands = [
        ["show", str(rows)],
        ["symbols", str(place.evidence)],
        ["scan", str(place.evidence), "-o", results, "--workers", "1", "--offline"],
        ["stack", results],
        ["export", results, "--format", "csv", "--table", "images"],
        ["report", results, "-o", str(place.kept / "report.html")],
    ]
    with place.in_turn() as run:
        for command in commands:
            code, printed = run(command)
            assert code == 0, (command, printed)
            check(command[0])
    check("the end")


def test_the_test_hears_of_the_network(place: Place) -> None:
    """What the commands are watched by notes a look-up, so that its silence means something."""
    place.run("-c", "import socket; socket.getaddrinfo('localhost', 80)")
    assert "socket.getaddrinfo" in place.network.read_text()
    place.network.unlink()
