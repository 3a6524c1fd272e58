"""The data of a report: the rows that it shows, read once and sorted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apcaudit.bulk import store
from apcaudit.bulk.damage import Damage
from apcaudit.bulk.records import FAILED, SCANNED, SEVERITIES, TABLES, ApcRow, FindingRow, ImageRow, ThreadRow
from apcaudit.bulk.stack import Stacked, stack
from apcaudit.bulk.store import Results

WORST_FIRST = tuple(reversed(SEVERITIES))
"""The severities, the highest first."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The rows of a folder of results.

    `threads` and `apcs` are those with findings. `stacked` says in how many images each routine, driver, finding and
    rule is. `names` are the short names of the images by SHA-256. `damages` say why images are left out.
    """

    images: tuple[ImageRow, ...]
    threads: tuple[ThreadRow, ...]
    apcs: tuple[ApcRow, ...]
    findings: tuple[FindingRow, ...]
    stacked: tuple[Stacked, ...]
    names: dict[str, str]
    damages: tuple[Damage, ...]

    @property
    def scanned(self) -> tuple[ImageRow, ...]:
        """The images that were scanned."""
        return tuple(each for each in self.images if each.status == SCANNED)

    @property
    def failed(self) -> tuple[ImageRow, ...]:
        """The images whose scan failed."""
        return tuple(each for each in self.images if each.status == FAILED)


def rank(severity: str) -> int:
    """Return a severity's rank, 0 for the highest; an unknown severity ranks as the highest."""
    return WORST_FIRST.index(severity) if severity in WORST_FIRST else 0


def read(results: Path) -> Dataset:
    """Read a folder of results.

    Raises:
        ApcAuditError: the folder holds no results that can be read, or the extra `bulk` is not installed.
    """
    return make(store.read(results))


def make(results: Results) -> Dataset:
    """Make a dataset of results that were read.

    Raises:
        ApcAuditError: there are no results.
    """
    images = sorted(results.images, key=lambda row: (rank(row.severity), -row.findings, row.source, row.image))
    with results.connect() as database:
        return Dataset(
            images=tuple(images),
            threads=_rows(database, "threads", "findings <> '' ORDER BY image, pid, tid, thread"),
            apcs=_rows(database, "apcs", "findings <> '' ORDER BY image, thread, queue, position, apc"),
            findings=_rows(database, "findings", "true ORDER BY image, pid, tid, thread, apc NULLS FIRST, code"),
            stacked=tuple(stack(results, database=database)),
            names=results.names,
            damages=results.damages,
        )


def _rows(database: Any, table: str, wanted: str) -> tuple[Any, ...]:
    kind = TABLES[table]
    columns = ", ".join(each.name for each in dataclasses.fields(kind))
    found = database.execute(f"SELECT {columns} FROM {table} WHERE {wanted}").fetchall()  # noqa: S608 - our own names
    return tuple(kind(*row) for row in found)
