"""Rows of results for the report's tests: a test says what matters, everything else is unknown."""

from __future__ import annotations

import functools
import hashlib
import typing
from pathlib import Path
from typing import Any, TypeVar

from apcaudit import explain
from apcaudit.bulk import store
from apcaudit.bulk.records import ApcRow, DriverRow, FindingRow, ImageRow, Records, ThreadRow
from apcaudit.reports import dataset

Row = TypeVar("Row")

EVIL = "<img src=x onerror=document.title='run'>"
"""A process name that a page must show and never obey."""


def row(kind: type[Row], /, **values: Any) -> Row:
    """Make a row: what is not given is None where the column may be, else empty or 0."""
    return kind(**_empty(kind) | values)


@functools.cache
def _empty(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    optional = {name for name, hint in hints.items() if type(None) in typing.get_args(hint)}
    return {name: None if name in optional else "" if hint is str else 0 for name, hint in hints.items()}


STOPPED = "bugcheck 0x6 (INVALID_PROCESS_DETACH_ATTEMPT), no parameters; 2026-01-02 03:04:05 UTC, Windows 5.1.2600 x86"
"""How the machine of a suspect image stopped."""


def image(number: int, **values: Any) -> ImageRow:
    """Make the row of an image that was scanned: `host-0007.dmp` for number 7."""
    name = hashlib.sha256(str(number).encode()).hexdigest()
    given = {"image": name, "source": f"/evidence/host-{number:04}.dmp", "status": "scanned", "severity": "info"}
    return row(ImageRow, **{**given, "scanned_at": 1.7e9 + number, **values})


def failed(number: int, reason: str, **values: Any) -> Records:
    """Make the results of an image that failed."""
    return Records(image(number, status="failed", reason=reason, stage="open", **values))


def suspect(
    number: int, process: str = "System", codes: tuple[tuple[str, str], ...] = (("undelivered", "medium"),)
) -> Records:
    """Make the results of an image with one suspect thread: codes with severities, the worst first, all of its KAPC."""
    severity, count = codes[0][1], len(codes)
    found = image(number, severity=severity, findings=count, windows="10.0.19041", bits=64, crash=STOPPED)
    about = {"image": found.image, "thread": 0xFFFF8A0000000000 + number, "pid": 4, "tid": 340, "process": process}
    both = {"severity": codes[0][1], "findings": ",".join(sorted(code for code, _ in codes))}
    apc = 0xFFFF8A0000001000 + number
    thread = row(
        ThreadRow,
        **about,
        **both,
        start_routine="Bfilter!Worker+0x30",
        start_module="Bfilter.sys",
        start_rva=0x1030,
        start_backing="loaded module",
    )
    queued = row(
        ApcRow,
        **about,
        **both,
        queue="kernel",
        apc=apc,
        kind="special-kernel",
        kernel_routine="nt!IopCompleteRequest",
        kernel_module="ntoskrnl.exe",
        kernel_rva=0x1234,
        normal_routine="0x0",
        origin="completion of IRP 0x8a3f6208, IRP_MJ_READ to \\Driver\\avdisk?",
    )
    findings = tuple(
        row(FindingRow, **about, apc=apc, queue="kernel", code=code, severity=severity, explanation=f"why {code}")
        for code, severity in codes
    )
    drivers = (row(DriverRow, image=found.image, base=1 << 40, size=4096, name="ntoskrnl.exe", status="loaded"),)
    return Records(found, (thread,), (queued,), findings, drivers)


def write(results: Path, *records: Records) -> Path:
    """Write the results of images; give the folder."""
    for each in records:
        store.write(results, each)
    return results


def varied(count: int) -> list[Records]:
    """Make images each with findings of its own, out of all that there are, of a thread with a story of its own."""
    codes = sorted(explain.codes())
    levels = ("critical", "high", "medium", "low")
    made = []
    for number in range(count):
        chosen = sorted({(number * factor + factor) % len(codes) for factor in (1, 3, 7, 11)})
        graded = sorted((at % 4, codes[at]) for at in chosen)
        made.append(suspect(number, f"process{number}.exe", tuple((code, levels[level]) for level, code in graded)))
    return made


def together(made: list[Records]) -> dataset.Dataset:
    """Make a dataset of records without writing them."""
    tables = ("threads", "apcs", "findings")
    threads, apcs, findings = (tuple(row for each in made for row in each.rows(table)) for table in tables)
    names = {each.image.image: each.image.source.rpartition("/")[2] for each in made}
    return dataset.Dataset(tuple(each.image for each in made), threads, apcs, findings, (), names, ())
