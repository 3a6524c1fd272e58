"""The process that touches images: it has everything imported, and forks for each request.

Requests and answers are JSON lines on stdin and stdout; an answer counts when the process that gave it has ended.
Nothing but text comes back of a process that read hostile bytes. Where there is no fork it answers one request and
ends.
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

from apcaudit import framework
from apcaudit.bulk import processes, symbol_folders
from apcaudit.bulk.reader_cache import ReaderCache
from apcaudit.bulk.room import CACHE_ADVICE, NoRoomError, needed
from apcaudit.bulk.unpack import image_of, is_packed
from apcaudit.errors import ApcAuditError

_CAN_FORK = sys.platform == "linux"

_OWN_EXIT = 0

_LAST_WORDS = 4096
"""Bytes that are taken of what a child says to its parent."""

_NEAR = 0.8
"""Part of the memory limit from which a process is said to have come near it."""


class Answers:
    """Writes answers on what was stdout; prints of anybody else go to stderr."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **answer: Any) -> None:
        """Send one answer."""
        json.dump(answer, self._file)
        self._file.write("\n")
        self._file.flush()

    def stage(self, name: str) -> None:
        """Say what the process is at."""
        self.send(stage=name)


def main() -> None:
    """Answer requests until stdin ends; the arguments are a JSON object."""
    start = json.loads(sys.argv[1])
    answers = Answers()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Whoever asks ends us. Where a signal goes to every process, as when a machine shuts down, our end would look
        # like the image's failure.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    processes.adopt()
    symbols = tuple(Path(each) for each in start["symbols"])
    cache = ReaderCache(Path(start["own"]), Path(start["cache"]))
    symbol_folders.look_into(*symbols)
    with _limited(start["index_memory"]), _ending_with_asker(), _telling_of_no_room(cache):
        framework.prepare(symbols, cache, offline=start["offline"])
        if _CAN_FORK:
            # What could not be indexed is read again here.
            framework.share()
    # Not through sys.stdin, which would read ahead what belongs to nobody after a fork.
    with os.fdopen(0, "rb", buffering=0, closefd=False) as requests:
        while line := requests.readline():
            request = json.loads(line)
            if not _CAN_FORK:
                handle(request, answers)
                cache.keep()
                return
            _fork(request, answers, cache)


@contextlib.contextmanager
def _limited(memory: int) -> Iterator[None]:
    """Limit this process meanwhile: vol unpacks each symbol file whole to index it, and passes by what does not fit."""
    if not _CAN_FORK:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _telling_of_no_room(cache: ReaderCache) -> Iterator[None]:
    """End in one line, which our asker takes for the reason, where the cache's disk is full."""
    try:
        with needed(cache.shared, CACHE_ADVICE):
            yield
    except NoRoomError as error:
        sys.exit(str(error))


@contextlib.contextmanager
def _ending_with_asker() -> Iterator[None]:
    """End meanwhile when whoever asks is gone: a large index of symbol files takes minutes, and nobody waits for it."""
    if not _CAN_FORK:
        yield
        return
    done, tell = os.pipe()
    watch = threading.Thread(target=_end_unless_done, args=(done,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        # The thread must be gone before there is a fork.
        os.close(tell)
        watch.join()
        os.close(done)


def _end_unless_done(done: int) -> None:
    poll = select.poll()
    poll.register(done, 0)
    poll.register(0, 0)
    if done not in dict(poll.poll()):
        os._exit(1)


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
        os.write(theirs, symbol_file.encode()[:_LAST_WORDS])
        os._exit(_OWN_EXIT)
    os.close(theirs)
    last_words = _last_words(ours)
    if last_words is None:
        processes.end_children()
        shutil.rmtree(request["scratch"], ignore_errors=True)
        os._exit(1)
    os.close(ours)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # Nothing that it has started outlives it.
    processes.end_children()
    if status < 0:
        answers.send(failed=f"its process was killed by signal {signal.Signals(-status).name}")
    elif status != _OWN_EXIT:
        answers.send(failed=f"its process ended with exit code {status}")
    # What came before is this image's, what comes after is the next one's.
    answers.send(ended=True)
    if status == _OWN_EXIT and last_words:
        # All that it does is save time, and a file that cannot be read is the next image's failure.
        with contextlib.suppress(Exception):
            framework.learn(last_words.decode())


def _last_words(child: int) -> bytes | None:
    """Return what the child writes to its pipe before it ends; None when our asker's end of stdin closes first."""
    poll = select.poll()
    poll.register(child, select.POLLIN)
    poll.register(0, 0)
    said = b""
    while True:
        ready = dict(poll.poll())
        if child in ready:
            block = os.read(child, _LAST_WORDS)
            if not block:
                return said
            said = (said + block)[:_LAST_WORDS]
        elif ready:
            return None


def _limit(memory: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        # When the machine runs out of memory, the kernel is to end this process and not the worker above it.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def handle(request: dict[str, Any], answers: Answers) -> str:
    """Do what is asked: unpack and hash a file, audit one, or identify its kernel; whatever goes wrong is an answer.

    Gives the URL of the symbol file that the image needed, nothing where none was read.
    """
    symbol_file = ""
    try:
        if request["do"] == "hash":
            path, member = Path(request["path"]), request["member"]
            file, image, size = image_of(path, member, Path(request["scratch"]), answers.stage)
            answers.send(done={"file": str(file), "image": image, "size": size})
        elif request["do"] == "identify":
            answers.send(done=_identify(request, answers))
        else:
            file, image = Path(request["file"]), request["image"]
            rules = None if request["rules"] is None else Path(request["rules"])
            given: dict[str, Any] = {"rules": rules, "skip_broken": request["skip_broken_rules"]}
            contents = framework.read(image, file, scan=request["scan"], stage=answers.stage, **given)
            done, symbol_file = dataclasses.asdict(contents), contents.symbol_file
            done["short"] = short = _short_of_memory(request["memory"])
            done["notes"] = (*done["notes"], f"{short}: parts may be missing") if short else done["notes"]
            answers.send(done=done)
    except MemoryError:
        answers.send(failed=f"it needs more memory than the limit of {request['memory'] >> 20} MiB (--memory)")
    except NoRoomError as error:
        answers.send(failed=str(error), passing=True)
    except (ApcAuditError, OSError) as error:
        _send_failure(str(error), request, answers)
    except Exception as error:
        # An image of whatever bytes must not end the scan of the others: anything unforeseen is its own failure.
        _send_failure(f"{type(error).__name__}: {error}", request, answers)
    return symbol_file


def _send_failure(text: str, request: dict[str, Any], answers: Answers) -> None:
    short = _short_of_memory(request["memory"])
    answers.send(failed=" ".join(f"{short}: {text}".split() if short else text.split()))


def _short_of_memory(limit: int) -> str | None:
    """Say that the process came near its limit in bytes: vol takes a MemoryError for a layer that does not fit."""
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
    reason: str | None = None
    try:
        kernel = framework.identify(path)
    except framework.NoKernelError as error:
        kernel, reason = error.kernel, str(error)
    return {
        "kernel": None if kernel is None else dataclasses.asdict(kernel),
        "present": reason is None,
        "reason": reason,
    }


if __name__ == "__main__":
    main()
