"""Ending a process and all that it has started, whatever those do against it, and never another one."""

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
"""Seconds to wait for a process that was killed: one that the kernel does not let go, as in a read of a disk that is
gone, dies when it is let go, and nobody waits for it any longer."""

_PAUSE = 0.005


def adopt() -> None:
    """Make this process the parent of each process below it that loses its own; on Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with(parent: int) -> None:
    """Let this process be killed when its parent ends; on Linux only."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It ended before we had asked for that.
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that has its own process group, and all below it, unless somebody has seen already that it ended.

    Those that have left the group are found by their parent: the process has to have called adopt().
    """
    # Once somebody has seen that it ended, its number may be another process's.
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "nt":
            process.kill()
        else:
            # Stopped, it takes no note of children that end: none of their numbers can be another process's meanwhile.
            os.kill(process.pid, signal.SIGSTOP)
            _wait_until_stopped(process.pid)
            _kill_children(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)


def end_children() -> None:
    """Kill what is left below this process, which has called adopt() and waits for no child meanwhile."""
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
    """Kill a process's children, and theirs, who become its own; it must not wait for any of them meanwhile."""
    limit = time.monotonic() + _PATIENCE
    while (left := _children(parent)) and time.monotonic() < limit:
        for each in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        time.sleep(_PAUSE)


def _children(parent: int) -> list[int]:
    """Return the children of a process that have not ended, by /proc; none where there is no such folder."""
    every = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in every if (status := _status(pid)) and int(status[1]) == parent and status[0] not in "ZX"]


def _status(pid: int) -> list[str]:
    """Return a process's state, its parent and what else proc(5) has behind its name; nothing when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    # The name is in parentheses, and may hold anything.
    return text.rpartition(")")[2].split()
