"""The results on disk: a folder an image, named by its SHA-256, with a Parquet file a table.

A folder appears under its name in one rename, whole or not at all: whoever reads sees no half-written image, several
machines write to one shared folder, and whatever is killed leaves at most a hidden folder that nobody reads.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apcaudit.bulk import scratch, tables
from apcaudit.bulk.damage import Damage
from apcaudit.bulk.extra import load
from apcaudit.bulk.records import TABLES, ImageRow, Records
from apcaudit.bulk.tables import VERSION as VERSION
from apcaudit.bulk.tables import schema as schema
from apcaudit.errors import ApcAuditError

_UNFINISHED = ".unfinished-"

_IMAGE = re.compile(r"(path-)?[0-9a-f]{64}")
"""How an image's folder is named; one with a table in it is taken for an image's under any name."""

_ATTEMPTS = 100

#: What a rename onto a folder that has files in it fails with; the last is Windows's.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES)


def write(results: Path, records: Records) -> None:
    """Write all tables of one image, in place of what an earlier scan found on it."""
    results.mkdir(parents=True, exist_ok=True)
    unfinished = results / f"{_UNFINISHED}{scratch.mark()}"
    unfinished.mkdir()
    try:
        for table in TABLES:
            tables.write([_plain(row) for row in records.rows(table)], table, unfinished / f"{table}.parquet")
        _publish(unfinished, results / records.image.image)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _plain(row: Any) -> dict[str, Any]:
    return {each.name: getattr(row, each.name) for each in dataclasses.fields(row)}


def _publish(unfinished: Path, final: Path) -> None:
    # A folder cannot be renamed over one that is not empty. Whoever is killed between the two renames leaves the
    # image without results, and the next run scans it again.
    for _ in range(_ATTEMPTS):
        try:
            os.rename(unfinished, final)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            old = final.with_name(f"{_UNFINISHED}{scratch.mark()}")
            try:
                os.rename(final, old)
            except FileNotFoundError:
                continue
            shutil.rmtree(old, ignore_errors=True)
        else:
            return
    raise ApcAuditError(f"{final} is being written by too many at once")


def remove(results: Path, image: str) -> None:
    """Remove an image's results."""
    shutil.rmtree(results / image, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Results:
    """What a folder of results holds, read once: the tables that were asked for, of the images that can be shown.

    `tables` are Arrow tables by name, `images` among them always. `damages` are why the other images are left out.
    """

    folder: Path
    tables: dict[str, Any]
    damages: tuple[Damage, ...]

    @property
    def images(self) -> list[ImageRow]:
        """The rows of all images, in the order of their sources."""
        rows = [ImageRow(**row) for row in self.tables["images"].to_pylist()]
        return sorted(rows, key=lambda row: (row.source, row.image))

    def connect(self, *, prefix: str = "", database: Any = None) -> Any:
        """Open the tables in DuckDB: a view a table, named as the table after the prefix.

        Args:
            prefix: put before the names of the views.
            database: a connection to add the views to; a new one in memory when None.

        Raises:
            ApcAuditError: there is no image.
        """
        duckdb = load("duckdb")
        if not self.tables["images"].num_rows:
            if self.damages:
                raise ApcAuditError(f"{self.folder}: none of its results can be read")
            raise ApcAuditError(
                f"{self.folder} holds no results: make some with `apcaudit scan PATHS -o {self.folder}`"
            )
        database = database if database is not None else duckdb.connect()
        for name, table in self.tables.items():
            database.register(f"{prefix}{name}", table)
        return database


def read(results: Path, wanted: Iterable[str] = TABLES) -> Results:
    """Read a folder of results; an image of which a table that is wanted cannot be read is left out, as a value.

    Args:
        results: the folder; there may be none.
        wanted: names of tables. The images are read in any case.
    """
    names = ("images", *(name for name in wanted if name != "images"))
    found: dict[str, list[Any]] = {name: [tables.schema(name).empty_table()] for name in names}
    damages: list[Damage] = []
    for folder in _folders(results):
        read_tables = _image(folder, names)
        if isinstance(read_tables, Damage):
            damages.append(read_tables)
        elif read_tables is not None:
            for name, table in read_tables.items():
                found[name].append(table)
    concatenated = {name: load("pyarrow").concat_tables(each) for name, each in found.items()}
    return Results(results, concatenated, tuple(damages))


def check(results: Path) -> tuple[Damage, ...]:
    """Read a folder of results, all tables, for nothing but what is damaged."""
    made = (_image(folder, tuple(TABLES)) for folder in _folders(results))
    return tuple(each for each in made if isinstance(each, Damage))


def find(results: Path, image: str) -> ImageRow | None:
    """Return what is known of an image by its SHA-256, None where there are no results, or damaged ones.

    Whoever asks scans it again, which puts whole files in the place of these.
    """
    found = _image(results / image, tuple(TABLES))
    if found is None or isinstance(found, Damage):
        return None
    return ImageRow(**found["images"].to_pylist()[0])


def images(results: Path) -> list[ImageRow]:
    """Return the rows of all images, in the order of their sources.

    Raises:
        ApcAuditError: some are damaged.
    """
    return _sound(read(results, ())).images


def connect(results: Path) -> Any:
    """Open the results in DuckDB: a view a table, named as the table.

    Raises:
        ApcAuditError: the folder holds no results, or damaged ones: `read` tells which, and opens the others.
    """
    return _sound(read(results)).connect()


def _sound(found: Results) -> Results:
    if found.damages:
        raise ApcAuditError(str(found.damages[0]))
    return found


def _folders(results: Path) -> list[Path]:
    """Return the folders of images: not the hidden ones of scans that are still writing, none of somebody else's."""
    names = [f"{table}.parquet" for table in TABLES]
    folders = [each for each in results.glob("[!.]*") if os.path.isdir(each)]
    return sorted(
        each for each in folders if _IMAGE.fullmatch(each.name) or any(os.path.lexists(each / name) for name in names)
    )


def _image(folder: Path, names: tuple[str, ...]) -> dict[str, Any] | Damage | None:
    """Read tables of an image, all as one scan left them; None where it has none, or not any more."""
    for _ in range(_ATTEMPTS):
        before = _identity(folder)
        if before is None:
            return None
        made: dict[str, Any] = {}
        damage: Damage | None = None
        for name in names:
            table = tables.read(folder, name)
            if isinstance(table, Damage):
                damage = table
                break
            made[name] = table
        # Meanwhile another scan may have put other results in their place.
        if _identity(folder) == before:
            return made if damage is None else damage
    raise ApcAuditError(f"{folder} is being written by too many at once")


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
