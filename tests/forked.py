"""A program in a fork of this process: a process of its own, without the second that it takes to import vol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def run(main: Callable[[], object], *, cwd: Path | None = None, seconds: int = 120) -> subprocess.CompletedProcess[str]:
    """Run a program's main function as its process would; give its exit code and what it wrote, which is UTF-8.

    It is ended, as by SIGALRM, where it takes longer than so many seconds.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            _become(main, out.fileno(), err.fileno(), cwd)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        written = []
        for stream in (out, err):
            stream.seek(0)
            written.append(stream.read().decode())
        return subprocess.CompletedProcess((), code, *written)


def _become(main: Callable[[], object], out: int, err: int, cwd: Path | None) -> NoReturn:
    """Be that process and end, whatever happens: no test goes on in it, and nothing of its parent's is removed."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
        if cwd is not None:
            os.chdir(cwd)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
