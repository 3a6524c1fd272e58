"""The file of one table: its schema, writing it, and reading it, where damage is a value and not an exception."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import stat
import typing
from pathlib import Path
from typing import Any

from apcaudit.bulk import times
from apcaudit.bulk.damage import AGAIN, UPGRADE, Damage
from apcaudit.bulk.extra import load
from apcaudit.bulk.records import FAILED, SCANNED, SEVERITIES, TABLES, Address

VERSION = "1"
"""Version of the schemas, in each file's metadata; the columns of a version stay."""

_SHOWN = 200
"""How many characters of a library's error message, or of a file's value, are shown."""


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


def write(rows: list[dict[str, Any]], table: str, path: Path) -> None:
    """Write a table's file and flush it to the disk."""
    arrow, parquet = load("pyarrow"), load("pyarrow.parquet")
    made = arrow.Table.from_pylist(rows, schema=schema(table))
    with path.open("wb") as file:
        # Checksums detect values that a disk has changed.
        parquet.write_table(made, file, compression="zstd", write_page_checksum=True)
        # After a power failure there must be no name without the bytes.
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path, table: str) -> Any:
    """Read a table of an image's folder.

    Returns:
        An Arrow table in the table's schema, or a Damage.
    """
    arrow, parquet = load("pyarrow"), load("pyarrow.parquet")
    path = folder / f"{table}.parquet"
    try:
        wrong = _no_file(path.stat())
        if wrong is not None:
            return Damage(path, wrong)
        checked = {"page_checksum_verification": True, "pre_buffer": False}
        with path.open("rb") as file, parquet.ParquetFile(file, **checked) as opened:
            found = opened.schema_arrow
            damage = _wrong_schema(path, table, found)
            if damage is None:
                # A later release may have added columns to this version, and their order is not fixed.
                columns = opened.read(columns=schema(table).names, use_threads=False)
                columns.validate(full=True)
                made = arrow.Table.from_arrays([columns[name] for name in schema(table).names], schema=schema(table))
                damage = _wrong_rows(path, table, made)
    except FileNotFoundError:
        return Damage(path, "it is missing")
    except (arrow.ArrowException, OSError, ValueError, MemoryError) as error:
        said = getattr(error, "strerror", None)
        if said:
            return Damage(path, f"it cannot be read ({said})")
        return Damage(path, f"it is damaged ({' '.join(str(error).split())[:_SHOWN]})")
    return made if damage is None else damage


def _no_file(status: os.stat_result) -> str | None:
    """Say why a path is no regular file with content, without opening it: opening a FIFO could wait for ever."""
    if stat.S_ISREG(status.st_mode):
        return None if status.st_size else "it is empty"
    if stat.S_ISDIR(status.st_mode):
        return "it is a folder"
    return "it is a FIFO" if stat.S_ISFIFO(status.st_mode) else "it is a device"


def _wrong_schema(path: Path, table: str, found: Any) -> Damage | None:
    said = found.metadata or {}
    version = said.get(b"apcaudit.schema", b"")
    if not version.isdigit() or b"apcaudit.table" not in said:
        return Damage(path, "it is no table of apcaudit")
    if int(version) != int(VERSION):
        newer = int(version) > int(VERSION)
        wrote = f"{'a later' if newer else 'an earlier'} apcaudit wrote it"
        wrong = f"{wrote} (schema {int(version)}, this one reads {VERSION})"
        return Damage(path, wrong, UPGRADE if newer else AGAIN, int(version), newer)
    if said[b"apcaudit.table"] != table.encode():
        return Damage(path, f"it holds the table {said[b'apcaudit.table'].decode(errors='replace')[:_SHOWN]}")
    if found.equals(schema(table)):
        return None
    for each in schema(table):
        there = found.get_all_field_indices(each.name)
        if len(there) != 1:
            return Damage(path, f"its column {each.name} is {f'there {len(there)} times' if there else 'missing'}")
        kind = found.field(there[0]).type
        if kind != each.type:
            return Damage(path, f"its column {each.name} is {str(kind)[:_SHOWN]} and not {each.type}")
    return None


def _wrong_rows(path: Path, table: str, rows: Any) -> Damage | None:
    for each in schema(table):
        if not each.nullable and rows[each.name].null_count:
            return Damage(path, f"its column {each.name} has rows without a value")
    arrow = load("pyarrow")
    # Not unique() or another of Arrow's functions: to load all of these takes longer than to read results.
    if not rows["image"].equals(arrow.chunked_array([arrow.repeat(path.parent.name, rows.num_rows)])):
        return Damage(path, "its rows are another image's")
    if table == "images":
        return _wrong_image(path, rows.to_pylist())
    return None


def _wrong_image(path: Path, rows: list[dict[str, Any]]) -> Damage | None:
    if len(rows) != 1:
        return Damage(path, f"it has {len(rows)} rows and not one")
    (row,) = rows
    for name, words in (("status", (SCANNED, FAILED)), ("severity", SEVERITIES)):
        if row[name] not in words:
            return Damage(path, f"its {name} is {row[name][:_SHOWN]!r}")
    if times.moment(row["scanned_at"]) is None or not math.isfinite(row["seconds"]):
        return Damage(path, "when it was scanned is no time")
    return None
