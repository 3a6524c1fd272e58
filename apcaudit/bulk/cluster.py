"""Spreads images over workers: in this process, on this machine's cores, or on the machines of a Dask cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from apcaudit.bulk import worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.extra import load
from apcaudit.bulk.outcome import Outcome, Settings
from apcaudit.errors import ApcAuditError

Stage = Callable[[str, str, str], None]
"""Told which worker is at which source and stage."""

_TOPIC = "apcaudit"

_HERE = "this process"


def run(
    evidence: Sequence[Evidence], settings: Settings, stage: Stage, *, scheduler: str | None, workers: int | None
) -> Generator[Outcome, None, None]:
    """Scan images, yielding what became of each as it is known.

    Args:
        evidence: the images.
        settings: what holds for all.
        stage: told what each worker is at.
        scheduler: address of a Dask scheduler; its workers need the same paths. A cluster of this machine when None.
        workers: how many images are read at once on this machine, one a core when None; 0 is one, without Dask.

    Raises:
        ApcAuditError: the scheduler cannot be reached, or went away.
    """
    if scheduler is None and workers == 0:
        for each in evidence:
            yield _scanned_here(each, settings, stage)
        return
    if scheduler is None:
        count = min(workers or os.cpu_count() or 1, max(1, len(evidence)))
        # They load what they need while this process loads Dask.
        worker.readers.prepare(settings, count)
    with contextlib.ExitStack() as stack:
        # The last thing of all, when no thread of the cluster is left.
        stack.callback(worker.readers.reopen)
        distributed = load("distributed")
        if scheduler is None:
            address: Any = stack.enter_context(_local(distributed, count))
        else:
            address = scheduler
        try:
            client = stack.enter_context(distributed.Client(address, set_as_default=False, timeout="5s"))
        except (OSError, ValueError) as error:
            raise ApcAuditError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        if scheduler is None:
            # Before the cluster ends, which waits for its threads: those wait for the processes.
            stack.callback(worker.readers.stop)
        yield from _spread(distributed, client, evidence, settings, stage)


def _scanned_here(evidence: Evidence, settings: Settings, stage: Stage) -> Outcome:
    """Scan an image for this process; whatever else goes wrong is that image's failure, as it is in Dask's workers."""
    started = time.monotonic()
    try:
        return worker.scan(evidence, settings, lambda at: stage(_HERE, evidence.source, at))
    except Exception as error:
        return worker.fail(evidence, settings, _why(error), "worker", time.monotonic() - started)


@contextlib.contextmanager
def _local(distributed: Any, count: int) -> Iterator[Any]:
    """Run a cluster in this process: a thread for each worker waits for the process in which images are read."""
    quick = {"distributed.worker.profile.enabled": False, "distributed.diagnostics.nvml": False}
    with (
        load("dask").config.set(quick),
        distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=False,
            memory_limit=None,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as local,
    ):
        yield local


def _spread(
    distributed: Any, client: Any, evidence: Sequence[Evidence], settings: Settings, stage: Stage
) -> Iterator[Outcome]:
    begun: dict[str, float] = {}

    def heard(event: Any) -> None:
        message = event[1]
        begun.setdefault(message["source"], time.monotonic())
        stage(message["worker"], message["source"], message["stage"])

    client.subscribe_topic(_TOPIC, heard)
    futures = {client.submit(_task, each, settings, pure=False): each for each in evidence}
    for future in distributed.as_completed(list(futures), loop=client.loop):
        each = futures.pop(future)
        if future.status == "cancelled":
            raise ApcAuditError("the Dask scheduler went away: the same command goes on where this one was")
        error = future.exception()
        if error is None:
            yield future.result()
        else:
            seconds = time.monotonic() - begun.get(each.source, time.monotonic())
            yield worker.fail(each, settings, _why(error), "worker", seconds)


def _task(evidence: Evidence, settings: Settings) -> Outcome:
    """Scan an image on a worker."""
    here = load("distributed").get_worker()

    def stage(at: str) -> None:
        here.log_event(_TOPIC, {"worker": str(here.name), "source": evidence.source, "stage": at})

    stage("start")
    return worker.scan(evidence, settings, stage)


def _why(error: BaseException) -> str:
    if type(error).__name__ == "KilledWorker":
        return "its worker was killed each time that one worked on it"
    return " ".join(f"{type(error).__name__}: {error}".split())
