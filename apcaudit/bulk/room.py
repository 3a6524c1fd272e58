"""A full disk: what is told of it, and how it is told apart from other failures."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from apcaudit.errors import ApcAuditError

_SQLITE_FULL = "database or disk is full"
"""What SQLite, which vol keeps its index in, says of a full disk (SQLITE_FULL, "Result and Error Codes")."""

_FULL = {errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])}
"""A disk that is full, a limit of file sizes (`ulimit -f`), a quota."""

CACHE_ADVICE = "free some, or name another folder for caches with XDG_CACHE_HOME"


class NoRoomError(ApcAuditError):
    """There is no room left to write to: the text says where, and what to do."""


@contextlib.contextmanager
def needed(folder: Path, advice: str) -> Iterator[None]:
    """Write to a folder; where it is full, say so.

    Args:
        folder: what is written to.
        advice: what the user can do.

    Raises:
        NoRoomError: it is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise NoRoomError(f"no room left in {folder} ({error.strerror}): {advice}") from error
    except sqlite3.OperationalError as error:
        if str(error) != _SQLITE_FULL:
            raise
        raise NoRoomError(f"no room left in {folder} ({error}): {advice}") from error
