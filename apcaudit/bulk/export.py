"""The results in other tools' formats: JSON lines, CSV for spreadsheets, JSON lines for Timesketch.

Addresses are hexadecimal text in all of them. As numbers, jq and JavaScript would round them (RFC 8259, section 6: a
double has 53 bits), and OpenSearch, Timesketch's store, takes no whole number above 2^63 (its field type `long`).
"""

from __future__ import annotations

import csv
import io
import json
import re
import typing
from collections.abc import Iterator
from datetime import datetime
from math import isfinite
from typing import Any

from apcaudit.bulk.extra import load
from apcaudit.bulk.records import TABLES, Address
from apcaudit.bulk.store import Results
from apcaudit.bulk.times import SPAN, moment
from apcaudit.text import visible

_ROWS_AT_ONCE = 1000

#: Characters that begin a formula in a spreadsheet (OWASP, "CSV Injection"): at the start of a cell, and behind
#: characters that end a cell in another locale. East Asian locales also take the full-width forms.
_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
_FORMULA = re.compile(rf'^(?=[{_SIGNS}\t\r\n])|(?<=[;,\t\r\n"])(?=[{_SIGNS}])')

#: Columns of every Timesketch line that identify the image and the thread, as SQL.
_ABOUT = """image, n.image_name, i.source, t.thread, t.pid, t.tid, t.process, t.severity AS thread_severity,
        t.findings AS thread_findings"""

#: The time of a finding is the image's clock, else the time of the scan; threads have their own times only.
_FINDINGS = f"""
    SELECT i.system_time AS at, i.scanned_at,
        '[' || f.severity || '] ' || f.code || ' in ' || coalesce(t.process, '?') || ' on ' || n.image_name || ': '
            || f.explanation AS message,
        f.code, f.severity, f.apc, a.kernel_routine, a.normal_routine, a.origin, {_ABOUT}
    FROM findings f JOIN images i USING (image) JOIN names n USING (image) JOIN threads t USING (image, thread)
    LEFT JOIN apcs a USING (image, thread, apc, queue)
    ORDER BY i.source, image, t.thread, f.code, f.apc"""  # noqa: S608 - constants of this module

_TIMES = f"""
    SELECT t.{{column}} AS at, NULL AS scanned_at,
        'thread ' || coalesce(t.tid::VARCHAR, '?') || ' of ' || coalesce(t.process, '?') || ' on ' || n.image_name
            || ' {{word}}, starts at ' || coalesce(t.start_routine, '?') AS message,
        t.start_routine, {_ABOUT}
    FROM threads t JOIN images i USING (image) JOIN names n USING (image) WHERE t.{{column}} IS NOT NULL
    ORDER BY i.source, image, t.thread"""  # noqa: S608 - constants of this module

_ADDRESSES = frozenset(
    name
    for row in TABLES.values()
    for name, kind in typing.get_type_hints(row).items()
    if Address in (kind, *typing.get_args(kind))
)
"""The columns of all tables that are addresses; a name means the same in each."""

_NAMING = ("image", "image_name", "source")
"""The columns of the view `names`, with which each line begins: SHA-256, short name, and path of an image."""

_THREAD_TIMES = (("created", "Created"), ("exited", "Exited"))

TIMELINE = ("threads", "findings", "apcs")
"""The tables that a timeline is made of, beside the images."""


def jsonl(results: Results, table: str) -> Iterator[str]:
    """Yield the rows of a table as JSON lines, each with the name and the source of its image."""
    for row in _table(results, table):
        yield _json(row)


def comma_separated(results: Results, table: str) -> Iterator[str]:
    """Yield the lines of a table as CSV, as in `jsonl`; no cell is a formula to a spreadsheet."""
    # Before the header: without any results there is no file either.
    rows = _table(results, table)
    yield _line(columns(table))
    for row in rows:
        yield _line([_harmless(value) for value in row.values()])


def columns(table: str) -> list[str]:
    """Return the columns of an exported table: the table's own, and behind `image` what the image is called."""
    return list(dict.fromkeys((*_NAMING, *typing.get_type_hints(TABLES[table]))))


def timesketch(results: Results) -> Iterator[str]:
    """Yield Timesketch's JSON lines: each finding at the image's time, and the reported threads' creation and end.

    Timesketch needs `message`, `datetime` (ISO 8601) and `timestamp_desc` in every line ("Create timeline from JSONL or
    CSV file", its user guide). A finding of an image without a clock, or with an impossible one, gets the time of the
    scan; `timestamp_desc` and `time_note` say so.
    """
    database = _connect(results)
    for row in _rows(database, _FINDINGS):
        time, scanned = moment(row["at"]), moment(row["scanned_at"])
        if time is not None:
            yield _event(row, time, "Memory Image Time")
        elif scanned is not None:
            clock = "is not known" if row["at"] is None else f"says {row['at']} s since 1970, which is not from {SPAN}"
            note = {"time_note": f"the image's clock {clock}: this is when it was scanned"}
            yield _event(row | note, scanned, "Image Scanned")
    for column, word in _THREAD_TIMES:
        for row in _rows(database, _TIMES.format(column=column, word=word.lower())):
            time = moment(row["at"])
            if time is not None:
                yield _event(row, time, f"Thread {word}")


def timeline_notes(results: Results) -> Iterator[str]:
    """Yield one line per kind of time that the timeline lacks or replaces."""
    clocks = sum(row.findings > 0 and moment(row.system_time) is None for row in results.images)
    if clocks:
        yield f"images without a clock from {SPAN}: {clocks}; their findings stand at the time of the scan"
    queries = [f"SELECT {column} AS at FROM threads WHERE {column} IS NOT NULL" for column, _ in _THREAD_TIMES]  # noqa: S608
    times = sum(moment(row["at"]) is None for query in queries for row in _rows(results.connect(), query))
    if times:
        yield f"times of threads that are not from {SPAN}: {times}; they have no line"


def _connect(results: Results) -> Any:
    """Open the results in DuckDB, and what each image is called in the view `names`."""
    database = results.connect()
    names = results.names
    made = [(row.image, names[row.image], row.source) for row in results.images]
    database.register("names", load("pyarrow").table(list(zip(*made, strict=True)), names=_NAMING))
    return database


def _table(results: Results, table: str) -> Iterator[dict[str, Any]]:
    chosen = ", ".join(f"names.{name}" if name in _NAMING else name for name in columns(table))
    query = f"SELECT {chosen} FROM {table} JOIN names USING (image) ORDER BY ALL"  # noqa: S608 - our own names
    return _rows(_connect(results), query)


def _event(row: dict[str, Any], time: datetime, description: str) -> str:
    about = {name: value for name, value in row.items() if value is not None and name not in ("at", "scanned_at")}
    text = time.isoformat(timespec="microseconds")
    return _json({"datetime": text, "timestamp_desc": description, "data_type": "windows:apc:audit"} | about)


def _json(row: dict[str, Any]) -> str:
    # JSON has no infinity and no NaN.
    known = {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}
    return json.dumps(known, allow_nan=False) + "\n"


def _rows(database: Any, query: str) -> Iterator[dict[str, Any]]:
    found = database.execute(query)
    names = [column[0] for column in found.description]
    while rows := found.fetchmany(_ROWS_AT_ONCE):
        for values in rows:
            row = dict(zip(names, values, strict=True))
            yield row | {name: hex(row[name]) for name in _ADDRESSES & row.keys() if row[name] is not None}


def _line(values: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run, and escape control characters; numbers stay."""
    return _FORMULA.sub("'", visible(value)) if isinstance(value, str) else value
