"""The command in this process: what it prints and its exit code, without the second that a process of its own takes."""

from __future__ import annotations

import contextlib
import io
import signal
from dataclasses import dataclass
from types import FrameType

from apcaudit.cli import main


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class TooLongError(BaseException):
    """A command did not end."""


def run(*arguments: object, seconds: int = 60) -> Done:
    """Run the command; raise TooLongError, which nothing in it catches, where it takes longer than so many seconds."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooLongError(f"apcaudit {' '.join(map(str, arguments))} takes more than {seconds} s")

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2))
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*map(str, arguments)])
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Done(code, _text(out), _text(err))


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
