"""The command in this process: what it prints and its exit code, without the second that a process of its own takes."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType

import pytest

from apcaudit.cli import main


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class TooLongError(BaseException):
    """A command did not end."""


def run(capsys: pytest.CaptureFixture[str], *arguments: object, seconds: int = 60) -> Done:
    """Run the command; raise TooLongError, which nothing in it catches, where it takes longer than so many seconds."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooLongError(f"apcaudit {' '.join(map(str, arguments))} takes more than {seconds} s")

    capsys.readouterr()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        code = main([*map(str, arguments)])
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    printed = capsys.readouterr()
    return Done(code, printed.out, printed.err)
