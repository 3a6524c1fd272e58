"""Folders for what is unpacked: private, removed when done, and those of killed runs removed at the next start.

A folder is held by a lock on a file in it, which ends with the process however that ends. Where there are no such
locks (Windows), what a killed run left stays.
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

from apcaudit.bulk.room import needed

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

_LOCK = ".held"
_UNNAMED = ".apcaudit-"

_STALE = 24 * 3600
"""Seconds after which what is unnamed or unfinished is nobody's on any machine: naming or writing it takes a few."""


def mark() -> str:
    """Make a name for what is not finished, by which it is known to be nobody's when this process is gone."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex}"


_MARK = re.compile(r"-(\d+)-[0-9a-z_]+$")


@functools.cache
def _machine() -> str:
    """Name where the number of a process is its own: a machine since it was started, a container."""
    try:
        here = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink("/proc/self/ns/pid")
    except OSError:
        here = ""
    return f"{_host()}-{hashlib.sha256(here.encode()).hexdigest()[:8]}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())


def _prefix() -> str:
    # Locks are believed of this machine's processes only: the folder may be one that a cluster shares.
    return f"apcaudit-{_host()}-"


@contextlib.contextmanager
def folder(parent: Path | None, advice: str = "give another folder with --scratch") -> Iterator[Path]:
    """Make a folder that nobody else can read, and remove it at the end, and before those that killed runs left.

    Args:
        parent: where; the system's folder for temporary files when None.
        advice: what the user can do where there is no room for it.

    Raises:
        NoRoomError: there is none.
    """
    place = Path(tempfile.gettempdir() if parent is None else parent)
    if fcntl is None:
        with tempfile.TemporaryDirectory(prefix=_prefix(), dir=place, ignore_cleanup_errors=True) as unlocked:
            yield Path(unlocked)
        return
    clean(place)
    # It gets its name once it is locked: before that, nobody may take it for left behind.
    with needed(place, advice):
        made = Path(tempfile.mkdtemp(prefix=f"{_UNNAMED}{_machine()}-{os.getpid()}-", dir=place))
        try:
            lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            made.rmdir()
            raise
    try:
        with contextlib.suppress(OSError):
            # A file system without locks: nobody gets this one either, and what a killed run leaves stays.
            fcntl.flock(lock, fcntl.LOCK_EX)
        named = place / f"{_prefix()}{uuid.uuid4().hex}"
        os.rename(made, named)
        made = named
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def clean(place: Path) -> None:
    """Remove the folders of this user and machine whose process is gone."""
    if fcntl is None:
        return
    for left in place.glob(f"{_prefix()}*"):
        with contextlib.suppress(OSError):
            if left.is_symlink() or left.stat().st_uid != os.getuid():
                continue
            try:
                lock = os.open(left / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            except FileNotFoundError:
                # Whoever had it was removing it.
                shutil.rmtree(left, ignore_errors=True)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)
    for left in place.glob(f"{_UNNAMED}*"):
        with contextlib.suppress(OSError):
            if left.lstat().st_uid == os.getuid() and _is_nobodys(left):
                shutil.rmtree(left, ignore_errors=True)


def clean_results(results: Path) -> None:
    """Remove the unfinished pieces that killed runs left in a folder of results."""
    for left in (*results.glob(".unfinished-*"), *results.glob(".known/.*")):
        with contextlib.suppress(OSError):
            if _is_nobodys(left):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()


def _is_nobodys(path: Path) -> bool:
    """Tell whether what is not finished never will be: its process is gone, or, on another machine, it is old."""
    found = _MARK.search(path.name)
    if found and path.name[: found.start()].endswith(_machine()) and not _lives(int(found[1])):
        return True
    return time.time() - path.lstat().st_mtime > _STALE


def _lives(pid: int) -> bool:
    if os.name == "nt":
        # There, to ask like this is to kill.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
