"""Asking a separate process about each image, with limits of memory and time; its death becomes an ImageError here."""

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

FORKS = sys.platform == "linux"
"""Whether the process forks for each image here; otherwise it answers one request and ends."""

_INDEX_MEMORY = 4 << 30
"""Limit of memory in bytes while symbol files are indexed: a packed file of a megabyte may unpack to gigabytes."""


_LONGEST = 1 << 29
"""Limit of one answer in bytes: rows of an image take a few MiB, and a compromised process may send anything."""


class ImageError(ApcAuditError):
    """An image could not be read: the text says why, `stage` at which stage.

    `temporary` is whether the cause is the machine and not the image, so that the next scan tries the image again.
    `header` is what the image's headers tell nevertheless: the fields of contents.Header.
    """

    def __init__(
        self, reason: str, stage: str, *, temporary: bool = False, header: dict[str, Any] | None = None
    ) -> None:
        super().__init__(reason)
        self.stage = stage
        self.temporary = temporary
        self.header = header


class StoppedError(Exception):
    """The process was ended because the whole scan ends; it says nothing about the image that it read."""


class _Lines:
    """Reads the lines that a process writes, each when asked for, with a deadline.

    A thread of its own waits for the lines; it waits for ever if the process cannot even be killed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._asked = threading.Semaphore(0)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._closed = False
        threading.Thread(target=self._read, daemon=True).start()

    def next(self, deadline: float) -> bytes | None:
        """Return the next line, an empty one at the end, None after the deadline (time.monotonic())."""
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        self._asked.release()
        try:
            return self._lines.get(timeout=min(left, threading.TIMEOUT_MAX))
        except queue.Empty:
            return None

    def close(self) -> None:
        """End the thread, once it has read the line that it waits for."""
        self._closed = True
        self._asked.release()

    def _read(self) -> None:
        while True:
            self._asked.acquire()
            if self._closed:
                return
            self._lines.put(self._file.readline(_LONGEST))


class Isolation:
    """Keeps a process that has loaded volatility3 and its index of symbol files, and asks it about images.

    Args:
        symbols: folders of symbol files, searched before those of vol and the plugin.
        cache: folder shared by all processes with the same `symbols`; each process makes a folder of its own in it.
        offline: whether vol must not fetch files.
        forks: whether the process forks for each image, or answers one request and ends.
    """

    def __init__(self, symbols: tuple[Path, ...], cache: Path, *, offline: bool, forks: bool = FORKS) -> None:
        self._start = {"symbols": [str(each) for each in symbols], "cache": str(cache), "offline": offline}
        self._start |= {"index_memory": _INDEX_MEMORY, "forks": forks}
        self._forks = forks
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

    def ask(
        self, request: dict[str, Any], deadline: float, stage: Callable[[str], None], opening: float | None = None
    ) -> Any:
        """Send a request and wait for its answer.

        Args:
            request: what child.handle takes.
            deadline: value of time.monotonic() at which the process and its children are killed.
            stage: called with each stage that begins, and with how far it is.
            opening: the limit in seconds of the stage `open`, and of each part of it that is told.

        Raises:
            ImageError: the process failed, died, or was killed at the deadline.
            StoppedError: stop() was called.
        """
        at = "start"
        answer: dict[str, Any] = {}
        # Where there is no fork, the process ends without sending `ended`.
        ended = not self._forks
        process, lines = self._started()
        # Either stop() saw the process that was just started, or it has set this flag.
        if self._stopped:
            self.close()
            raise StoppedError
        line: bytes | None = b""
        until = deadline
        try:
            assert process.stdin is not None
            # Where the process has ended, its output has too, so the loop says so. On Windows the error is no EPIPE.
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            while line := lines.next(until):
                said = _read(line)
                if "stage" in said:
                    at = said["stage"]
                    stage(at)
                elif "progress" in said:
                    stage(said["progress"])
                elif "ended" in said:
                    ended = True
                    break
                elif not answer:
                    answer = said
                # What tells how far it is goes on: the first search of many symbol files takes minutes.
                limited = at == "open" and opening is not None
                until = min(deadline, time.monotonic() + (opening or 0)) if limited else deadline
            if ended and "done" in answer:
                return answer["done"]
            if ended and "failed" in answer:
                header = answer.get("header")
                header = header if isinstance(header, dict) else None
                raise ImageError(answer["failed"], at, temporary=answer.get("temporary") is True, header=header)
        except (ValueError, RecursionError) as error:
            self.close()
            raise ImageError("the process that reads images gave no answer that can be read", at) from error
        finally:
            if not self._forks:
                self.close()
        self.close()
        if self._stopped:
            raise StoppedError
        if line is None:
            if until < deadline:
                raise ImageError(f"volatility3 did not open it in {opening:,.0f} s", at)
            raise ImageError("it took longer than --timeout allows", at)
        # A process that forks reads no image itself, so its end is not the image's fault.
        raise ImageError(f"the process that reads images ended{self._last_error()}", at, temporary=self._forks)

    def stop(self) -> None:
        """Kill the process and its children for good; a pending ask() raises StoppedError."""
        self._stopped = True
        self.close()

    def close(self) -> None:
        """Kill the process and its children, if it runs."""
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
        """Return the last line that the process wrote to stderr, at most 500 bytes of it."""
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
        with room.report_full(self._cache, room.CACHE_ADVICE):
            self._cache.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(scratch.folder(self._cache, room.CACHE_ADVICE))
            # In a new session: Ctrl-C reaches the scan only, and killing the process group reaches the child too.
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
    """Parse a line from the process and check its form, since an image may have compromised the process."""
    said = json.loads(line)
    if not isinstance(said, dict) or not all(isinstance(said.get(name, ""), str) for name in ("stage", "progress")):
        raise ValueError("no answer")
    return said
