"""`apcaudit export`: the results as JSON lines, CSV or Timesketch's JSON lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from apcaudit import output
from apcaudit.bulk import damage, export, store
from apcaudit.bulk.arguments import check_results
from apcaudit.bulk.extra import need
from apcaudit.bulk.records import TABLES
from apcaudit.errors import ApcAuditError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "export",
        help="the results of a scan for other tools",
        description="Write results of a scan as JSON lines, as CSV whose cells no spreadsheet runs, or for Timesketch."
        " Addresses are hexadecimal, and each line names its image. Exit code 2: damaged results are left out.",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of `apcaudit scan -o`")
    parser.add_argument("--format", choices=("jsonl", "csv", "timesketch"), default="jsonl", help="default: jsonl")
    parser.add_argument("--table", choices=tuple(TABLES), help="default: findings; timesketch takes none")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the results; return the exit code."""
    need("pyarrow", "duckdb")
    check_results(options.results)
    if options.format == "timesketch" and options.table is not None:
        raise ApcAuditError("--format timesketch is one timeline of all tables: leave out --table")
    if options.output is None and not sys.stdout.writable():
        raise ApcAuditError("standard output is closed: name a file with -o")
    timeline = options.format == "timesketch"
    table = options.table or "findings"
    results = store.read(options.results, export.TIMELINE if timeline else (table,))
    code = damage.report(results.damages)
    if options.output is None:
        _export(results, options.format, table, sys.stdout.writelines)
    else:
        with output.writing(options.output, evidence=results.evidence) as file:
            _export(results, options.format, table, lambda lines: file.writelines(line.encode() for line in lines))
    return code


def _export(results: store.Results, form: str, table: str, write: Callable[[Iterable[str]], None]) -> None:
    """Write the lines of results, and print on stderr what a timeline lacks."""
    if form == "timesketch":
        write(export.timesketch(results))
        for note in export.timeline_notes(results):
            print(note, file=sys.stderr)
    else:
        write((export.jsonl if form == "jsonl" else export.comma_separated)(results, table))
