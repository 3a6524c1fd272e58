"""`apcaudit report`: makes one HTML file of a folder of results or of one image."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from apcaudit import output
from apcaudit.bulk import damage, evidence, pool, store, symbol_folders
from apcaudit.bulk.arguments import check_results
from apcaudit.bulk.damage import EXIT_LEFT_OUT
from apcaudit.bulk.extra import need
from apcaudit.bulk.outcome import Settings
from apcaudit.errors import ApcAuditError
from apcaudit.reports import dataset, page
from apcaudit.reports.dataset import Dataset
from apcaudit.text import counted, encodable, name_of, one_line


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "report",
        help="make one HTML file of results, or of one image",
        description="Make one HTML file of a folder of results that `apcaudit scan` made, or of one image, which is"
        " scanned first. The file needs no network. Exit code 0: made; 1: an error in use; 2: made, and the image could"
        " not be scanned, or damaged results are left out.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of results, or an image")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the HTML file")
    image = parser.add_argument_group("of an image")
    image.add_argument("-s", "--symbol-dirs", action="append", default=[], metavar="DIR", help="folder of symbol files")
    image.add_argument("--offline", action="store_true", help="fetch no symbol files")
    image.add_argument("--scan", action="store_true", help="also search memory for threads and APCs no list holds")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the report; return the exit code."""
    need("pyarrow", "duckdb", "jinja2")
    if options.path.is_dir():
        check_results(options.path)
        read = store.read(options.path)
        with output.writing(options.output, evidence=read.evidence) as file:
            found, code = _write(read, options.path.resolve().name, file)
        _say(options.output, found)
        return code
    if not options.path.exists():
        raise ApcAuditError(f"{options.path}: no such folder of results, and no such image")
    symbol_folders.check(options.symbol_dirs)
    with (
        tempfile.TemporaryDirectory(prefix="apcaudit-") as folder,
        output.writing(options.output, evidence=[options.path]) as file,
    ):
        settings = Settings(
            results=Path(folder, "results"),
            symbols=tuple(Path(each).resolve() for each in options.symbol_dirs),
            offline=options.offline,
            scan=options.scan,
        )
        with pool.opened(settings, 1) as executor:
            for _ in pool.run(executor, evidence.find([str(options.path)]), settings, _quiet):
                pass
        found, code = _write(store.read(settings.results), name_of(encodable(str(options.path))), file)
    _say(options.output, found)
    return EXIT_LEFT_OUT if found.failed else code


def _write(results: store.Results, title: str, file: BinaryIO) -> tuple[Dataset, int]:
    """Write the page of results; return its dataset and the exit code, which is 0 unless results are left out."""
    code = damage.report(results.damages)
    found = dataset.make(results)
    file.write(page.render(found, title).encode())
    return found, code


def _say(path: Path, found: Dataset) -> None:
    findings = counted(len(found.findings), "finding")
    counts = f"{counted(len(found.images), 'image')}, {len(found.failed)} failed, {findings}"
    print(f"{one_line(str(path))}: {counts}", file=sys.stderr)


def _quiet(worker: str, source: str, stage: str) -> None:
    """Print no stages for a single image."""
