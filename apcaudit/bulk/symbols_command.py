"""`apcaudit symbols`: prints each image's kernel, whether its symbol file is there, and how to get missing ones."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from apcaudit import output
from apcaudit.bulk import evidence, scratch, symbol_folders
from apcaudit.bulk.arguments import check_folders, check_no_results, seconds, size
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.isolation import ImageError
from apcaudit.bulk.outcome import Settings
from apcaudit.bulk.pool import threads
from apcaudit.bulk.readers import Readers
from apcaudit.bulk.symbol_script import Symbols, commands, missing_lines, symbols_of
from apcaudit.errors import ApcAuditError
from apcaudit.text import one_line

EXIT_MISSING = 2


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "symbols",
        help="which symbol files images need, and how to fetch them elsewhere",
        description="Print each image's kernel: PDB name, GUID and age, and whether its symbol file is there. Then the"
        " commands that make the missing ones, to be run on a connected machine. Exit code 2 when any is missing,"
        " or an image has no kernel that can be told.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="images, folders of images, patterns")
    parser.add_argument(
        "-s", "--symbol-dirs", action="append", default=[], metavar="DIR", help="folder of symbol files"
    )
    parser.add_argument("--memory", type=size, default="4G", metavar="SIZE", help="limit of one image; default 4G")
    parser.add_argument("--timeout", type=seconds, default=3600, metavar="S", help="limit of one image; default 3600")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where to unpack; default: the system's")
    parser.add_argument("--script", type=Path, metavar="FILE", help="write the commands to a file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the kernels and the commands."""
    symbol_folders.check(options.symbol_dirs)
    check_folders("--scratch", [options.scratch] if options.scratch else [])
    check_no_results(options.paths)
    images = evidence.find(options.paths)
    if not images:
        raise ApcAuditError("no images there")
    folders = tuple(Path(each).resolve() for each in options.symbol_dirs)
    # Offline, since the question is which files this machine lacks.
    settings = Settings(
        Path(), folders, offline=True, memory=options.memory, timeout=options.timeout, scratch=options.scratch
    )
    readers = Readers()

    every: list[Symbols] = []
    with threads(min(len(images), os.cpu_count() or 1), readers) as executor:
        for found in executor.map(lambda each: identified(each, readers, settings), images):
            every.append(found)
            print(line_of(found), flush=True)
    for line in missing_lines(every):
        print(line)
    script = commands(every)
    if script and options.script is not None:
        try:
            output.write(options.script, script, evidence=[each.path for each in images])
        except ApcAuditError:
            # Reading the images took long, so the script is printed if its file cannot be written.
            print(f"\n{script}", end="")
            raise
        print(f"on a connected machine: sh {one_line(str(options.script))}", file=sys.stderr)
    elif script:
        print(f"\n{script}", end="")
    elif options.script is not None:
        named = one_line(str(options.script))
        print(f"no symbol file is missing of the kernels that were found: {named} is not written", file=sys.stderr)
    return 0 if all(each.present for each in every) else EXIT_MISSING


def identified(image: Evidence, readers: Readers, settings: Settings) -> Symbols:
    """Identify an image's kernel in a process with the settings' limits."""
    request = {"do": "identify", "path": str(image.path), "member": image.member}
    try:
        with scratch.folder(settings.scratch) as folder, readers.acquire(settings) as isolation:
            limits = {"memory": settings.memory, "scratch": str(folder)}
            found = isolation.ask(request | limits, time.monotonic() + settings.timeout, lambda _: None)
    except ImageError as error:
        return Symbols(image.source, reason=str(error))
    return symbols_of(image.source, found["kernel"], found["reason"])


def line_of(symbols: Symbols) -> str:
    """Return the line on an image's kernel."""
    if symbols.pdb is None and symbols.missing is not None:
        text = f"{symbols.source}: {symbols.missing}: NO SYMBOL FILE"
    elif symbols.pdb is None:
        text = f"{symbols.source}: {'symbol file there, its PDB unknown' if symbols.present else symbols.reason}"
    else:
        state = "symbol file there" if symbols.present else "NO SYMBOL FILE"
        text = f"{symbols.source}: {symbols.pdb} {symbols.guid}-{symbols.age}: {state}"
    return one_line(text)
