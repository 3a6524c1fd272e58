"""The result of one image's audit, as plain values that the process that read it can send."""

from __future__ import annotations

from dataclasses import dataclass

from apcaudit.bulk.records import Address, ApcRow, DriverRow, FindingRow, ThreadRow


@dataclass(frozen=True, slots=True)
class Kernel:
    """The PDB of an image's kernel: file name, GUID, age."""

    pdb: str
    guid: str
    age: int


@dataclass(frozen=True, slots=True)
class Contents:
    """The result of one image's audit; times in seconds since 1970, addresses virtual.

    `symbol_file` is the URL of the kernel's symbol file.
    """

    symbol_file: str
    kernel: Kernel | None
    windows: str | None
    bits: int
    processors: int | None
    partial: bool
    system_time: float | None
    up_time: float | None
    bugcheck: int | None
    bugcheck_parameters: str | None
    crash: str | None
    crashing_thread: Address | None
    notes: tuple[str, ...]
    threads: tuple[ThreadRow, ...]
    apcs: tuple[ApcRow, ...]
    findings: tuple[FindingRow, ...]
    drivers: tuple[DriverRow, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """What the headers of a crash dump tell of an image that could not be audited; the fields of Contents."""

    windows: str | None
    bits: int
    processors: int | None
    partial: bool
    system_time: float | None
    up_time: float | None
    bugcheck: int | None
    bugcheck_parameters: str | None
    crash: str | None
    drivers: tuple[DriverRow, ...]
