"""The command's own streams: what a terminal's encoding lacks, and what is closed, must not end it with a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from apcaudit.errors import ApcAuditError


class _Closed(io.TextIOBase):
    """In the place of a stdout that is closed: whoever prints ends, since nobody would see it."""

    def write(self, _text: str, /) -> int:
        raise ApcAuditError("standard output is closed")


def prepare() -> None:
    r"""Make the streams fit for any text, and keep the numbers of those that are closed from files.

    Characters that stdout lacks are written as `\uNNNN`. Rows on stdin are JSON, which is UTF-8 (RFC 8259, 8.1).
    """
    for number in range(3):
        _hold(number)
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        # Python would print on stdout what is for no stderr.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8")


def _hold(number: int) -> None:
    """Keep a descriptor that is closed from the next file that is opened: whoever writes to stderr would write into it.

    It can be read only, so that what is written to it by its name is an error.
    """
    try:
        os.fstat(number)
    except OSError:
        with contextlib.suppress(OSError):
            held = os.open(os.devnull, os.O_RDONLY)
            if held != number:
                os.close(held)
