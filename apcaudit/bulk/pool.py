"""Spreads images over this machine: a thread for each that is read at once, which waits for the process that reads."""

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
"""Told which worker is at which source and stage."""


@contextlib.contextmanager
def threads(count: int, readers: Readers) -> Iterator[ThreadPoolExecutor]:
    """Give threads to wait for processes in; on the way out the processes end, also those that read an image."""
    executor = ThreadPoolExecutor(count, thread_name_prefix="worker")
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        # Before the threads, which wait for these.
        readers.stop()
        executor.shutdown()
        readers.reopen()


@contextlib.contextmanager
def opened(settings: Settings, count: int) -> Iterator[ThreadPoolExecutor]:
    """Start what reads so many images at once: it loads what it needs while this process does something else."""
    with threads(count, worker.readers) as executor:
        worker.readers.prepare(settings, count)
        yield executor


def run(
    executor: ThreadPoolExecutor, evidence: Sequence[Evidence], settings: Settings, stage: Stage
) -> Generator[Outcome, None, None]:
    """Scan images, yielding what became of each as it is known.

    Args:
        executor: from opened().
        evidence: the images.
        settings: what holds for all.
        stage: told what each worker is at, by one thread at a time.

    Raises:
        NoRoomError: there is no room for results.
        OSError: results cannot be written.
    """
    told = threading.Lock()

    def scanned(each: Evidence) -> Outcome:
        name = threading.current_thread().name

        def tell(at: str) -> None:
            with told:
                stage(name, each.source, at)

        return worker.scan_or_fail(each, settings, tell)

    for future in as_completed([executor.submit(scanned, each) for each in evidence]):
        yield future.result()
