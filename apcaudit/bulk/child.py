"""The process that reads images: it has imported everything, and forks a child for each request.

Requests and answers are JSON lines on stdin and stdout. An answer counts once the child that gave it has ended. Only
text comes back from a process that read hostile bytes. Where there is no fork, the process answers one request itself
and ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apcaudit.bulk import framework, processes, symbol_folders
from apcaudit.bulk.reader_cache import ReaderCache
from apcaudit.bulk.room import CACHE_ADVICE, NoRoomError, report_full
from apcaudit.bulk.unpack import image_of, is_packed, taken_by_vol
from apcaudit.errors import ApcAuditError

_OWN_EXIT = 0

_WORTH = 2
"""The number of audits at which what they share is loaded before the fork: a scan of one image needs less."""

_REPORT_BOUND = 4096
"""How many bytes of a child's report are kept."""

_NEAR = 0.8
"""The fraction of the memory limit above which a process counts as having come near it."""


class Answers:
    """Writes answers to the original stdout; everything that other code prints goes to stderr."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **answer: Any) -> None:
        """Send one answer."""
        json.dump(answer, self._file)
        self._file.write("\n")
        self._file.flush()

    def progress(self, text: str) -> None:
        """Send how far a stage is."""
        self.send(progress=text)

    def stage(self, name: str) -> None:
        """Send the stage that begins."""
        self.send(stage=name)


def main() -> None:
    """Answer requests until stdin ends; the command line's argument is a JSON object."""
    start = json.loads(sys.argv[1])
    answers = Answers()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # The parent process ends this one. If a signal to all processes ended it, as at a shutdown, that would look
        # like a failure of the image.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    processes.adopt()
    symbols = tuple(Path(each) for each in start["symbols"])
    cache = ReaderCache(Path(start["own"]), Path(start["cache"]))
    symbol_folders.look_into(*symbols)
    forks = start["forks"]
    with contextlib.ExitStack() as stack:
        if forks:
            stack.enter_context(_limited(start["index_memory"]))
            stack.enter_context(_ending_with_parent())
        stack.enter_context(_exiting_when_full(cache))
        framework.prepare(symbols, cache, offline=start["offline"])
        if forks:
            # What could not be indexed is read again here.
            framework.prepare_for_forks()
    # Not through sys.stdin, whose read-ahead buffer would be copied by a fork.
    audits = 0
    with os.fdopen(0, "rb", buffering=0, closefd=False) as requests:
        while line := requests.readline():
            request = json.loads(line)
            if not forks:
                handle(request, answers)
                cache.keep()
                return
            audits += request["do"] == "audit"
            if audits == _WORTH and request["do"] == "audit":
                _prepare_audit(request)
            _fork(request, answers, cache)


@contextlib.contextmanager
def _limited(memory: int) -> Iterator[None]:
    """Limit this process's memory in bytes meanwhile; vol skips symbol files that it cannot unpack within the limit."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _exiting_when_full(cache: ReaderCache) -> Iterator[None]:
    """Exit with one line on stderr, which the parent gives as the reason, where the cache's disk is full."""
    try:
        with report_full(cache.shared, CACHE_ADVICE):
            yield
    except NoRoomError as error:
        sys.exit(str(error))


@contextlib.contextmanager
def _ending_with_parent() -> Iterator[None]:
    """Exit meanwhile if the parent has ended: indexing many symbol files takes minutes, and nobody waits any more."""
    done, tell = os.pipe()
    watch = threading.Thread(target=_end_unless_done, args=(done,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        # The thread must have ended before a fork.
        os.close(tell)
        watch.join()
        os.close(done)


def _end_unless_done(done: int) -> None:
    poll = select.poll()
    poll.register(done, 0)
    poll.register(0, 0)
    if done not in dict(poll.poll()):
        os._exit(1)


def _prepare_audit(request: dict[str, Any]) -> None:
    # It only saves time: what cannot be loaded or used will be the failure of the image, or a note.
    with contextlib.suppress(Exception):
        framework.prepare_audit(_path_of(request["rules"]), skip_broken=request["skip_broken_rules"])


def _path_of(path: str | None) -> Path | None:
    return None if path is None else Path(path)


def _fork(request: dict[str, Any], answers: Answers, cache: ReaderCache) -> None:
    cache.clear()
    ours, theirs = os.pipe()
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        processes.end_with(server)
        os.close(ours)
        _limit(request["memory"])
        symbol_file = handle(request, answers)
        cache.keep()
        os.write(theirs, symbol_file.encode()[:_REPORT_BOUND])
        os._exit(_OWN_EXIT)
    os.close(theirs)
    report = _wait_for_report(ours)
    if report is None:
        processes.end_children()
        shutil.rmtree(request["scratch"], ignore_errors=True)
        os._exit(1)
    os.close(ours)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # Processes that the child has started must not outlive it.
    processes.end_children()
    if status < 0:
        answers.send(failed=f"its process was killed by signal {signal.Signals(-status).name}")
    elif status != _OWN_EXIT:
        answers.send(failed=f"its process ended with exit code {status}")
    # Answers before this one belong to this image, answers after it to the next.
    answers.send(ended=True)
    if status == _OWN_EXIT and report:
        # It only saves time, and a file that cannot be read will be the next image's failure.
        with contextlib.suppress(Exception):
            framework.count_use(report.decode())


def _wait_for_report(child: int) -> bytes | None:
    """Return what the child writes to its pipe before it ends; None if the parent's end of stdin closes first."""
    poll = select.poll()
    poll.register(child, select.POLLIN)
    poll.register(0, 0)
    said = b""
    while True:
        ready = dict(poll.poll())
        if child in ready:
            block = os.read(child, _REPORT_BOUND)
            if not block:
                return said
            said = (said + block)[:_REPORT_BOUND]
        elif ready:
            return None


def _limit(memory: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        # When the machine runs out of memory, the kernel should kill this process and not the worker above it.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def handle(request: dict[str, Any], answers: Answers) -> str:
    """Handle a request: unpack and hash a file, audit one, or identify its kernel; errors are sent as answers.

    Returns:
        The URL of the symbol file that the image needed, empty where none was read.
    """
    symbol_file = ""
    try:
        if request["do"] == "hash":
            path, member = Path(request["path"]), request["member"]
            file, image, size = image_of(path, member, Path(request["scratch"]), answers.stage)
            answers.send(done={"file": str(file), "image": image, "size": size, "cut": framework.how_cut(file, size)})
        elif request["do"] == "identify":
            answers.send(done=_identify(request, answers))
        else:
            file, image = Path(request["file"]), request["image"]
            given: dict[str, Any] = {"rules": _path_of(request["rules"]), "skip_broken": request["skip_broken_rules"]}
            given |= {"scan": request["scan"], "stage": answers.stage, "progress": answers.progress}
            contents = framework.read(image, file, **given)
            done, symbol_file = dataclasses.asdict(contents), contents.symbol_file
            done["short"] = short = _short_of_memory(request["memory"])
            done["notes"] = (*done["notes"], f"{short}: parts may be missing") if short else done["notes"]
            answers.send(done=done)
    except MemoryError:
        text = f"it needs more memory than the limit of {request['memory'] >> 20} MiB (--memory)"
        answers.send(failed=text, header=_header(request))
    except NoRoomError as error:
        answers.send(failed=str(error), temporary=True)
    except (ApcAuditError, OSError) as error:
        _send_failure(str(error), request, answers)
    except Exception as error:
        # No image may end the scan of the others: an unforeseen error is the failure of this image.
        _send_failure(f"{type(error).__name__}: {error}", request, answers)
    return symbol_file


def _send_failure(text: str, request: dict[str, Any], answers: Answers) -> None:
    short = _short_of_memory(request["memory"])
    answers.send(failed=" ".join(f"{short}: {text}".split() if short else text.split()), header=_header(request))


def _header(request: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the headers of an image that failed tell, None where they tell nothing."""
    if request["do"] != "audit":
        return None
    # The image has failed already, for a reason that is sent.
    with contextlib.suppress(Exception):
        header = framework.read_header(request["image"], Path(request["file"]))
        return None if header is None else dataclasses.asdict(header)
    return None


def _short_of_memory(limit: int) -> str | None:
    """Say so if the process came near its limit in bytes: vol takes a MemoryError for a layer that does not fit."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = int(status.partition("VmPeak:")[2].split()[0]) << 10
    except (OSError, IndexError, ValueError):
        return None
    if peak < _NEAR * limit:
        return None
    return f"it needs, or nearly needs, more memory than the limit of {limit >> 20} MiB (--memory)"


def _identify(request: dict[str, Any], answers: Answers) -> dict[str, Any]:
    path = Path(request["path"])
    if is_packed(path, request["member"]):
        path = image_of(path, request["member"], Path(request["scratch"]), answers.stage)[0]
    else:
        path = taken_by_vol(path, Path(request["scratch"]))
    reason: str | None = None
    try:
        kernel = framework.identify(path, answers.progress)
    except framework.NoKernelError as error:
        kernel, reason = error.kernel, str(error)
    return {
        "kernel": None if kernel is None else dataclasses.asdict(kernel),
        "present": reason is None,
        "reason": reason,
    }


if __name__ == "__main__":
    main()
