"""Ending a process and all processes below it, even if they resist, and never an unrelated process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_PATIENCE = 5.0
"""Seconds to wait for a killed process. One in an uninterruptible wait, such as a read of a lost disk, dies later, and
nobody waits for it."""

_PAUSE = 0.005


def adopt() -> None:
    """Make this process the parent of all orphaned processes below it; on Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; on Linux only."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent ended before the request.
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that has its own process group, and all processes below it, unless its end is already known.

    Processes that have left the group are found by their parent, so the process must have called adopt().
    """
    # Once its end is known, its process ID may be another process's.
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "nt":
            process.kill()
        else:
            # While stopped, it cannot reap children, so none of their IDs can become another process's.
            os.kill(process.pid, signal.SIGSTOP)
            _wait_until_stopped(process.pid)
            _kill_children(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)


def end_children() -> None:
    """Kill all processes below this one, which must have called adopt() and wait for no child meanwhile."""
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                _kill_children(os.getpid())
                os.waitpid(-1, 0)


def _wait_until_stopped(pid: int) -> None:
    limit = time.monotonic() + _PATIENCE
    while _status(pid)[:1] in (["R"], ["S"]) and time.monotonic() < limit:
        time.sleep(_PAUSE)


def _kill_children(parent: int) -> None:
    """Kill a process's children, and their orphans, which it adopts; it must not wait for any of them meanwhile."""
    limit = time.monotonic() + _PATIENCE
    while (left := _children(parent)) and time.monotonic() < limit:
        for each in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        time.sleep(_PAUSE)


def _children(parent: int) -> list[int]:
    """Return the IDs of a process's children that have not ended, by /proc; none where there is no /proc."""
    every = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in every if (status := _status(pid)) and int(status[1]) == parent and status[0] not in "ZX"]


def _status(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name (proc(5)): state, parent, ...; none if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    # The name is in parentheses, and may hold anything.
    return text.rpartition(")")[2].split()
