"""The audit of one image as one value: facts about the image, its threads with their findings, and JSON of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from .model import Apc, Audited, BugCheck, QueueName, View
from .severity import Severity
from .timeline import created, exited

if TYPE_CHECKING:
    from .drivers.driver import Driver
    from .drivers.unloaded import UnloadedDriver
    from .model import Facts

SCHEMA = 1
"""Version of the JSON: raised when a key changes its meaning or goes; new keys may come without."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What was found out about the image as a whole; addresses are virtual, None is unknown.

    `version` is (major, minor, build). `symbols` names the symbol file, `borrowed_types` the one that structures were
    taken from which that one lacks. `system_time` is in FILETIME ticks of 100 ns. `complete` tells by view whether it
    was read to its end: `processes`, `modules`, `cid`. `lacks` are the thread members that this Windows lacks,
    `partial` whether the image holds parts of memory only, `scanned` whether physical memory was searched.
    `drivers` are the loaded modules, then the images that the list lacks and that code of the document lies in.
    """

    kernel_base: int
    bits: int
    version: tuple[int, int, int] | None
    symbols: str
    borrowed_types: str | None
    processors: int
    system_time: int | None
    bugcheck: BugCheck | None
    crashing_thread: int | None
    partial: bool
    scanned: bool
    complete: Mapping[str, bool]
    lacks: tuple[str, ...]
    drivers: tuple[Driver, ...]
    unloaded: tuple[UnloadedDriver, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """An audit: the image, the audited threads in the order of the rows, and what the views themselves suffered from.

    `facts` is what the checks and the table's columns know of the image.
    """

    image: ImageFacts
    facts: Facts
    threads: tuple[Audited, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document as values that json.dumps takes: addresses are numbers, unknown is null."""
        return {
            "schema": SCHEMA,
            "image": plain(self.image),
            "notes": list(self.notes),
            "threads": [thread_json(audited, self.facts) for audited in self.threads],
        }


def thread_json(audited: Audited, facts: Facts) -> dict[str, Any]:
    """Return a thread with its queues and findings as values that json.dumps takes.

    Times are FILETIME ticks of 100 ns; `severity` is the highest among the findings of the thread and its APCs.
    """
    thread = audited.thread
    result: dict[str, Any] = plain(thread)
    findings = [*audited.findings, *(each for found in audited.apc_findings.values() for each in found)]
    result["views"] = [view.value for view in View if view in thread.views]
    result["created"] = created(thread.members, facts)
    result["exited"] = exited(thread.members)
    result["yara"] = audited.yara
    result["yara_hits"] = plain(audited.yara_hits)
    result["severity"] = str(max((finding.severity for finding in findings), default=Severity.INFO))
    result["findings"] = plain(audited.findings)
    for queue, described in zip(thread.queues, result["queues"], strict=True):
        described["apcs"] = [apc_json(apc, audited.apc_findings) for apc in queue.apcs]
    return result


def apc_json(apc: Apc, findings: Mapping[tuple[QueueName, int], tuple[Any, ...]]) -> dict[str, Any]:
    """Return an APC with its findings as values that json.dumps takes."""
    result: dict[str, Any] = plain(apc)
    result["kind"] = apc.kind
    result["findings"] = plain(findings.get((apc.queue, apc.address), ()))
    return result


def plain(value: Any) -> Any:
    """Turn the audit's values into dictionaries, lists, numbers and text; the fields keep their names."""
    if isinstance(value, Severity):
        return str(value)
    if isinstance(value, Enum):
        return value.value if isinstance(value, str) else value.name.lower().replace("_", "-")
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: plain(each) for key, each in value._asdict().items()}
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(each) for each in value)
    return value
