"""The notebook: runs the cells of docs/notebook.md in their order and writes what they print below them.

    python -m docs.notebook          # half a minute: the rows of copies of a machine are those of the first
    python -m docs.notebook --all    # builds and scans 300 images, as a reader would

A cell is a block of Python or of shell commands; all of Python
shares its names, as in a notebook. What is printed stands behind the cell, up to `<!-- end -->`. Behind `<!-- slow -->`
stand cells that run with --all only; otherwise their output stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import volatility3.plugins
import volatility3.symbols
from volatility3.framework import constants

from apcaudit.bulk import worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.outcome import Scanned, Settings
from apcaudit.bulk.records import TABLES
from tests import forked
from tests.bulk_images import own_cache

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGE = DOCS / "notebook.md"

#: The hosts of each machine that the notebook builds, as its own cell has them.
HOSTS = {
    "w10": range(1, 201),
    "w11": range(201, 261),
    "w7": range(261, 294),
    "implant": range(294, 295),
    "kiosk": range(295, 301),
}

_CELL = re.compile(
    r"(?P<before>(?P<slow><!-- slow -->\n)?```(?P<kind>python|sh)\n(?P<code>.*?)```\n)"
    r"(?P<printed>\n```text\n.*?```\n<!-- end -->\n)?",
    re.DOTALL,
)


def run(text: str, folder: Path, instead: Callable[[Path], None] | None = None) -> str:
    """Run the cells of a notebook and return its text with what they print now.

    Args:
        text: the notebook.
        folder: where its cells work.
        instead: called in place of all slow cells, whose output stays; None runs them.
    """
    names: dict[str, Any] = {"__name__": "notebook"}
    put = False

    def cell(match: re.Match[str]) -> str:
        nonlocal put
        if match["slow"] and instead is not None:
            if not put:
                instead(folder)
            put = True
            return match[0]
        printed = _python(match["code"], names) if match["kind"] == "python" else _shell(match["code"], folder)
        shown = f"\n```text\n{printed.rstrip()}\n```\n<!-- end -->\n" if printed.strip() else ""
        return match["before"] + shown

    with _working(folder):
        return _CELL.sub(cell, text)


def _python(code: str, names: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102 - the notebook is ours
    return printed.getvalue()


def _shell(code: str, folder: Path) -> str:
    """Run the lines of a cell, each a command of its own; give what they print."""
    printed = ""
    for of_ours, lines in itertools.groupby(code.splitlines(), lambda line: _OURS.fullmatch(line) is not None):
        for part in lines if of_ours else ["\n".join(lines)]:
            done = _forked(part, folder) if of_ours else _by_shell(part, folder)
            if done.returncode:
                raise SystemExit(f"{part}\n{done.stdout}{done.stderr}")
            printed += done.stdout
    return printed


#: A line that is a command of ours and nothing that only a shell knows.
_OURS = re.compile(r"apcaudit [\w./ -]+")


def _forked(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of ours in a fork of this process, which has imported what it needs."""
    return forked.apcaudit(*line.split()[1:], cache=folder / ".cache", cwd=folder)


def _by_shell(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    commands = folder / ".commands"
    commands.mkdir(exist_ok=True)
    own = commands / "apcaudit"
    own.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m apcaudit "$@"\n', encoding="utf-8")
    own.chmod(0o755)
    variables = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / ".cache"),
    }
    return subprocess.run(["sh", "-e"], input=code, capture_output=True, text=True, check=False, env=variables)  # noqa: S607


@contextlib.contextmanager
def _working(folder: Path) -> Iterator[None]:
    """Work in a folder, where vol finds the checkout's plugin and symbol files and keeps its cache."""
    plugins, symbols = str(ROOT / "vol_plugins"), str(ROOT / "symbols")
    before = Path.cwd(), list(volatility3.symbols.__path__), constants.CACHE_PATH, constants.OFFLINE
    if plugins not in volatility3.plugins.__path__:
        volatility3.plugins.__path__.insert(0, plugins)
    volatility3.symbols.__path__.insert(0, symbols)
    (folder / ".cache").mkdir(exist_ok=True)
    constants.CACHE_PATH, constants.OFFLINE = str(folder / ".cache"), True
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before[0])
        volatility3.symbols.__path__[:], constants.CACHE_PATH, constants.OFFLINE = before[1:]


def copies(folder: Path) -> None:
    """Write the results of 300 hosts: each machine is scanned once, and those of its copies are the same rows."""
    from pyarrow import parquet, repeat, scalar

    settings = Settings(folder / "scanned", offline=True)
    for kind, hosts in HOSTS.items():
        outcome = worker.scan(Evidence(folder / "kinds" / f"{kind}.dmp"), settings)
        if not isinstance(outcome, Scanned):
            raise SystemExit(outcome.reason)
        for table in TABLES:
            rows = parquet.read_table(settings.results / outcome.image / f"{table}.parquet")
            for host in hosts:
                name = hashlib.sha256(f"{kind} {host}".encode()).hexdigest()
                of_host = rows
                for column, value in (("image", name), ("source", f"/evidence/WKS{host:03}/memory.dmp.gz")):
                    if column in rows.column_names:
                        field = rows.schema.field(column)
                        values = repeat(scalar(value, field.type), rows.num_rows)
                        of_host = of_host.set_column(rows.column_names.index(column), field, values)
                (folder / "results" / name).mkdir(parents=True, exist_ok=True)
                parquet.write_table(of_host, folder / "results" / name / f"{table}.parquet")
    shutil.rmtree(settings.results)


def main() -> int:
    """Run the notebook and write its text anew."""
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, own_cache(Path(folder, "cache")):
        made = run(text, Path(folder), None if "--all" in sys.argv[1:] else copies)
    if made != text:
        PAGE.write_text(made, encoding="utf-8")
        print(PAGE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
