"""Full disks: telling them from other errors, and reporting them with advice."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from apcaudit.errors import ApcAuditError

_SQLITE_FULL = "database or disk is full"
"""SQLite's message for a full disk (SQLITE_FULL, "Result and Error Codes"); vol's index is an SQLite database."""

_FULL = {errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])}
"""Errors of a full disk, of a limit of file sizes (`ulimit -f`) and of a quota."""

CACHE_ADVICE = "free some, or name another folder for caches with XDG_CACHE_HOME"


class NoRoomError(ApcAuditError):
    """A disk is full: the text says where, and what to do."""


@contextlib.contextmanager
def report_full(folder: Path, advice: str) -> Iterator[None]:
    """Turn errors of a full disk in the body into NoRoomError.

    Args:
        folder: the folder that the body writes to.
        advice: what the user can do.

    Raises:
        NoRoomError: the folder's disk is full.
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
