"""Scanning images on this machine: threads that each wait for a process that reads an image."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from apcaudit.bulk import worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.outcome import Outcome, Settings
from apcaudit.bulk.readers import Readers

Stage = Callable[[str, str, str], None]
"""Called with worker, source and stage when a stage begins."""


@contextlib.contextmanager
def threads(count: int, readers: Readers) -> Iterator[ThreadPoolExecutor]:
    """Provide threads that wait for reader processes; at the end all of these processes are ended."""
    executor = ThreadPoolExecutor(count, thread_name_prefix="worker")
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        # The processes first, since the threads wait for them.
        readers.stop()
        executor.shutdown()
        readers.reopen()


@contextlib.contextmanager
def opened(settings: Settings, count: int) -> Iterator[ThreadPoolExecutor]:
    """Start `count` reader processes, which load what they need while this process goes on."""
    with threads(count, worker.readers) as executor:
        worker.readers.prepare(settings, count)
        yield executor


def run(
    executor: ThreadPoolExecutor, evidence: Sequence[Evidence], settings: Settings, stage: Stage
) -> Generator[Outcome, None, None]:
    """Scan images, yielding the outcome of each when it is known.

    Args:
        executor: from opened().
        evidence: the images.
        settings: those of the scan.
        stage: called when a worker begins a stage, by one thread at a time.

    Raises:
        NoRoomError: there is no room for results.
        OSError: results cannot be written.
    """
    lock = threading.Lock()

    def scanned(each: Evidence) -> Outcome:
        name = threading.current_thread().name

        def tell(at: str) -> None:
            with lock:
                stage(name, each.source, at)

        return worker.scan_or_fail(each, settings, tell)

    for future in as_completed([executor.submit(scanned, each) for each in evidence]):
        yield future.result()
