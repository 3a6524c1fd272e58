"""The results in other tools' formats: JSON lines, CSV for spreadsheets, JSON lines for Timesketch."""

from __future__ import annotations

import csv
import io
import json
import re
import typing
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from apcaudit.bulk import store
from apcaudit.bulk.records import TABLES, Address
from apcaudit.reports.visible import visible

_ROWS_AT_ONCE = 1000

#: Where a spreadsheet would begin to run text (OWASP, "CSV Injection"): at a cell's first character, and behind what
#: another locale takes for the end of a cell. The wide forms are those that East Asian locales take too.
_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
_FORMULA = re.compile(rf'^(?=[{_SIGNS}\t\r\n])|(?<=[;,\t\r\n"])(?=[{_SIGNS}])')

#: Columns of a Timesketch line that say what it is about: of threads and of images, as SQL.
_ABOUT = """image, i.source, t.thread, t.pid, t.tid, t.process, t.severity, t.findings"""

_FINDINGS = f"""
    SELECT coalesce(i.system_time, i.scanned_at) AS at,
        CASE WHEN i.system_time IS NULL THEN 'Image Scanned' ELSE 'Memory Image Time' END AS timestamp_desc,
        '[' || f.severity || '] ' || f.code || ' in ' || coalesce(t.process, '?') || ': ' || f.explanation AS message,
        f.code, f.apc, a.kernel_routine, a.normal_routine, a.origin, {_ABOUT}
    FROM findings f JOIN images i USING (image) JOIN threads t USING (image, thread)
    LEFT JOIN apcs a USING (image, thread, apc, queue)
    ORDER BY i.source, image, t.thread, f.code, f.apc"""  # noqa: S608 - constants of this module

_TIMES = f"""
    SELECT t.{{column}} AS at, 'Thread {{word}}' AS timestamp_desc,
        'thread ' || coalesce(t.tid::VARCHAR, '?') || ' of ' || coalesce(t.process, '?') || ' {{word}}, starts at '
            || coalesce(t.start_routine, '?') AS message,
        t.start_routine, {_ABOUT}
    FROM threads t JOIN images i USING (image) WHERE t.{{column}} IS NOT NULL
    ORDER BY i.source, image, t.thread"""  # noqa: S608 - constants of this module


def jsonl(results: Path, table: str) -> Iterator[str]:
    """Yield the rows of a table as JSON lines; addresses are numbers, as in vol's own JSON."""
    for row in _rows(results, f"SELECT * FROM {table} ORDER BY ALL"):  # noqa: S608 - a name from TABLES
        yield json.dumps(row) + "\n"


def comma_separated(results: Path, table: str) -> Iterator[str]:
    """Yield the lines of a table as CSV; addresses are hexadecimal, and no cell is a formula to a spreadsheet."""
    hints = typing.get_type_hints(TABLES[table])
    addresses = {name for name, kind in hints.items() if Address in (kind, *typing.get_args(kind))}
    yield _line(list(hints))
    for row in _rows(results, f"SELECT * FROM {table} ORDER BY ALL"):  # noqa: S608 - a name from TABLES
        hexadecimal = {name: hex(row[name]) for name in addresses if row[name] is not None}
        yield _line([_harmless(value) for value in (row | hexadecimal).values()])


def timesketch(results: Path) -> Iterator[str]:
    """Yield Timesketch's JSON lines: each finding at the image's time, and when the threads reported began and ended.

    An image that does not tell its time is put when it was scanned, and says so in `timestamp_desc`.
    """
    queries = [_FINDINGS]
    queries += [
        _TIMES.format(column=column, word=word) for column, word in (("created", "Created"), ("exited", "Exited"))
    ]
    for query in queries:
        for row in _rows(results, query):
            time = _time(row.pop("at"))
            if time is not None:
                about = {name: value for name, value in row.items() if value is not None}
                yield json.dumps({"datetime": time, "data_type": "windows:apc:audit"} | about) + "\n"


def _rows(results: Path, query: str) -> Iterator[dict[str, Any]]:
    found = store.connect(results).execute(query)
    names = [column[0] for column in found.description]
    while rows := found.fetchmany(_ROWS_AT_ONCE):
        for row in rows:
            yield dict(zip(names, row, strict=True))


def _line(values: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run, and escape what a terminal would; numbers stay."""
    return _FORMULA.sub("'", visible(value)) if isinstance(value, str) else value


def _time(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat(timespec="microseconds")
    except (OverflowError, ValueError, OSError):
        return None
