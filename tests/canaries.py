"""A file that tells whether it was opened: a FIFO, and a process that sees whoever opens it for reading."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def _watch(fifo: Path, seen: Path) -> None:
    """Note whoever has a FIFO open for reading, and give it a rule, so that an engine that waits in open() goes on."""
    while True:
        try:
            # Without waiting it fails until somebody has it open for reading.
            file = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.002)
            continue
        seen.touch()
        os.write(file, b"rule canary { condition: true }")
        os.close(file)
        time.sleep(0.05)


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
    watching, ready = os.pipe()
    # A fork, since another Python takes longer to start than most of what is watched.
    child = os.fork()
    if not child:
        try:
            os.write(ready, b".")
            # Who waits for the end of a pipe of this process must not wait for the fork's.
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            _watch(path, seen)
        finally:
            os._exit(1)
    try:
        os.close(ready)
        os.read(watching, 1)
        os.close(watching)
        yield Canary(path, seen)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


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
