"""Preparing stdin, stdout and stderr, so that missing characters or a closed stream cause no traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from apcaudit.errors import ApcAuditError


class _Closed(io.TextIOBase):
    """Replaces a closed stdout: printing raises an error, since the output would be lost."""

    def write(self, _text: str, /) -> int:
        raise ApcAuditError("standard output is closed")


def prepare() -> None:
    r"""Make the streams accept any text, and reserve the descriptors of closed streams.

    Characters that an encoding lacks are written as `\uNNNN`. Rows on stdin are JSON, which is UTF-8 (RFC 8259, 8.1).
    """
    for number in range(3):
        _hold(number)
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        # Without stderr Python would print errors on stdout.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8")


def _hold(number: int) -> None:
    """Reserve a closed descriptor, since the next opened file would get it and receive what is written to the stream.

    It is opened read-only, so that writing to it by its path is an error.
    """
    try:
        os.fstat(number)
    except OSError:
        with contextlib.suppress(OSError):
            held = os.open(os.devnull, os.O_RDONLY)
            if held != number:
                os.close(held)
