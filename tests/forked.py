"""A program in a fork of this process: a process of its own, without the second that its imports take."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any


def run(main: Callable[[], object], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program's main function as its process would, to its end; options are those of begun."""
    with begun(main, **options) as running:
        return running.end()


class Running:
    """A program in a fork that goes on beside this process, with the files that its output goes to."""

    def __init__(self, process: int, out: IO[bytes], err: IO[bytes]) -> None:
        self._process, self._written = process, (out, err)
        self._code: int | None = None

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; give its exit code and what it wrote, which is UTF-8."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        texts = []
        for stream in self._written:
            stream.seek(0)
            texts.append(stream.read().decode())
        return subprocess.CompletedProcess((), self._code, *texts)

    def kill(self) -> None:
        """End it, if it runs."""
        if self._code is None:
            os.kill(self._process, signal.SIGKILL)
            self.end()


@contextlib.contextmanager
def begun(
    main: Callable[[], object],
    *,
    cwd: Path | None = None,
    stdin: Path = Path(os.devnull),
    stdout: int | None = None,
    closed: Collection[int] = (),
    encoding: str = "utf-8",
    variables: Mapping[str, str] | None = None,
    seconds: int = 120,
) -> Iterator[Running]:
    """Begin a program's main function as its process would; it is ended with the block.

    It is also ended, as by SIGALRM, where it takes longer than so many seconds. `stdout` is a descriptor of the test's,
    `closed` are the standard descriptors that the program does not have, `encoding` is that of its streams.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            with _ended():
                os.environ.update(variables or {})
                os.chdir(cwd or os.curdir)
                _streams(stdin, out.fileno() if stdout is None else stdout, err.fileno(), closed, encoding)
                main()
        running = Running(child, out, err)
        try:
            yield running
        finally:
            running.kill()


def apcaudit(
    *arguments: object, cache: Path, first: Callable[[], object] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the project's command with a cache of the test's; options are those of begun.

    What is to be done `first` is done in the command's process.
    """
    with start(*arguments, cache=cache, first=first, **options) as running:
        return running.end()


@contextlib.contextmanager
def start(
    *arguments: object, cache: Path, first: Callable[[], object] | None = None, **options: Any
) -> Iterator[Running]:
    """Start the project's command, which is ended with the block; arguments as of apcaudit."""
    from apcaudit.bulk import worker
    from apcaudit.bulk.readers import Readers
    from apcaudit.cli import main
    from tests.bulk_images import environment

    def command() -> None:
        # Those that read images for the test's process are not the command's to end.
        worker.readers = Readers()
        if first is not None:
            first()
        sys.exit(main([*map(str, arguments)]))

    options["variables"] = environment(cache) | options.get("variables", {})
    with begun(command, **options) as running:
        yield running


def _streams(stdin: Path, out: int, err: int, closed: Collection[int], encoding: str) -> None:
    """Give this process the standard streams that Python would make at its start."""
    given = [os.open(stdin, os.O_RDONLY), out, err]
    # What lies there now is the test's own, and goes with this process.
    for number, descriptor in enumerate(given):
        os.dup2(descriptor, number)
    for number in closed:
        os.close(number)
    streams: list[Any] = [
        None if number in closed else open(number, mode, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
        for number, (mode, errors) in enumerate((("r", "strict"), ("w", "strict"), ("w", "backslashreplace")))
    ]
    sys.stdin, sys.stdout, sys.stderr = streams


@contextlib.contextmanager
def _ended() -> Iterator[None]:
    """End this process with its block, whatever happens: no test goes on in it, nothing of its parent's is removed."""
    code = 1
    try:
        try:
            yield
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except (OSError, ValueError):
                # As Python itself ends.
                code = 120
    finally:
        os._exit(code)
