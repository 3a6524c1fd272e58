"""`apcaudit report`: a folder of results, or one image, to one HTML file."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import uuid
from pathlib import Path

from apcaudit.bulk import evidence, pool
from apcaudit.bulk.arguments import check_results
from apcaudit.bulk.extra import load
from apcaudit.bulk.outcome import Settings
from apcaudit.errors import ApcAuditError
from apcaudit.reports import dataset, page
from apcaudit.reports.visible import name_of


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "report",
        help="make one HTML file of results, or of one image",
        description="Make one HTML file of a folder of results that `apcaudit scan` made, or of one image, which is"
        " scanned first. The file needs no network. Exit code 0: made; 1: an error in use; 2: made, and the image could"
        " not be scanned.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of results, or an image")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the HTML file")
    image = parser.add_argument_group("of an image")
    image.add_argument("-s", "--symbol-dirs", action="append", default=[], metavar="DIR", help="folder of symbol files")
    image.add_argument("--offline", action="store_true", help="fetch no symbol files")
    image.add_argument("--scan", action="store_true", help="also search memory for threads and APCs no list holds")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the report; give the exit code."""
    load("jinja2")
    if options.path.is_dir():
        check_results(options.path)
        _make(options.path, options.output, options.path.resolve().name)
        return 0
    if not options.path.exists():
        raise ApcAuditError(f"{options.path}: no such folder of results, and no such image")
    with tempfile.TemporaryDirectory(prefix="apcaudit-") as folder:
        settings = Settings(
            results=Path(folder, "results"),
            symbols=tuple(Path(each).resolve() for each in options.symbol_dirs),
            offline=options.offline,
            scan=options.scan,
        )
        with pool.opened(settings, 1) as executor:
            for _ in pool.run(executor, evidence.find([str(options.path)]), settings, _quiet):
                pass
        failed = _make(settings.results, options.output, name_of(str(options.path)))
    return 2 if failed else 0


def _make(results: Path, output: Path, title: str) -> int:
    """Write the report, whole or not at all; give how many images failed."""
    found = dataset.read(results)
    text = page.render(found, title)
    unfinished = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        os.replace(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)
    failed = len(found.failed)
    print(f"{output}: images {len(found.images)}, failed {failed}, findings {len(found.findings)}", file=sys.stderr)
    return failed


def _quiet(worker: str, source: str, stage: str) -> None:
    """Show nothing of the stages: it is one image."""
