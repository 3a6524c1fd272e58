"""`apcaudit export`: the results as JSON lines, CSV or Timesketch's JSON lines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from apcaudit.bulk import export
from apcaudit.bulk.arguments import check_results
from apcaudit.bulk.records import TABLES
from apcaudit.errors import ApcAuditError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "export",
        help="the results of a scan for other tools",
        description="Write results of a scan as JSON lines, as CSV whose cells no spreadsheet runs, or for Timesketch.",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of `apcaudit scan -o`")
    parser.add_argument("--format", choices=("jsonl", "csv", "timesketch"), default="jsonl", help="default: jsonl")
    parser.add_argument("--table", choices=tuple(TABLES), help="default: findings; timesketch takes none")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the results."""
    check_results(options.results)
    table = options.table or "findings"
    if options.format == "timesketch":
        if options.table is not None:
            raise ApcAuditError("--format timesketch is one timeline of all tables: leave out --table")
        lines = export.timesketch(options.results)
    else:
        made = export.jsonl if options.format == "jsonl" else export.comma_separated
        lines = made(options.results, table)
    if options.output is None:
        sys.stdout.writelines(lines)
    else:
        with options.output.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
    return 0
