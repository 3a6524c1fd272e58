"""Files: how they are read, and the check that a path from the user is a regular one, since a FIFO would block."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib import parse, request

from .text import printable

ReadFile = Callable[[int, int], bytes]
"""Reads (offset, length) of a file; returns fewer bytes at its end."""


def reader_of(layer: Any) -> ReadFile:
    """Return what reads a file's layer like a file: at the end it gives fewer bytes, where vol's FileLayer raises."""
    size = layer.maximum_address + 1

    def read(offset: int, length: int) -> bytes:
        length = min(length, size - offset)
        return bytes(layer.read(offset, length)) if length > 0 else b""

    return read


_NO_FILES = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

# O_NONBLOCK: a FIFO that replaces the file between the check and the opening does not block either.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


class NoFileError(OSError):
    """The path does not name a regular file; strerror says what it names."""


def kind_of(mode: int) -> str | None:
    """Name the kind of a path that is not a regular file (`a FIFO`), by its st_mode; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((kind for is_kind, kind in _NO_FILES if is_kind(mode)), "no file")


def check(path: str | Path) -> None:
    """Check that a path names a regular file, without opening it.

    Raises:
        NoFileError: it names something else.
        OSError: stat fails.
    """
    _refuse(os.stat(path).st_mode, path)


def open_file(path: str | Path) -> IO[bytes]:
    """Open a regular file for reading.

    Raises:
        NoFileError: the path names something else.
        OSError: it cannot be opened.
    """
    check(path)
    descriptor = os.open(path, _FLAGS)
    try:
        _refuse(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_url(url: str) -> None:
    """Check that a URL names a regular file, or a member of one (an archive); URLs that are not local pass.

    Raises:
        NoFileError: it names something else.
        OSError: stat fails.
    """
    path = path_of(url)
    if path is not None:
        check(path)


def path_of(url: str) -> Path | None:
    """Return the path of a file URL or plain path; for a member of an archive, the archive's. None for other URLs."""
    if url.startswith("jar:file:"):
        # As vol writes them: jar:file:ARCHIVE!MEMBER, and ARCHIVE is a path.
        return Path(url[len("jar:file:") :].split("!")[0])
    parts = parse.urlparse(url)
    if parts.scheme == "file":
        return Path(request.url2pathname(parts.path))
    return Path(url) if len(parts.scheme) <= 1 else None


def _refuse(mode: int, path: str | Path) -> None:
    kind = kind_of(mode)
    if kind is not None:
        raise NoFileError(errno.EINVAL, f"it is {kind}", str(path))


_MEMORY = ".vmem"
_STATES = (".vmss", ".vmsn")
"""VMware's memory file, and the state files that vol opens beside it (volatility3 2.28.2, VmwareStacker)."""


def why_no_image(location: str) -> str | None:
    """Say in one line why there can be no image at a location; None where there may be one or it is unknown."""
    path = path_of(location)
    if path is None:
        return None
    kind = _kind(path)
    if kind is not None:
        return f"{printable(path.name)} is {kind}, no file with an image in it"
    for state in _STATES if path.suffix == _MEMORY else ():
        kind = _kind(path.with_suffix(state))
        if kind is not None:
            name = printable(path.with_suffix(state).name)
            return f"{name} beside {printable(path.name)} is {kind}, no file with a machine's state in it: remove it"
    return None


def _kind(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    # Block devices are allowed: they have an end, and memory may have been copied to one.
    return None if stat.S_ISBLK(mode) else kind_of(mode)
