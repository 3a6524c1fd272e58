"""Writing the output files that a user names: regular files whole or not at all, devices and FIFOs directly.

A regular file is written under a temporary name in its folder and renamed when its bytes are on the disk; an existing
file stays until then. A symbolic link stays, and its target is replaced. Terminals and other character devices, FIFOs
with a reader, and the command's own stdout or stderr are written directly. Folders, disks and sockets are refused.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from apcaudit.errors import ApcAuditError

_BUFFER = 1 << 20

_UNFINISHED = ".unfinished-"
"""The prefix of temporary names; a killed process leaves such a file, and a scan removes it from its results."""

#: The kinds of files that are refused, by their type in stat.
_REFUSED = {stat.S_IFDIR: "a folder", stat.S_IFBLK: "a disk", stat.S_IFSOCK: "a socket"}


@contextlib.contextmanager
def writing(path: Path, *, evidence: Iterable[Path] = ()) -> Iterator[BinaryIO]:
    """Open a file for writing; it gets its name at the end, and an existing file stays if an exception is raised.

    Args:
        path: the file as the user named it; only a regular file can be seeked.
        evidence: images, which must not be written.

    Raises:
        ApcAuditError: it cannot be written.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        status = None
    except OSError as error:
        raise _failed(path, error) from error
    if status is not None and any(_same(status, each) for each in evidence):
        raise ApcAuditError(f"{path}: it is the evidence, which is only read")
    own = None if status is None else next((each for each in (1, 2) if _same(status, each)), None)
    if own is not None:
        opened = _through(path, os.dup(own), own=True)
    elif status is None or stat.S_ISREG(status.st_mode):
        opened = _replacing(path, status)
    else:
        opened = _through(path, _descriptor(path, status.st_mode))
    with opened as file:
        yield file


def write(path: Path, text: str, *, evidence: Iterable[Path] = ()) -> None:
    """Write text as UTF-8, as `writing` does."""
    with writing(path, evidence=evidence) as file:
        file.write(text.encode())


class _File(io.FileIO):
    """A descriptor whose errors name the file as the user did."""

    def __init__(self, descriptor: int, path: Path, *, seekable: bool, own: bool) -> None:
        super().__init__(descriptor, "wb")
        self._path, self._seekable, self._own = path, seekable, own

    def seekable(self) -> bool:
        return self._seekable

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self._own and isinstance(error, BrokenPipeError):
                raise
            raise _failed(self._path, error) from error


@contextlib.contextmanager
def _replacing(path: Path, status: os.stat_result | None) -> Iterator[BinaryIO]:
    """Write a temporary file beside the target, links resolved, and rename it to the target."""
    target = Path(os.path.realpath(path))
    if status is not None and not os.access(target, os.W_OK):
        # A rename would replace it without checking.
        raise ApcAuditError(f"{path}: it is write-protected")
    unfinished = target.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise ApcAuditError(f"{path}: no file can be made in {target.parent}: {error.strerror}") from error
    try:
        with io.BufferedWriter(_File(descriptor, path, seekable=True, own=False), _BUFFER) as file:
            yield file
            file.flush()
            _finish(path, lambda: os.fsync(descriptor))
        if status is not None:
            _keep(unfinished, status)
        _finish(path, lambda: os.replace(unfinished, target))
    finally:
        unfinished.unlink(missing_ok=True)


def _finish(path: Path, step: Callable[[], None]) -> None:
    try:
        step()
    except OSError as error:
        raise _failed(path, error) from error


def _keep(unfinished: Path, status: os.stat_result) -> None:
    """Give a file the owner and the mode of the file that it replaces, as far as this user may."""
    with contextlib.suppress(OSError, AttributeError):
        os.chown(unfinished, status.st_uid, status.st_gid)
    with contextlib.suppress(OSError):
        unfinished.chmod(stat.S_IMODE(status.st_mode))


@contextlib.contextmanager
def _through(path: Path, descriptor: int, *, own: bool = False) -> Iterator[BinaryIO]:
    """Write directly to an open descriptor."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    with io.BufferedWriter(_File(descriptor, path, seekable=False, own=own), _BUFFER) as file:
        yield file


def _descriptor(path: Path, mode: int) -> int:
    """Open a device or FIFO without waiting and without creating a file."""
    refused = _REFUSED.get(stat.S_IFMT(mode))
    if refused is not None:
        raise ApcAuditError(f"{path}: it is {refused}, name a file")
    try:
        # With O_NONBLOCK a FIFO without a reader is an error instead of a wait.
        descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    except OSError as error:
        if error.errno == errno.ENXIO and stat.S_ISFIFO(mode):
            raise ApcAuditError(f"{path}: nobody reads this FIFO, start its reader first") from error
        raise _failed(path, error) from error
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(descriptor, True)
    return descriptor


def _same(status: os.stat_result, other: int | Path) -> bool:
    """Tell whether a file is the same as that of a descriptor or path; False where the system has no inode numbers."""
    try:
        return status.st_ino != 0 and os.path.samestat(status, os.stat(other))
    except OSError:
        return False


def _failed(path: Path, error: OSError) -> ApcAuditError:
    gone = isinstance(error, BrokenPipeError)
    return ApcAuditError(f"{path}: {'whoever read it is gone' if gone else error.strerror or error}")
