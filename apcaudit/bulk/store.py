"""The results on disk: a folder per image, named by its SHA-256, with a Parquet file per table.

A folder gets its name in one rename, whole or not at all. So readers see no half-written image, several machines can
write to one shared folder, and a killed process leaves at most a hidden folder that is never read.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
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
from apcaudit.text import encodable, short_names

_UNFINISHED = ".unfinished-"

IMAGE = re.compile(r"(path-)?[0-9a-f]{64}")
"""The name of an image's folder; a folder with a table in it counts as an image's under any name."""

_ATTEMPTS = 100

#: The errors of renaming onto a folder that is not empty; the last is that of Windows.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES)


def write(results: Path, records: Records) -> None:
    """Write all tables of one image, replacing those of an earlier scan."""
    results.mkdir(parents=True, exist_ok=True)
    unfinished = results / f"{_UNFINISHED}{scratch.unfinished_name()}"
    unfinished.mkdir()
    try:
        for table in TABLES:
            tables.write([_plain(row) for row in records.rows(table)], table, unfinished / f"{table}.parquet")
        _publish(unfinished, results / records.image.image)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _plain(row: Any) -> dict[str, Any]:
    values = {each.name: getattr(row, each.name) for each in dataclasses.fields(row)}
    # Parquet takes UTF-8 only, and a reason may name a file.
    return {name: encodable(value) if type(value) is str else value for name, value in values.items()}


def _publish(unfinished: Path, final: Path) -> None:
    # A folder cannot be renamed onto one that is not empty. If the process is killed between the two renames, the image
    # is left without results, and the next run scans it again.
    for _ in range(_ATTEMPTS):
        try:
            os.rename(unfinished, final)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            old = final.with_name(f"{_UNFINISHED}{scratch.unfinished_name()}")
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
    """The content of a folder of results: the requested tables of all images that could be read.

    `tables` are Arrow tables by name, always with `images`. `damages` say why the other images are left out.
    """

    folder: Path
    tables: dict[str, Any]
    damages: tuple[Damage, ...]

    @property
    def images(self) -> list[ImageRow]:
        """The rows of all images, in the order of their sources."""
        rows = [ImageRow(**row) for row in self.tables["images"].to_pylist()]
        return sorted(rows, key=lambda row: (row.source, row.image))

    @property
    def names(self) -> dict[str, str]:
        """The short name of each image, by its SHA-256: the shortest end of its path that no other image has."""
        found = self.tables["images"]
        return short_names(dict(zip(found["image"].to_pylist(), found["source"].to_pylist(), strict=True)))

    @property
    def evidence(self) -> Iterator[Path]:
        """The files in which the images were found."""
        return (Path(source.partition("::")[0]) for source in self.tables["images"]["source"].to_pylist())

    def connect(self, *, prefix: str = "", database: Any = None) -> Any:
        """Open the tables in DuckDB, each as a view named by the prefix and the table's name.

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
    """Read a folder of results; an image with an unreadable table is left out and becomes a Damage.

    Args:
        results: the folder, which may be missing.
        wanted: names of tables; `images` is always read.
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
    """Read all tables in a folder of results, and return the damages only."""
    made = (_image(folder, tuple(TABLES)) for folder in _folders(results))
    return tuple(each for each in made if isinstance(each, Damage))


def find(results: Path, image: str) -> ImageRow | None:
    """Return an image's row by its SHA-256, None where its results are missing or damaged.

    Then the caller scans the image, which replaces damaged files.
    """
    found = _image(results / image, tuple(TABLES))
    if found is None or isinstance(found, Damage):
        return None
    return ImageRow(**found["images"].to_pylist()[0])


def images(results: Path) -> list[ImageRow]:
    """Return the rows of all images, in the order of their sources.

    Raises:
        ApcAuditError: an image's results are damaged.
    """
    return _sound(read(results, ())).images


def connect(results: Path) -> Any:
    """Open the results in DuckDB, each table as a view of its name.

    Raises:
        ApcAuditError: there are no results, or some are damaged; `read` opens the others.
    """
    return _sound(read(results)).connect()


def _sound(found: Results) -> Results:
    if found.damages:
        raise ApcAuditError(str(found.damages[0]))
    return found


def _folders(results: Path) -> list[Path]:
    """Return the folders of images, without the hidden ones that scans are writing and without unrelated folders."""
    names = [f"{table}.parquet" for table in TABLES]
    folders = [each for each in results.glob("[!.]*") if os.path.isdir(each)]
    return sorted(
        each for each in folders if IMAGE.fullmatch(each.name) or any(os.path.lexists(each / name) for name in names)
    )


def _image(folder: Path, names: tuple[str, ...]) -> dict[str, Any] | Damage | None:
    """Read tables of an image, all written by the same scan; None where the folder is missing."""
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
        # If another scan has replaced the folder meanwhile, read again.
        if _identity(folder) == before:
            return made if damage is None else damage
    raise ApcAuditError(f"{folder} is being written by too many at once")


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
