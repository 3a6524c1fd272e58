"""A file that tells whether it was opened: a FIFO, and a process that sees whoever opens it for reading."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Opening a FIFO for writing without waiting fails until somebody has it open for reading. Whoever does gets a rule, so
#: that the test goes on where an engine waits in open().
_WATCH = """
import os, sys, time
fifo, seen = sys.argv[1:]
open(seen + ".ready", "w").close()
while True:
    try:
        file = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        time.sleep(0.002)
        continue
    open(seen, "w").close()
    os.write(file, b"rule canary { condition: true }")
    os.close(file)
    time.sleep(0.05)
"""


class Canary:
    """A FIFO at `path` that nobody may open."""

    def __init__(self, path: Path, seen: Path) -> None:
        self.path = path
        self._seen = seen

    @property
    def opened(self) -> bool:
        """Whether somebody has opened it."""
        return self._seen.exists()


@contextlib.contextmanager
def canary(path: Path, watched: Path) -> Iterator[Canary]:
    """Make a FIFO and watch it from another process meanwhile, which notes what it sees in the folder `watched`."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no FIFOs")
    os.mkfifo(path)
    seen = watched / f"{path.name}.seen"
    with subprocess.Popen([sys.executable, "-c", _WATCH, str(path), str(seen)]) as process:
        try:
            limit = time.monotonic() + 30
            while not Path(f"{seen}.ready").exists() and time.monotonic() < limit:
                time.sleep(0.005)
            yield Canary(path, seen)
        finally:
            process.kill()


class _Opens:
    """Hears of every file that this Python opens, for each that listens."""

    def __init__(self) -> None:
        self.listeners: list[list[str]] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.listeners and event == "open" and isinstance(arguments[0], (str, bytes)):
            for paths in self.listeners:
                paths.append(os.fsdecode(arguments[0]))


_opens: list[_Opens] = []


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Give the paths of the files that are opened meanwhile."""
    if not _opens:
        _opens.append(_Opens())  # there is no way to remove a hook
    paths: list[str] = []
    _opens[0].listeners.append(paths)
    try:
        yield paths
    finally:
        # Not by remove(), which takes equal lists for the same.
        _opens[0].listeners = [each for each in _opens[0].listeners if each is not paths]


#: What is no file, and a word that a message about it has.
NO_FILES = ("a FIFO", "a socket", "a folder", "a device")


@contextlib.contextmanager
def no_file(kind: str, path: Path) -> Iterator[None]:
    """Put something at a path that is no file; whoever opens it meanwhile is an error of the test's."""
    with contextlib.ExitStack() as stack:
        watch: Canary | None = None
        if kind == "a FIFO":
            watched = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            watch = stack.enter_context(canary(path, watched))
        elif kind == "a socket":
            made = stack.enter_context(socket.socket(socket.AF_UNIX))
            # The name of a socket may not be longer than a hundred bytes or so.
            here = os.getcwd()
            os.chdir(path.parent)
            try:
                made.bind(path.name)
            finally:
                os.chdir(here)
        elif kind == "a folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/null")
        paths = stack.enter_context(heard())
        yield
        assert watch is None or not watch.opened
        assert str(path) not in paths
