"""A child process for each image, with limits of memory and time; what kills the child is a value here."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from apcaudit.bulk import processes, room, scratch
from apcaudit.errors import ApcAuditError

_FORKS = sys.platform == "linux"
"""Whether the process that is asked forks for each image, or answers one request and ends."""

_INDEX_MEMORY = 4 << 30
"""Bytes that the index of symbol files may take while it is made: a file of a megabyte may unpack to as much."""


_LONGEST = 1 << 29
"""Bytes of one answer: the rows of an image take a few MiB, and a process that one has taken over may say anything."""


class ImageError(ApcAuditError):
    """An image could not be dealt with: the text says why, `stage` where.

    `passing` is whether the machine is to blame and not the image, which a later scan tries again by itself.
    """

    def __init__(self, reason: str, stage: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.stage = stage
        self.passing = passing


class StoppedError(Exception):
    """The process was ended because the whole scan is: nothing is known of the image that it read."""


class _Lines:
    """The lines that a process writes, each when it is asked for; no process can make us wait for longer than we want.

    The thread that reads them waits in our place, for ever where the process cannot even be killed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._asked = threading.Semaphore(0)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._closed = False
        threading.Thread(target=self._read, daemon=True).start()

    def next(self, deadline: float) -> bytes | None:
        """Return the next line, an empty one at the end, None when the time is over by time.monotonic()."""
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        self._asked.release()
        try:
            return self._lines.get(timeout=min(left, threading.TIMEOUT_MAX))
        except queue.Empty:
            return None

    def close(self) -> None:
        """End; nobody asks any more."""
        self._closed = True
        self._asked.release()

    def _read(self) -> None:
        while True:
            self._asked.acquire()
            if self._closed:
                return
            self._lines.put(self._file.readline(_LONGEST))


class Isolation:
    """Keeps a process that has volatility3 and its index of symbol files loaded, and asks it about images.

    Args:
        symbols: folders of symbol files, before those that vol and the plugin come with.
        cache: folder of what processes with these folders leave to one another; each has one of its own in it.
        offline: whether vol may fetch nothing.
    """

    def __init__(self, symbols: tuple[Path, ...], cache: Path, *, offline: bool) -> None:
        self._start = {"symbols": [str(each) for each in symbols], "cache": str(cache), "offline": offline}
        self._start["index_memory"] = _INDEX_MEMORY
        self._command = [sys.executable, "-m", "apcaudit.bulk.child"]
        self._cache = cache
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: _Lines | None = None
        self._own = contextlib.ExitStack()
        self._errors: IO[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process, so that it has loaded what it needs when it is asked."""
        self._started()

    def ask(self, request: dict[str, Any], deadline: float, stage: Callable[[str], None]) -> Any:
        """Send a request and wait for its answer.

        Args:
            request: what child.handle takes.
            deadline: when the child is killed, by time.monotonic().
            stage: told what the child is at.

        Raises:
            ImageError: the child failed, died, or was killed because its time was over, with all below it.
            StoppedError: stop() was called.
        """
        at = "start"
        answer: dict[str, Any] = {}
        # Where there is no fork, nobody is left to say it.
        ended = not _FORKS
        process, lines = self._started()
        # Whoever stops us sees the process that was just started, or we see that we are stopped.
        if self._stopped:
            self.close()
            raise StoppedError
        line: bytes | None = b""
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            while line := lines.next(deadline):
                said = _read(line)
                if "stage" in said:
                    at = said["stage"]
                    stage(at)
                elif "ended" in said:
                    ended = True
                    break
                elif not answer:
                    answer = said
            if ended and "done" in answer:
                return answer["done"]
            if ended and "failed" in answer:
                raise ImageError(answer["failed"], at, passing=answer.get("passing") is True)
        except ValueError as error:
            self.close()
            raise ImageError("the process that reads images gave no answer that can be read", at) from error
        except BrokenPipeError:
            pass
        finally:
            if not _FORKS:
                self.close()
        self.close()
        if self._stopped:
            raise StoppedError
        if line is None:
            raise ImageError("its time was over (--timeout)", at)
        # Of those that fork, the one that is asked reads no image itself.
        raise ImageError(f"the process that reads images ended{self._last_error()}", at, passing=_FORKS)

    def stop(self) -> None:
        """Kill the process and its child for good; who waits for an answer gets a StoppedError."""
        self._stopped = True
        self.close()

    def close(self) -> None:
        """Kill the process and its child, if there is one."""
        with self._lock:
            self._kill()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        processes.end(process)
        if self._lines is not None:
            self._lines.close()
        self._own.close()

    def _last_error(self) -> str:
        """Return the last line that the process wrote to stderr, a bounded one."""
        if self._errors is None:
            return ""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 500))
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")

    def _started(self) -> tuple[subprocess.Popen[bytes], _Lines]:
        with self._lock:
            if self._process is not None and self._lines is not None and self._process.poll() is None:
                return self._process, self._lines
            self._kill()
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        with room.needed(self._cache, room.CACHE_ADVICE):
            self._cache.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(scratch.folder(self._cache, room.CACHE_ADVICE))
            # A session of its own: Ctrl-C reaches the scan alone, and killing the group reaches its child.
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*self._command, json.dumps(self._start | {"own": str(own)})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
            assert process.stdout is not None
            lines = _Lines(process.stdout)
            with self._lock:
                self._process, self._lines, self._own = process, lines, stack.pop_all()
        return process, lines


def _read(line: bytes) -> dict[str, Any]:
    """Read a line that a process said; one that an image has taken over may say anything."""
    said = json.loads(line)
    if not isinstance(said, dict) or not isinstance(said.get("stage", ""), str):
        raise ValueError("no answer")
    return said
