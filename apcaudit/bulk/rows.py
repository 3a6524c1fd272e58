"""Making the rows of the results from the plugin's document."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

from apcaudit.bulk.records import (
    HIDDEN,
    LOADED,
    NO_NAME,
    SEVERITIES,
    UNLISTED,
    UNLOADED,
    Address,
    ApcRow,
    DriverRow,
    FindingRow,
    ThreadRow,
)
from apcaudit.text import one_line

_UNIX_EPOCH = 116444736000000000
"""1 January 1970 as a FILETIME, 100 ns units since 1601."""


class Rows:
    """Collects the rows of an image's threads.

    Args:
        image: the image's name in the rows.
        document: the plugin's Document.
        values: gives a row of the plugin's table by column, None for what is absent.
        timeline: the plugin's module output.document.
        rows_of: makes the rows of the plugin's table for a thread.
    """

    def __init__(
        self, image: str, document: Any, values: Callable[[Any], dict[str, Any]], timeline: Any, rows_of: Any
    ) -> None:
        self._image = image
        self._document = document
        self._values = values
        self._timeline = timeline
        self._rows_of = rows_of
        drivers = sorted(document.image.drivers, key=lambda driver: int(driver.base))
        self._drivers = drivers
        self._loaded = _Ranges([each for each in drivers if each.hidden is False])
        self._unlisted = _Ranges([each for each in drivers if each.hidden is not False])
        self.threads: list[ThreadRow] = []
        self.apcs: list[ApcRow] = []
        self.findings: list[FindingRow] = []

    def add(self, audited: Any) -> None:
        """Add a thread, its APCs and its findings."""
        lines = self._rows_of(audited, self._document.facts, wide=True)
        values = [self._values(line) for line in lines]
        first = values[0]
        about = {
            "image": self._image,
            "thread": Address(audited.thread.address),
            "process": first["Process"],
            "pid": signed(first["PID"]),
            "tid": signed(first["TID"]),
        }
        self.threads.append(ThreadRow(**about, **self._thread(audited, values)))
        for finding in audited.findings:
            self._add_finding(about, finding, None, None)
        for line, row in zip(lines, values, strict=True):
            if line.apc is not None:
                self.apcs.append(ApcRow(**about, **self._apc(line.apc, row)))
                for finding in audited.get(line.apc).findings:
                    self._add_finding(about, finding, Address(line.apc.address), row["Queue"])

    def drivers(self) -> Iterator[DriverRow]:
        """Yield the image's kernel modules."""
        for each in self._drivers:
            status = {False: LOADED, True: HIDDEN}.get(each.hidden, UNLISTED)
            name = each.name or NO_NAME
            yield DriverRow(self._image, Address(each.base), each.size, name, each.path or None, status)
        for each in self._document.image.unloaded:
            name = each.name or NO_NAME
            yield DriverRow(self._image, Address(each.start), each.end - each.start, name, None, UNLOADED)

    def _thread(self, audited: Any, values: list[dict[str, Any]]) -> dict[str, Any]:
        first, thread = values[0], audited.thread
        module, rva = self._locate(audited.start)
        return {
            "attached": first["Attached"],
            "state": first["State"],
            "views": first["Views"],
            "apc_state_index": first["ApcStateIndex"],
            "kernel_apc_in_progress": first["KernelApcInProgress"],
            "kernel_apc_pending": first["KernelApcPending"],
            "user_apc_pending": first["UserApcPending"],
            "kernel_apc_disable": first["KernelApcDisable"],
            "special_apc_disable": first["SpecialApcDisable"],
            "wait_irql": first["WaitIrql"],
            "created": time_of(self._timeline.created(thread.members, self._document.facts)),
            "exited": time_of(self._timeline.exited(thread.members)),
            "start_address": address_of(first["StartAddress"]),
            "start_routine": first["StartRoutine"],
            "start_module": module,
            "start_rva": rva,
            "start_backing": None if thread.start_backing is None else thread.start_backing.value,
            "yara": first["Yara"],
            "severity": max((each["Severity"] for each in values), key=SEVERITIES.index),
            "findings": ",".join(sorted({code for each in values for code in each["Findings"].split(",") if code})),
        }

    def _apc(self, apc: Any, row: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {
            "queue": row["Queue"],
            "position": apc.position,
            "apc": Address(apc.address),
            "kind": row["Kind"],
            "normal_context": address_of(apc.normal_context),
            "system_argument1": address_of(apc.system_argument1),
            "system_argument2": address_of(apc.system_argument2),
            "origin": row["Origin"],
            "severity": row["Severity"],
            "findings": row["Findings"],
            "explanation": row["Explanation"],
        }
        for name in ("kernel", "normal", "rundown"):
            code = getattr(apc, f"{name}_routine")
            module, rva = self._locate(code)
            # A null routine is known to be none, which the text 0x0 says.
            found |= {f"{name}_routine": row[f"{name.title()}Routine"], f"{name}_module": module, f"{name}_rva": rva}
        return found

    def _add_finding(self, about: dict[str, Any], finding: Any, apc: Address | None, queue: str | None) -> None:
        severity, text = str(finding.severity), finding.explanation
        self.findings.append(
            FindingRow(**about, apc=apc, queue=queue, code=finding.code, severity=severity, explanation=text)
        )

    def _locate(self, code: Any) -> tuple[str | None, int | None]:
        """Return the module that code lies in, loaded, in no list or unloaded since, and the offset in it."""
        if code is None or not code.address:
            return None, None
        if code.former is not None:
            for former in self._document.image.unloaded:
                if former.start <= code.address < former.end:
                    return former.name or NO_NAME, code.address - former.start
        if code.module is None:
            return None, None
        driver = (self._loaded if code.backing.name == "MODULE" else self._unlisted).find(code.address)
        return (None, None) if driver is None else (driver.name or NO_NAME, code.address - driver.base)


def dumped_drivers(image: str, facts: Any) -> Iterator[DriverRow]:
    """Yield the kernel modules that the headers of a minidump list.

    Args:
        image: the image's name in the rows.
        facts: the plugin's HeaderFacts.
    """
    for each in facts.drivers:
        path = None if each.name is None else one_line(each.name)
        name = NO_NAME if path is None else path.rpartition("\\")[2] or NO_NAME
        yield DriverRow(image, Address(each.base), each.size, name, path, LOADED)
    for each in facts.unloaded:
        size = max(0, each.end - each.start)
        yield DriverRow(image, Address(each.start), size, one_line(each.name) or NO_NAME, None, UNLOADED)


class _Ranges:
    """Finds the driver that holds an address; where several do, the one with the highest base."""

    def __init__(self, drivers: list[Any]) -> None:
        self._drivers = drivers
        self._bases = [driver.base for driver in drivers]

    def find(self, address: int) -> Any:
        """Return the driver that holds an address, None where none does."""
        below = reversed(self._drivers[: bisect_right(self._bases, address)])
        return next((each for each in below if address < each.base + each.size), None)


def address_of(value: int | None) -> Address | None:
    """Convert a number to an unsigned 64-bit address; None stays None."""
    return None if value is None else Address(int(value) & 0xFFFFFFFFFFFFFFFF)


def signed(value: int | None) -> int | None:
    """Convert an ID to a signed 64-bit number, the columns' type: in a damaged CLIENT_ID it may be any pointer."""
    return None if value is None else (int(value) + (1 << 63)) % (1 << 64) - (1 << 63)


def seconds_of(ticks: int | None) -> float | None:
    """Turn ticks of 100 ns into seconds; None stays None."""
    return None if ticks is None else ticks / 10_000_000


def time_of(filetime: int | None) -> float | None:
    """Turn FILETIME ticks of 100 ns since 1601 into seconds since 1970; None stays None."""
    return None if filetime is None else (filetime - _UNIX_EPOCH) / 10_000_000
