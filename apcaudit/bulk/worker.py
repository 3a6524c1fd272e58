"""Scanning one image, from its file to its results: the work of a worker, on this machine or in a cluster."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from apcaudit.bulk import fingerprint, provenance, room, scratch, store
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.isolation import ImageError, StoppedError
from apcaudit.bulk.outcome import Failed, Outcome, Scanned, Settings
from apcaudit.bulk.readers import Readers
from apcaudit.bulk.records import (
    FAILED,
    SCANNED,
    SEVERITIES,
    ApcRow,
    DriverRow,
    FindingRow,
    ImageRow,
    Records,
    ThreadRow,
)

_KNOWN = ".known"
"""Folder in the results with the SHA-256 of each file by path, size and time, so that a second run hashes no file."""

_OPENING, _OPENED = 120.0, 16 << 20
"""Limit of opening an image: seconds, and bytes per second beside that. To 2.27.0 volatility3 searches a cut crash dump
without end."""

readers = Readers()
"""The processes that read images for this one."""


def scan_or_fail(evidence: Evidence, settings: Settings, stage: Callable[[str], None]) -> Outcome:
    """Scan an image; unforeseen errors become a failure of the image too.

    Raises:
        NoRoomError: the disk of the results is full.
        OSError: results cannot be written.
        StoppedError: the whole scan ends.
    """
    started = time.monotonic()
    try:
        return scan(evidence, settings, stage)
    except (room.NoRoomError, StoppedError):
        raise
    except Exception as error:
        return fail(evidence, settings, describe_error(error), "worker", time.monotonic() - started, temporary=True)


def describe_error(error: BaseException) -> str:
    """Describe an unforeseen error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def scan(evidence: Evidence, settings: Settings, stage: Callable[[str], None] = lambda _: None) -> Outcome:
    """Audit an image and write its results, unless valid ones exist.

    Args:
        evidence: the file.
        settings: those of the scan.
        stage: called with each stage that begins.
    """
    started = time.monotonic()
    known = _known(evidence, settings)
    if known is not None:
        earlier = _earlier_outcome(evidence, known, settings)
        if earlier is not None:
            return earlier
    image: str | None = None
    size: int | None = None
    cut: str | None = None
    deadline = started + settings.timeout
    try:
        with scratch.folder(settings.scratch) as unpacked, readers.acquire(settings) as isolation:
            request: dict[str, Any] = {"memory": settings.memory, "scratch": str(unpacked)}
            asked: dict[str, Any] = {"do": "hash", "path": str(evidence.path), "member": evidence.member}
            hashed = isolation.ask(request | asked, deadline, stage)
            image, size = str(hashed["image"]), int(hashed["size"])
            cut = hashed["cut"]
            _remember(evidence, image, settings)
            earlier = _earlier_outcome(evidence, image, settings)
            if earlier is not None:
                return earlier
            asked = {"do": "audit", "file": hashed["file"], "image": image}
            asked |= {"scan": settings.scan, "rules": None if settings.rules is None else str(settings.rules)}
            asked |= {"skip_broken_rules": settings.skip_broken_rules}
            contents = isolation.ask(request | asked, deadline, stage, opening=_OPENING + size / _OPENED)
    except ImageError as error:
        seconds = time.monotonic() - started
        reason = (
            f"{error}; the crash dump {cut}" if cut and error.stage == "open" and cut not in str(error) else str(error)
        )
        found: dict[str, Any] = {"image": image, "size": size, "header": error.header}
        return fail(evidence, settings, reason, error.stage, seconds, temporary=error.temporary, **found)
    except room.NoRoomError as error:
        return fail(evidence, settings, str(error), "worker", time.monotonic() - started, temporary=True)
    stage("store")
    records = _records(evidence, image, size, contents, settings, time.monotonic() - started)
    _write(settings, records)
    row = records.image
    return Scanned(evidence.source, row.image, row.severity, row.findings, row.seconds, crash=row.crash)


def fail(
    evidence: Evidence,
    settings: Settings,
    reason: str,
    stage: str,
    seconds: float,
    *,
    image: str | None = None,
    size: int | None = None,
    temporary: bool = False,
    header: dict[str, Any] | None = None,
) -> Failed:
    """Write the row of an image that failed.

    Args:
        evidence: the file.
        settings: those of the scan.
        reason: why it failed.
        stage: the stage at which it failed.
        seconds: after how long.
        image: SHA-256 of its bytes, None where they could not be read.
        size: its size in bytes.
        temporary: whether the cause is the machine, so that the next scan tries again.
        header: what its headers tell nevertheless, the fields of contents.Header.
    """
    name = image or _path_name(evidence)
    told = header or {}
    if image is None:
        _remember(evidence, name, settings)
    row = ImageRow(
        **_common_columns(evidence, name, size, seconds),
        **provenance.describe(settings),
        settings="" if temporary else fingerprint.describe(settings, None, limits=True),
        status=FAILED,
        reason=reason,
        stage=stage,
        **(_NO_CONTENTS | {each: told[each] for each in _NO_CONTENTS.keys() & told.keys()}),
    )
    drivers = tuple(DriverRow(**each) for each in told.get("drivers", ()))
    _write(settings, Records(row, drivers=drivers))
    return Failed(evidence.source, name, reason, stage, seconds, crash=row.crash)


_NO_CONTENTS: dict[str, Any] = {
    "symbol_file": None,
    "kernel_pdb": None,
    "kernel_guid": None,
    "kernel_age": None,
    "windows": None,
    "bits": None,
    "processors": None,
    "partial": None,
    "system_time": None,
    "up_time": None,
    "bugcheck": None,
    "bugcheck_parameters": None,
    "crash": None,
    "crashing_thread": None,
    "severity": "info",
    "findings": 0,
    "notes": "",
}


def _write(settings: Settings, records: Records) -> None:
    with room.report_full(
        settings.results, "free some, and the same command goes on where this one was; nothing is lost"
    ):
        store.write(settings.results, records)


def _common_columns(evidence: Evidence, image: str, size: int | None, seconds: float) -> dict[str, Any]:
    return {
        "image": image,
        "source": evidence.source,
        "size": size,
        "seconds": seconds,
        "scanned_at": time.time(),
        "worker": f"{socket.gethostname()}:{os.getpid()}",
    }


def _records(
    evidence: Evidence, image: str, size: int, contents: dict[str, Any], settings: Settings, seconds: float
) -> Records:
    kernel = contents["kernel"] or {}
    findings = tuple(FindingRow(**row) for row in contents["findings"])
    row = ImageRow(
        **_common_columns(evidence, image, size, seconds),
        # An audit that came near its memory limit may find more with a higher one.
        **provenance.describe(settings),
        settings=fingerprint.describe(settings, kernel.get("guid"), limits=bool(contents["short"])),
        status=SCANNED,
        reason=None,
        stage=None,
        kernel_pdb=kernel.get("pdb"),
        kernel_guid=kernel.get("guid"),
        kernel_age=kernel.get("age"),
        **{
            name: contents[name]
            for name in _NO_CONTENTS.keys() & contents.keys() - {"findings", "notes", "symbol_file"}
        },
        symbol_file=provenance.symbol_file(contents["symbol_file"]) or None,
        severity=max((each.severity for each in findings), key=SEVERITIES.index, default="info"),
        findings=len(findings),
        notes="\n".join(contents["notes"]),
    )
    return Records(
        row,
        tuple(ThreadRow(**each) for each in contents["threads"]),
        tuple(ApcRow(**each) for each in contents["apcs"]),
        findings,
        tuple(DriverRow(**each) for each in contents["drivers"]),
    )


def _earlier_outcome(evidence: Evidence, image: str, settings: Settings) -> Outcome | None:
    """Return the outcome of an earlier scan if it is still valid, None if the image has to be scanned."""
    row = store.find(settings.results, image)
    if row is None:
        return None
    if row.status == SCANNED:
        if row.settings not in {
            fingerprint.describe(settings, row.kernel_guid, limits=limits) for limits in (False, True)
        }:
            return None
        return Scanned(evidence.source, image, row.severity, row.findings, row.seconds, reused=True, crash=row.crash)
    if settings.retry or row.settings != fingerprint.describe(settings, None, limits=True):
        return None
    return Failed(evidence.source, image, row.reason or "", row.stage or "", row.seconds, reused=True, crash=row.crash)


def _path_name(evidence: Evidence) -> str:
    return "path-" + hashlib.sha256(evidence.source.encode("utf-8", "surrogateescape")).hexdigest()


def _state(evidence: Evidence) -> list[Any]:
    status = evidence.path.stat()
    return [evidence.source, status.st_size, status.st_mtime_ns]


def _known(evidence: Evidence, settings: Settings) -> str | None:
    try:
        known = json.loads((settings.results / _KNOWN / _path_name(evidence)).read_text(encoding="utf-8"))
        return str(known["image"]) if known["state"] == _state(evidence) else None
    except (OSError, ValueError, KeyError):
        return None


def _remember(evidence: Evidence, image: str, settings: Settings) -> None:
    folder = settings.results / _KNOWN
    unfinished = folder / f".{scratch.unfinished_name()}"
    # This only saves time, so errors are ignored: the file may have been moved meanwhile.
    with contextlib.suppress(OSError):
        known = json.dumps({"image": image, "state": _state(evidence)})
        folder.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_text(known, encoding="utf-8")
            os.replace(unfinished, folder / _path_name(evidence))
        finally:
            unfinished.unlink(missing_ok=True)
    if image != _path_name(evidence):
        # If the file was unreadable before, remove the row of that.
        store.remove(settings.results, _path_name(evidence))
