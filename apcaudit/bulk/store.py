"""The results on disk: a folder an image, named by its SHA-256, with a Parquet file a table.

A folder appears under its name in one rename, whole or not at all: whoever reads sees no half-written image, several
machines write to one shared folder, and whatever is killed leaves at most a hidden folder that nobody reads.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apcaudit.bulk import scratch
from apcaudit.bulk.extra import load
from apcaudit.bulk.records import TABLES, Address, ImageRow, Records
from apcaudit.errors import ApcAuditError

VERSION = "1"
"""Of the schemas; readers may rely on the columns of a version, and find it in each file's metadata."""

_UNFINISHED = ".unfinished-"

_ATTEMPTS = 100

#: What a rename onto a folder that has files in it fails with; the last is Windows's.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES)


@functools.cache
def schema(table: str) -> Any:
    """Make the Arrow schema of a table, each column with its documentation."""
    arrow = load("pyarrow")
    kinds = {
        str: arrow.string(),
        int: arrow.int64(),
        float: arrow.float64(),
        bool: arrow.bool_(),
        Address: arrow.uint64(),
    }
    columns = []
    hints = typing.get_type_hints(TABLES[table])
    for each in dataclasses.fields(TABLES[table]):
        kind = hints[each.name]
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        nullable = bool(options)
        arrow_type = kinds[options[0] if options else kind]
        columns.append(arrow.field(each.name, arrow_type, nullable, {"doc": each.metadata["doc"]}))
    return arrow.schema(columns, {"apcaudit.table": table, "apcaudit.schema": VERSION})


def write(results: Path, records: Records) -> None:
    """Write all tables of one image, in place of what an earlier scan found on it."""
    arrow, parquet = load("pyarrow"), load("pyarrow.parquet")
    results.mkdir(parents=True, exist_ok=True)
    unfinished = results / f"{_UNFINISHED}{scratch.mark()}"
    unfinished.mkdir()
    try:
        for table in TABLES:
            rows = [_plain(row) for row in records.rows(table)]
            made = arrow.Table.from_pylist(rows, schema=schema(table))
            with (unfinished / f"{table}.parquet").open("wb") as file:
                parquet.write_table(made, file, compression="zstd")
                # A machine that loses its power must not leave the name and not the bytes.
                file.flush()
                os.fsync(file.fileno())
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


def find(results: Path, image: str) -> ImageRow | None:
    """Return what is known of an image by its SHA-256, None where there are no results."""
    path = results / image / "images.parquet"
    if not path.is_file():
        return None
    try:
        return next(_image_rows([path]), None)
    except ApcAuditError:
        # Whoever asks scans it again, which puts whole files in the place of these.
        return None


def images(results: Path) -> list[ImageRow]:
    """Return the rows of all images, in the order of their sources."""
    rows = _image_rows(sorted(results.glob("[!.]*/images.parquet")))
    return sorted(rows, key=lambda row: (row.source, row.image))


def remove(results: Path, image: str) -> None:
    """Remove an image's results."""
    shutil.rmtree(results / image, ignore_errors=True)


def _image_rows(paths: list[Path]) -> Iterator[ImageRow]:
    arrow, parquet = load("pyarrow"), load("pyarrow.parquet")
    names = {each.name for each in dataclasses.fields(ImageRow)}
    for path in paths:
        try:
            # ParquetFile rather than read_table, which would take the folder's name for a partition.
            with parquet.ParquetFile(path) as file:
                rows = file.read().to_pylist()
            # A later release of the same version may have added columns.
            yield from [ImageRow(**{name: row[name] for name in names}) for row in rows]
        except (arrow.ArrowInvalid, OSError, KeyError) as error:
            raise ApcAuditError(
                f"{path.parent}: its results are damaged: remove it and scan again ({error})"
            ) from error


def connect(results: Path, *, prefix: str = "", database: Any = None) -> Any:
    """Open the results in DuckDB: a view a table, named as the table after the prefix.

    Args:
        results: the folder.
        prefix: put before the names of the views.
        database: a connection to add the views to; a new one in memory when None.

    Raises:
        ApcAuditError: the folder holds no results.
    """
    duckdb = load("duckdb")
    if next(results.glob("[!.]*/images.parquet"), None) is None:
        raise ApcAuditError(f"{results} holds no results: make some with `apcaudit scan PATHS -o {results}`")
    database = database if database is not None else duckdb.connect()
    for table in TABLES:
        files = [str(path) for path in sorted(results.glob(f"[!.]*/{table}.parquet"))]
        listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
        # The view lists the files: a pattern would match the hidden folders of scans that are still writing.
        database.execute(f"CREATE VIEW {prefix}{table} AS SELECT * FROM read_parquet([{listed}])")  # noqa: S608
    return database
