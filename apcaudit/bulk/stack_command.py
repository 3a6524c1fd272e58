"""`apcaudit stack`: prints what is rare among the images, as a table or as JSON lines."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from apcaudit.bulk import damage, store
from apcaudit.bulk.arguments import check_results, whole
from apcaudit.bulk.extra import need
from apcaudit.bulk.stack import KINDS, Stacked, stack, tables_for
from apcaudit.text import counted, one_line

_NAMED = 4
"""How many images a line of the table names."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "stack",
        help="what is rare among the images of a scan",
        description="Count in how many images each KernelRoutine, start routine, driver, finding and YARA rule is, the"
        " rarest first. Code is told apart by module and RVA. Exit code 2: damaged results are left out.",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of `apcaudit scan -o`")
    parser.add_argument("--baseline", type=Path, metavar="RESULTS", help="leave out what these results have")
    parser.add_argument("--kind", action="append", choices=tuple(KINDS), help="count these only; may be given again")
    parser.add_argument("--at-most", type=whole, metavar="N", help="only what is in no more than N images")
    parser.add_argument("--jsonl", action="store_true", help="JSON lines, with every image named")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what is rare."""
    need("pyarrow", "duckdb")
    for each in (options.results, *([options.baseline] if options.baseline else [])):
        check_results(each)
    kinds = options.kind or tuple(KINDS)
    results = store.read(options.results, tables_for(kinds))
    baseline = None if options.baseline is None else store.read(options.baseline, tables_for(kinds))
    code = damage.report((*results.damages, *(() if baseline is None else baseline.damages)))
    stacked = stack(results, kinds, baseline)
    if options.at_most is not None:
        stacked = [each for each in stacked if len(each.images) <= options.at_most]
    if options.jsonl:
        for each in stacked:
            print(json.dumps(dataclasses.asdict(each)))
        return code
    print(f"{'images':>11}  {'kind':14}  {'what':48}  where")
    for each in stacked:
        print(line_of(each))
    if not stacked:
        print(_nothing(options), file=sys.stderr)
    return code


def _nothing(options: argparse.Namespace) -> str:
    """Say why there is no line."""
    few = "" if options.at_most is None else f" in {counted(options.at_most, 'image')} or fewer"
    if options.baseline is None:
        return f"nothing to count{few}"
    return one_line(f"nothing new{few}: {options.baseline} has all of it")


def line_of(stacked: Stacked) -> str:
    """Make a line of the table."""
    what = stacked.name
    if stacked.rva is not None:
        what += f" ({stacked.module}+{stacked.rva:#x})"
    named = ", ".join(stacked.image_names[:_NAMED])
    more = len(stacked.image_names) - _NAMED
    count = f"{len(stacked.images)} of {stacked.of}"
    text = f"{count:>11}  {stacked.kind:14}  {what:48}  {named}{f' and {more} more' if more > 0 else ''}"
    # File names may hold control characters.
    return one_line(text)
