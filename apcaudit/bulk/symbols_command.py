"""`apcaudit symbols`: which kernel each image has, whether its symbol file is there, and how to get the others."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from apcaudit.bulk import evidence, worker
from apcaudit.bulk import scratch as unpacking
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.isolation import ImageError, Isolation
from apcaudit.bulk.scan_command import size
from apcaudit.errors import ApcAuditError
from apcaudit.text import one_line

EXIT_MISSING = 2

_PDB = re.compile(r"[\w.-]{1,64}")
_GUID = re.compile(r"[0-9A-Fa-f]{32}")


@dataclass(frozen=True, slots=True)
class Symbols:
    """An image's kernel by its PDB, and whether its symbol file is there; without a PDB, why none is known."""

    source: str
    pdb: str | None = None
    guid: str | None = None
    age: int | None = None
    present: bool = False
    reason: str | None = None

    @property
    def file(self) -> str:
        """The symbol file's path below a folder of symbol files."""
        return f"windows/{self.pdb}/{self.guid}-{self.age}.json.xz"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "symbols",
        help="which symbol files images need, and how to fetch them elsewhere",
        description="Print each image's kernel: PDB name, GUID and age, and whether its symbol file is there. Then the"
        " commands that make the missing ones, to be run on a connected machine. Exit code 2 when any is missing.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="images, folders of images, patterns")
    parser.add_argument(
        "-s", "--symbol-dirs", action="append", default=[], metavar="DIR", help="folder of symbol files"
    )
    parser.add_argument("--memory", type=size, default="4G", metavar="SIZE", help="limit of one image; default 4G")
    parser.add_argument("--timeout", type=float, default=3600, metavar="S", help="limit of one image; default 3600")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where to unpack; default: the system's")
    parser.add_argument("--script", type=Path, metavar="FILE", help="write the commands to a file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the kernels and the commands."""
    images = evidence.find(options.paths)
    if not images:
        raise ApcAuditError("no images there")
    folders = tuple(Path(each).resolve() for each in options.symbol_dirs)
    here = threading.local()

    def identify(each: Evidence) -> Symbols:
        if not hasattr(here, "isolation"):
            # Nothing is fetched: the question is what a machine without a network has.
            here.isolation = Isolation(folders, worker.cache_folder(folders), offline=True)
        return identified(each, here.isolation, options.memory, options.timeout, options.scratch)

    every: list[Symbols] = []
    with ThreadPoolExecutor(min(len(images), os.cpu_count() or 1)) as pool:
        for found in pool.map(identify, images):
            every.append(found)
            print(line_of(found), flush=True)
    script = commands(every)
    if script and options.script is not None:
        options.script.write_text(script, encoding="utf-8")
        print(f"on a connected machine: sh {options.script}", file=sys.stderr)
    elif script:
        print(f"\n{script}", end="")
    return 0 if all(each.present for each in every) else EXIT_MISSING


def identified(image: Evidence, isolation: Isolation, memory: int, timeout: float, scratch: Path | None) -> Symbols:
    """Find an image's kernel in a child process with these limits, bytes and seconds."""
    request = {"do": "identify", "path": str(image.path), "member": image.member}
    try:
        with unpacking.folder(scratch) as folder:
            limits = {"memory": memory, "scratch": str(folder)}
            found = isolation.ask(request | limits, time.monotonic() + timeout, lambda _: None)
    except ImageError as error:
        return Symbols(image.source, reason=str(error))
    kernel = found["kernel"]
    # Names out of an image go into a command line.
    if kernel is None or not _PDB.fullmatch(kernel["pdb"]) or not _GUID.fullmatch(kernel["guid"]):
        return Symbols(image.source, present=found["present"], reason=found["reason"])
    return Symbols(image.source, kernel["pdb"], kernel["guid"], kernel["age"], found["present"])


def line_of(symbols: Symbols) -> str:
    """Say in a line what is known of an image's kernel."""
    if symbols.pdb is None:
        text = f"{symbols.source}: {'symbol file there, its PDB unknown' if symbols.present else symbols.reason}"
    else:
        state = "symbol file there" if symbols.present else "NO SYMBOL FILE"
        text = f"{symbols.source}: {symbols.pdb} {symbols.guid}-{symbols.age}: {state}"
    return one_line(text)


def commands(every: Iterable[Symbols]) -> str:
    """Make the script that fetches the missing symbol files; empty when none is missing."""
    missing = {each.file: each for each in every if each.pdb is not None and not each.present}
    if not missing:
        return ""
    lines = [
        "# On a connected machine with volatility3 installed; then copy the folder `symbols` here and give it with -s.",
    ]
    for file, each in sorted(missing.items()):
        path = shlex.quote(f"symbols/{file}")
        lines.append(f"mkdir -p {shlex.quote(f'symbols/windows/{each.pdb}')}")
        lines.append(
            "python3 -m volatility3.framework.symbols.windows.pdbconv"
            f" -p {shlex.quote(str(each.pdb))} -g {each.guid}{each.age} -o {path}"
        )
    return "\n".join(lines) + "\n"
