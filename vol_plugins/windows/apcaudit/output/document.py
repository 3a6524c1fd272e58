"""The audit of one image as one value: facts about the image, its threads with their findings, and JSON of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from .. import windows
from ..findings import Audited, AuditedApc, Severity
from ..formats.text import moment
from ..members import ThreadMembers
from ..model import Apc, BugCheck, Facts, View

if TYPE_CHECKING:
    from ..modules.driver import Driver
    from ..modules.module_list import UnloadedDriver


CREATED, EXITED = "created", "exited"


def created(members: ThreadMembers, facts: Facts) -> int | None:
    """Return when a thread was created in FILETIME ticks of 100 ns, None if unknown."""
    return (members.create_time >> facts.create_time_shift or None) if members.create_time else None


def exited(members: ThreadMembers) -> int | None:
    """Return when a thread ended in FILETIME ticks of 100 ns, None for a live thread.

    ExitTime is in a union with LpcReplyChain or KeyedWaitChain, which a live thread uses (public PDBs).
    """
    return (members.exit_time or None) if members.state == windows.TERMINATED else None


def timeline(audited: Audited, facts: Facts) -> Iterator[tuple[str, str, datetime]]:
    """Yield (description, `created` or `exited`, time) for a reported thread."""
    thread = audited.thread
    members = thread.members
    codes = {finding.code for finding in audited.all_findings}
    text = f"APC audit: thread {members.tid} of {thread.owner or 'an unknown process'}, _ETHREAD {thread.address:#x}"
    text += f": {', '.join(sorted(codes))}" if codes else ""
    for kind, time in ((CREATED, created(members, facts)), (EXITED, exited(members))):
        at = moment(time)
        if at is not None:
            yield text, kind, at


SCHEMA = 2
"""Version of the JSON: raised when the meaning of a key changes or a key is removed, not when keys are added.

Version 1: addresses and times were numbers, which jq and JavaScript round above 2^53.
Version 2: addresses are hexadecimal text, times ISO 8601.
"""

HEXADECIMAL = frozenset(
    {
        *("address", "thread", "head", "ended_at", "broken_at", "led_to", "found_at", "return_address", "arguments"),
        *("normal_context", "system_argument1", "system_argument2", "argument"),
        *("kernel_base", "crashing_thread", "parameters", "base", "start", "end"),
        *("process", "apc_process", "saved_process", "start_address", "win32_start_address"),
        *("kernel_stack", "initial_stack", "stack_base", "stack_limit", "create_time", "exit_time"),
        *(f"{entry}_{link}" for entry in ("thread_list", "irp_list") for link in ("flink", "blink")),
        *(
            f"{state}_{mode}_{link}"
            for state in ("apc", "saved")
            for mode in ("kernel", "user")
            for link in ("flink", "blink")
        ),
        *(f"{apc}_apc_{member}" for apc in ("suspend", "teb") for member in ("thread", "kernel", "rundown", "normal")),
    }
)
"""The fields with addresses and other 64-bit numbers, wherever they are: text in the JSON, hexadecimal as `0x8ab54388`.

A field that holds no number, such as the name of a thread's process, is not changed.
"""

TIMES = ("created", "exited", "system_time")
"""The fields with FILETIME ticks that are text in ISO 8601 in the JSON, see time_json."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts about the image as a whole; addresses are virtual, None is unknown.

    `version` is (major, minor, build). `symbols` names the symbol file, `borrowed_types` the symbol file from which
    structures that it lacks were taken. `system_time` is in FILETIME ticks of 100 ns. `complete` says for each view
    (`processes`, `modules`, `cid`) whether it was read to its end. `lacks` names the thread members that this Windows
    lacks, `partial` is whether the image holds only parts of memory, `scanned` whether physical memory was searched.
    `up_time` is the time since the machine's start in ticks of 100 ns. `crash` is the line on the bugcheck: name,
    parameters with their meaning, time, uptime, version, processor. `drivers` are the loaded modules, then the images
    that the module list lacks and that code in this document lies in.
    """

    kernel_base: int
    bits: int
    version: tuple[int, int, int] | None
    symbols: str
    borrowed_types: str | None
    processors: int
    system_time: int | None
    up_time: int | None
    bugcheck: BugCheck | None
    crash: str | None
    crashing_thread: int | None
    partial: bool
    scanned: bool
    complete: Mapping[str, bool]
    lacks: tuple[str, ...]
    drivers: tuple[Driver, ...]
    unloaded: tuple[UnloadedDriver, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """An audit: facts about the image, the audited threads in the order of the rows, and notes.

    `facts` are those that the checks and the table's columns need. `notes` say what was wrong with the views.
    """

    image: ImageFacts
    facts: Facts
    threads: tuple[Audited, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Return the document as JSON text; docs/document.schema.json describes it."""
        return json.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the document as values for json.dumps: addresses are hexadecimal text, unknown is null."""
        return {
            "schema": SCHEMA,
            "image": plain(self.image),
            "notes": list(self.notes),
            "threads": [thread_json(audited, self.facts) for audited in self.threads],
        }


TOLD = tuple(field.name for field in fields(Audited) if field.name not in ("thread", "apcs"))
"""The fields of Audited that the JSON has of a thread beside those of the thread itself."""


def thread_json(audited: Audited, facts: Facts) -> dict[str, Any]:
    """Return a thread with its queues and findings as values for json.dumps.

    Its `severity` is the highest among the findings of the thread and its APCs.
    """
    thread = audited.thread
    # Each target is told beside its APC; what the APCs would run that nothing delivers is not looked up.
    names = (field.name for field in fields(thread) if field.name != "targets")
    result: dict[str, Any] = {name: _field(name, getattr(thread, name)) for name in names}
    for each in result["lost"]:
        each["target"] = None
    result["views"] = [view.value for view in View if view in thread.views]
    result["created"] = time_json(created(thread.members, facts))
    result["exited"] = time_json(exited(thread.members))
    result["severity"] = str(audited.severity)
    for name in TOLD:
        result[name] = plain(getattr(audited, name))
    for queue, described in zip(thread.queues, result["queues"], strict=True):
        described["apcs"] = [apc_json(apc, audited.get(apc)) for apc in queue.apcs]
    return result


def apc_json(apc: Apc, audited: AuditedApc) -> dict[str, Any]:
    """Return an APC with its findings, origin and reason for being queued as values for json.dumps."""
    return {**plain(apc), "kind": apc.kind, **plain(audited)}


def time_json(filetime: int | None) -> str | None:
    """Return FILETIME ticks as a time in ISO 8601, hexadecimal if beyond the year 9999; None stays None."""
    at = moment(filetime)
    return _hexadecimal(filetime) if at is None else at.isoformat(timespec="microseconds")


def _field(name: str, value: Any) -> Any:
    if name in TIMES:
        return time_json(value)
    return _hexadecimal(value) if name in HEXADECIMAL else plain(value)


def _hexadecimal(value: Any) -> Any:
    """Convert a number, or each of several; another value as `plain` does."""
    if isinstance(value, tuple) and not hasattr(value, "_asdict"):
        return [_hexadecimal(each) for each in value]
    return f"{value:#x}" if type(value) is int else plain(value)


def plain(value: Any) -> Any:
    """Convert a value of the audit to dictionaries, lists, numbers and text; fields keep their names."""
    if isinstance(value, Severity):
        return str(value)
    if isinstance(value, Enum):
        return value.value if isinstance(value, str) else value.name.lower().replace("_", "-")
    if is_dataclass(value):
        return {field.name: _field(field.name, getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _field(key, each) for key, each in value._asdict().items()}
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(each) for each in value)
    return value
