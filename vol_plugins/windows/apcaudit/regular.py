"""Files that others name: looked at before they are opened: a FIFO waits for its writer, a device never ends."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO
from urllib import parse, request

_NO_FILES = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

# Where somebody puts a FIFO in a file's place between the look and the opening, nobody waits for its writer.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


class NoFileError(OSError):
    """What was to be read is no file; strerror says what it is."""


def kind_of(mode: int) -> str | None:
    """Say what is no file to be read to its end, by its st_mode; None of a file."""
    if stat.S_ISREG(mode):
        return None
    return next((kind for is_kind, kind in _NO_FILES if is_kind(mode)), "no file")


def check(path: str | Path) -> None:
    """Look at a file without opening it.

    Raises:
        NoFileError: it is something else.
        OSError: it cannot be looked at.
    """
    _refuse(os.stat(path).st_mode, path)


def opened(path: str | Path) -> IO[bytes]:
    """Open a file for reading, and nothing that is none.

    Raises:
        NoFileError: it is something else.
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
    """Look at the file that a URL names, or the archive that it names a member of; what is not here passes.

    Raises:
        NoFileError: it is something else.
        OSError: it cannot be looked at.
    """
    path = path_of(url)
    if path is not None:
        check(path)


def path_of(url: str) -> Path | None:
    """Return the path that a file URL names, or a plain path itself; of a member of an archive the archive's."""
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
