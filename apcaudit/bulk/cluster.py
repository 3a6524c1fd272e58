"""Spreads images over the machines of a Dask cluster; nothing of it is needed on one machine."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

from apcaudit.bulk import worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.extra import load
from apcaudit.bulk.outcome import Outcome, Settings
from apcaudit.bulk.pool import Stage
from apcaudit.errors import ApcAuditError

_TOPIC = "apcaudit"


def run(
    evidence: Sequence[Evidence], settings: Settings, stage: Stage, scheduler: str
) -> Generator[Outcome, None, None]:
    """Scan images, yielding what became of each as it is known.

    Args:
        evidence: the images.
        settings: what holds for all.
        stage: told what each worker is at.
        scheduler: address of a Dask scheduler; its workers need the same paths.

    Raises:
        ApcAuditError: the scheduler cannot be reached, or went away.
    """
    distributed = load("distributed")
    try:
        client = distributed.Client(scheduler, set_as_default=False, timeout="5s")
    except (OSError, ValueError) as error:
        raise ApcAuditError(f"no Dask scheduler answers at {scheduler}: {error}") from error
    with client:
        yield from _spread(distributed, client, evidence, settings, stage)


def _spread(
    distributed: Any, client: Any, evidence: Sequence[Evidence], settings: Settings, stage: Stage
) -> Generator[Outcome, None, None]:
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
    return worker.scan_or_fail(evidence, settings, stage)


def _why(error: BaseException) -> str:
    if type(error).__name__ == "KilledWorker":
        return "its worker was killed each time that one worked on it"
    return worker.why(error)
