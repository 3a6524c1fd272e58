"""Folders for unpacked images: private, removed when done; those of killed runs are removed at the next start.

A folder in use has a locked file in it, and the lock ends with the process in any case. Without such locks (Windows),
folders of killed runs stay.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from apcaudit.bulk.room import report_full

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

_LOCK = ".held"
_UNNAMED = ".apcaudit-"

_STALE = 24 * 3600
"""Seconds after which an unfinished folder or file is abandoned, on any machine: finishing it takes a few seconds."""


def unfinished_name() -> str:
    """Make a unique name for an unfinished file or folder, with the machine and process that are writing it."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex}"


_MARK = re.compile(r"-(\d+)-[0-9a-z_]+$")


@functools.cache
def _machine() -> str:
    """Name the host, its boot and PID namespace (container), within which a process ID is unique."""
    try:
        here = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink("/proc/self/ns/pid")
    except OSError:
        here = ""
    return f"{_host()}-{hashlib.sha256(here.encode()).hexdigest()[:8]}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())


def _prefix() -> str:
    # Locks are reliable among processes of one machine only, and a cluster may share the folder.
    return f"apcaudit-{_host()}-"


@contextlib.contextmanager
def folder(parent: Path | None, advice: str = "give another folder with --scratch") -> Iterator[Path]:
    """Make a private folder and remove it at the end; first remove those that killed runs left.

    Args:
        parent: where to make it; None is the system's folder for temporary files.
        advice: what the user can do if the disk is full.

    Raises:
        NoRoomError: the disk is full.
    """
    place = Path(tempfile.gettempdir() if parent is None else parent)
    if fcntl is None:
        with tempfile.TemporaryDirectory(prefix=_prefix(), dir=place, ignore_cleanup_errors=True) as unlocked:
            yield Path(unlocked)
        return
    clean(place)
    # It gets its final name once it is locked, so that no other process takes it for abandoned.
    with report_full(place, advice):
        made = Path(tempfile.mkdtemp(prefix=f"{_UNNAMED}{_machine()}-{os.getpid()}-", dir=place))
        try:
            lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            made.rmdir()
            raise
    try:
        with contextlib.suppress(OSError):
            # On a file system without locks no process can lock it to remove it, so folders of killed runs stay.
            fcntl.flock(lock, fcntl.LOCK_EX)
        named = place / f"{_prefix()}{uuid.uuid4().hex}"
        os.rename(made, named)
        made = named
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def clean(place: Path) -> None:
    """Remove folders of this user and machine whose process has ended."""
    if fcntl is None:
        return
    for left in place.glob(f"{_prefix()}*"):
        with contextlib.suppress(OSError):
            if left.is_symlink() or left.stat().st_uid != os.getuid():
                continue
            try:
                lock = os.open(left / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            except FileNotFoundError:
                # Its process was removing it.
                shutil.rmtree(left, ignore_errors=True)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)
    for left in place.glob(f"{_UNNAMED}*"):
        with contextlib.suppress(OSError):
            if left.lstat().st_uid == os.getuid() and _is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)


def clean_results(results: Path) -> None:
    """Remove the unfinished files and folders that killed runs left in a folder of results."""
    for left in (*results.glob(".unfinished-*"), *results.glob(".known/.*")):
        with contextlib.suppress(OSError):
            if _is_abandoned(left):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()


def _is_abandoned(path: Path) -> bool:
    """Tell whether an unfinished file or folder is abandoned: its process has ended, or it is older than _STALE."""
    found = _MARK.search(path.name)
    if found and path.name[: found.start()].endswith(_machine()) and not _is_running(int(found[1])):
        return True
    return time.time() - path.lstat().st_mtime > _STALE


def _is_running(pid: int) -> bool:
    if os.name == "nt":
        # On Windows os.kill would end the process.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
