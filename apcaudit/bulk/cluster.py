"""Distributing images over the machines of a Dask cluster; not used for a scan on one machine."""

from __future__ import annotations

import queue
import sys
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from apcaudit.bulk import fingerprint, worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.extra import load
from apcaudit.bulk.outcome import Outcome, Settings
from apcaudit.bulk.pool import Stage
from apcaudit.bulk.room import NoRoomError
from apcaudit.errors import ApcAuditError
from apcaudit.text import one_line

_TOPIC = "apcaudit"

_LOOK = 5.0
"""Seconds between checks for new and lost workers, while no image is finished."""

_AHEAD = 3
"""How many images are submitted per image that workers read at once, so that no worker waits for its next one."""

_DEATHS = 3
"""After how many dead workers an image counts as failed, as in Dask (distributed.scheduler.allowed-failures)."""


def run(
    evidence: Sequence[Evidence], settings: Settings, stage: Stage, scheduler: str
) -> Generator[Outcome, None, None]:
    """Scan images, yielding the outcome of each when it is known; workers that differ from this machine are printed.

    Args:
        evidence: the images.
        settings: those of the scan.
        stage: called when a worker begins a stage.
        scheduler: address of a Dask scheduler; its workers need the same paths.

    Raises:
        ApcAuditError: the scheduler cannot be reached or went away, or every worker differs.
        NoRoomError: there is no room for results.
    """
    distributed = load("distributed")
    try:
        client = distributed.Client(scheduler, set_as_default=False, timeout="5s")
    except (OSError, ValueError) as error:
        raise ApcAuditError(f"no Dask scheduler answers at {scheduler}: {error}") from error
    with client:
        try:
            yield from _Distributor(client, evidence, settings, stage).outcomes()
        except (OSError, distributed.client.ClosedClientError) as error:
            raise ApcAuditError(f"{_GONE} ({worker.describe_error(error)})") from error


_GONE = "the Dask scheduler went away: the same command goes on where this one was"


class _Workers:
    """The workers of a cluster, and which of them may be given images."""

    def __init__(self, client: Any, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._alike: dict[str, bool] = {}

    def look(self) -> dict[str, int]:
        """Return the workers that do not differ from this machine, and how many images each reads at once.

        New workers are asked for their differences, which are printed.

        Raises:
            ApcAuditError: there are workers, and all differ.
        """
        threads: dict[str, int] = dict(self._client.nthreads())
        new = [address for address in threads if address not in self._alike]
        if new:
            said = self._client.run(fingerprint.differences, self._settings, workers=new, on_error="return")
            for address, differing in said.items():
                self._note(address, differing)
        alike = {address: count for address, count in threads.items() if self._alike.get(address)}
        if not alike and any(address in self._alike for address in threads):
            raise ApcAuditError("no worker is left: each needs the same versions, rules and symbol files as this one")
        return alike

    def _note(self, address: str, differing: list[str] | Exception) -> None:
        if isinstance(differing, OSError):
            # It went away meanwhile.
            return
        self._alike[address] = not differing
        if isinstance(differing, Exception):
            # The worker could not even read the request.
            differing = [f"it cannot say in what it differs ({worker.describe_error(differing)})"]
            self._alike[address] = False
        if differing:
            print(one_line(f"the worker {address} is given no images: {'; '.join(differing)}"), file=sys.stderr)


class _Distributor:
    """Submits images to the accepted workers, a few ahead, and those of dead workers to others."""

    def __init__(self, client: Any, evidence: Sequence[Evidence], settings: Settings, stage: Stage) -> None:
        self._client = client
        self._workers = _Workers(client, settings)
        self._settings = settings
        self._stage = stage
        self._waiting = deque(evidence)
        self._given: dict[Any, tuple[Evidence, set[str]]] = {}
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._begun: dict[str, float] = {}
        self._deaths: Counter[Evidence] = Counter()
        client.subscribe_topic(_TOPIC, self._heard)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcome of each image."""
        told = False
        while self._waiting or self._given:
            alike = self._workers.look()
            if not alike and not told:
                print("no worker has joined the cluster yet: waiting for one", file=sys.stderr)
                told = True
            yield from self._take_back(alike)
            while self._waiting and len(self._given) < _AHEAD * sum(alike.values()):
                each = self._waiting.popleft()
                future = self._client.submit(_task, each, self._settings, pure=False, workers=list(alike))
                self._given[future] = each, set(alike)
                future.add_done_callback(self._ended.put)
            try:
                future = self._ended.get(timeout=_LOOK)
            except queue.Empty:
                continue
            if future in self._given:
                yield self._outcome(future, self._given.pop(future)[0])

    def _heard(self, event: Any) -> None:
        message = event[1]
        self._begun.setdefault(message["source"], time.monotonic())
        self._stage(message["worker"], message["source"], message["stage"])

    def _take_back(self, alike: dict[str, int]) -> Iterator[Outcome]:
        """Take back images whose workers are all gone; an image that too many workers died of has failed."""
        for future, (each, chosen) in list(self._given.items()):
            if future.done() or not chosen.isdisjoint(alike):
                continue
            del self._given[future]
            future.cancel()
            self._deaths[each] += each.source in self._begun
            if self._deaths[each] == _DEATHS:
                yield self._killed(each)
            else:
                self._waiting.appendleft(each)

    def _outcome(self, future: Any, evidence: Evidence) -> Outcome:
        if future.status == "cancelled":
            raise ApcAuditError(_GONE)
        error = future.exception()
        if error is None:
            outcome: Outcome = future.result()
            return outcome
        if type(error).__name__ == "KilledWorker":
            return self._killed(evidence)
        if isinstance(error, NoRoomError):
            raise error
        raise ApcAuditError(f"{evidence.source}: {worker.describe_error(error)}")

    def _killed(self, evidence: Evidence) -> Outcome:
        seconds = time.monotonic() - self._begun.get(evidence.source, time.monotonic())
        reason = "its worker was killed each time that one worked on it"
        return worker.fail(evidence, self._settings, reason, "worker", seconds)


def _task(evidence: Evidence, settings: Settings) -> Outcome:
    """Scan an image on a worker."""
    here = load("distributed").get_worker()

    def stage(at: str) -> None:
        here.log_event(_TOPIC, {"worker": str(here.name), "source": evidence.source, "stage": at})

    stage("start")
    return worker.scan_or_fail(evidence, settings, stage)
