"""`apcaudit show`: prints a summary of an audit's rows, and those with findings as cards, the worst first."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from apcaudit.errors import ApcAuditError
from apcaudit.no_file import kind_of
from apcaudit.text import counted, one_line

SEVERITIES = ("critical", "high", "medium", "low", "info")

#: Lines of a card: a label, and the columns that follow it.
_LINES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("thread", ("Thread", "TID", "State")),
    ("process", ("Process", "PID", "Attached")),
    ("starts at", ("StartRoutine",)),
    (
        "APC state",
        ("ApcStateIndex", "KernelApcPending", "KernelApcInProgress", "KernelApcDisable", "SpecialApcDisable"),
    ),
    ("queued", ("Queue", "Apc", "Kind")),
    ("runs", ("KernelRoutine", "NormalRoutine")),
    ("origin", ("Origin",)),
    ("YARA", ("Yara",)),
)

#: Columns whose values need no name; for the others the name is printed before the value.
_PLAIN = frozenset({"Thread", "Process", "State", "StartRoutine", "Queue", "Apc", "Kind", "Origin", "Yara"})
_HEXADECIMAL = frozenset({"Thread", "Apc"})
_INDENT = " " * 13


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "show",
        help="print the audit's rows as cards",
        description="Print rows of `vol -q -r jsonl -f IMAGE windows.apcaudit --wide`, or of -r json, as cards, the"
        " worst first.",
    )
    parser.add_argument("rows", nargs="?", default="-", metavar="ROWS", help="file of rows; - is standard input")
    parser.add_argument(
        "--min-severity",
        choices=SEVERITIES,
        default="low",
        help="print no cards below this severity, but that of the thread that crashed (default: low; info prints every"
        " row)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read the rows and print their cards."""
    try:
        text = _stdin() if options.rows == "-" else _read(Path(options.rows))
        rows = _rows(text)
        if not text:
            raise ApcAuditError(f"{options.rows} is empty: vol printed no rows, its messages say why")
        if any(not isinstance(row, dict) or not isinstance(row.get("Findings"), str) for row in rows):
            raise ValueError("a line is no row with Severity and Findings")
        rows = [_harmless(row) for row in rows]
    except (ValueError, RecursionError) as error:
        raise ApcAuditError(f"{options.rows} holds no rows of the audit, {_WANTED}: {error}") from error
    width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    print("\n".join(summary(rows, width)))
    floor = SEVERITIES.index(options.min_severity)
    for card in cards([row for row in rows if SEVERITIES.index(row["Severity"]) <= floor or _crashed(row)], width):
        print(f"\n{card}")
    return 0


#: Devices that are read nevertheless: redirected output of another command, and empty input.
_READ_TO_THE_END = ("/dev/stdin", "/dev/null")

_WANTED = "which `vol -q -r jsonl -f IMAGE windows.apcaudit --wide` prints"

_HEAD = 4096
"""How many characters are read first, to recognise an image given by mistake without reading all of it."""


def _stdin() -> str:
    if sys.stdin is None:
        raise ApcAuditError(f"standard input is closed: name a file of rows, {_WANTED}")
    return sys.stdin.read()


def _read(path: Path) -> str:
    kind = kind_of(path)
    if kind not in (None, "a FIFO") and str(path) not in _READ_TO_THE_END:
        raise ApcAuditError(f"{path} is {kind}; this takes a file of rows, {_WANTED}")
    with path.open(encoding="utf-8") as file:
        text = file.read(_HEAD)
        if text.strip() and not text.lstrip().startswith(("{", "[")):
            raise ValueError("it does not begin with a row")
        return text + file.read()


def _rows(text: str) -> list[Any]:
    """Parse the output of vol's json renderer, one array, or of its jsonl renderer, one row per line."""
    if text.lstrip().startswith("["):
        rows: list[Any] = json.loads(text)
        return rows
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def stops(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return how the machine stopped, as the row of the thread that crashed says; one line for each image."""
    said = (match for row in rows if (match := _STOPPED.search(row.get("Explanation") or "")))
    return list(dict.fromkeys(f"The machine stopped: {match[1]}" for match in said))


#: How the machine stopped, in an explanation: until its end, or until the sentence after it.
_STOPPED = re.compile(r"(?:^|\. )stopped: (.*?)\.(?=$| (?:nested-attach|yara|evidence|inferred|stack|still queued)\b)")


def summary(rows: Sequence[dict[str, Any]], width: int) -> Iterator[str]:
    """Yield the summary: how the machine stopped, how many threads and APCs, the severities, why APCs are still queued.

    Args:
        rows: columns by name; with clean rows among them (`--all`), they have all threads of the image.
        width: the longest line in characters.
    """
    for stop in stops(rows):
        yield from textwrap.wrap(stop, width, subsequent_indent="  ", break_on_hyphens=False)
    threads = {row.get("Thread"): row for row in rows}
    apcs = sum(row.get("Apc") is not None for row in rows)
    clean = [row for row in rows if row.get("Apc") is None and not row["Findings"]]
    if any(not _crashed(row) for row in clean):
        what = counted(len(threads), "thread")
    else:
        # The thread that crashed is there, whatever it has queued.
        what = f"{counted(len(threads) - len(clean), 'thread')} with APCs queued or findings"
    worst = Counter(_worst_by_thread(rows).values())
    wrong = [f"{worst[level]} {level}" for level in SEVERITIES[:3] if worst[level]]
    # Of a machine that crashed nobody wants to read that nothing is wrong.
    verdict = f"{', '.join(wrong)}" if wrong else "no finding" if any(map(_crashed, rows)) else "nothing wrong"
    yield f"{what}, {counted(apcs, 'APC')} queued: {verdict}"
    reasons = Counter(match[1].strip() for row in rows for match in _REASON.finditer(row.get("Explanation") or ""))
    if reasons:
        text = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        yield from textwrap.wrap(f"still queued: {text}", width, initial_indent="  ", subsequent_indent="    ")
    low = Counter(code for row in rows if row["Severity"] == "low" for code in row["Findings"].split(","))
    if low:
        text = ", ".join(f"{code} {count}" for code, count in sorted(low.items()))
        yield from textwrap.wrap(
            f"explained, worth seeing: {text}", width, initial_indent="  ", subsequent_indent="    "
        )


def _crashed(row: dict[str, Any]) -> bool:
    """Tell whether a row is of the thread that crashed."""
    return _STOPPED.search(row.get("Explanation") or "") is not None


#: The reason why an APC is still queued, without its values.
_REASON = re.compile(r"still queued, ([^:(.]+)")


def _worst_by_thread(rows: Iterable[dict[str, Any]]) -> dict[Any, str]:
    worst: dict[Any, str] = {}
    for row in rows:
        held = worst.get(row.get("Thread"), "info")
        worst[row.get("Thread")] = min(held, row["Severity"], key=SEVERITIES.index)
    return worst


def cards(rows: Iterable[dict[str, Any]], width: int) -> Iterator[str]:
    """Make the cards of rows, the worst first and otherwise in their order.

    Args:
        rows: columns by name, as vol's JSON renderers give them.
        width: the longest line in characters.
    """
    ordered = sorted(rows, key=lambda row: SEVERITIES.index(row["Severity"]) if row["Severity"] in SEVERITIES else 0)
    for row in ordered:
        nothing = "no finding; the thread that crashed" if _crashed(row) else "nothing found"
        lines = [f"{row['Severity'].upper():8}  {row['Findings'].replace(',', ', ') or nothing}"]
        for label, columns in _LINES:
            values = [shown for name in columns if (shown := _shown(name, row.get(name))) is not None]
            if values:
                lines.append(f"  {label:9}  {', '.join(values)}")
        for sentence in _sentences(row):
            lines += textwrap.wrap(
                sentence, width, initial_indent="  * ", subsequent_indent="    ", break_on_hyphens=False
            )
        yield "\n".join(_fold(lines, width))


def _harmless(row: dict[str, Any]) -> dict[str, Any]:
    """Check a row and escape its control characters, since the file may come from anybody."""
    made = {name: one_line(value) if isinstance(value, str) else value for name, value in row.items()}
    if made.get("Severity") not in SEVERITIES:
        raise ValueError(f"{made.get('Severity')!r} is no severity")
    numbers = {name: made[name] for name in _HEXADECIMAL if name in made}
    if any(value is not None and not isinstance(value, int) for value in numbers.values()):
        raise ValueError("an address is no number")
    return made


def _shown(name: str, value: Any) -> str | None:
    """Return a column's value as text, None for an empty one."""
    if value in (None, ""):
        return None
    if name in _HEXADECIMAL:
        return f"{value:#x}" if name == "Thread" else f"KAPC {value:#x}"
    if name == "Attached":
        return f"attached to {value}"
    return str(value) if name in _PLAIN else f"{name} {int(value) if isinstance(value, bool) else value}"


def _sentences(row: dict[str, Any]) -> list[str]:
    """Split an explanation into sentences, each of which begins with a finding's code or another label."""
    text = row.get("Explanation") or ""
    words = ("evidence", "inferred", "nested-attach", "yara", "stack", "crash", "stopped", "still queued")
    starts = [*row["Findings"].split(","), *words]
    for start in filter(None, starts):
        text = text.replace(f". {start}:", f".\n{start}:")
    # How the machine stopped stands above all cards.
    return [line for line in text.split("\n") if line and not line.startswith("stopped:")]


def _fold(lines: Iterable[str], width: int) -> Iterator[str]:
    for line in lines:
        if len(line) <= width:
            yield line
        else:
            yield from textwrap.wrap(line, width, subsequent_indent=_INDENT, break_on_hyphens=False)
