"""What the audit of an image gave: values alone, which cross from the process that read it."""

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
    """What the audit of an image gave; times in seconds since 1970, addresses virtual.

    `symbol_file` is the URL of the file that says how the kernel's structures lie.
    """

    symbol_file: str
    kernel: Kernel | None
    windows: str | None
    bits: int
    processors: int | None
    partial: bool
    system_time: float | None
    bugcheck: int | None
    bugcheck_parameters: str | None
    crashing_thread: Address | None
    notes: tuple[str, ...]
    threads: tuple[ThreadRow, ...]
    apcs: tuple[ApcRow, ...]
    findings: tuple[FindingRow, ...]
    drivers: tuple[DriverRow, ...]
