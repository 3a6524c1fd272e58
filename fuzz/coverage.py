"""A parser of bytes under a coverage-guided fuzzer: `python -m fuzz.coverage NAME`; needs atheris.

Atheris is a development extra (`pip install '.[fuzz]'`, Linux and macOS). An input that breaks a promise is written to
the folder as `crash-...` by libFuzzer, and `python -m fuzz.coverage NAME --replay FILE` runs it again without atheris.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType

import volatility3.plugins

from fuzz.corpus import CORPORA
from fuzz.machine import ROOT
from fuzz.parsers import PARSERS

_INSTRUMENTED = "volatility3.plugins.windows.apcaudit."


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz.coverage", description="Fuzz a parser, led by its coverage.")
    parser.add_argument("parser", choices=PARSERS, metavar="NAME", help=" ".join(PARSERS))
    parser.add_argument("--minutes", type=float, default=5, metavar="N", help="how long (default: 5)")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="for the corpus and for what breaks a promise")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this input alone, without atheris")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz until the time is up or a promise is broken, which ends the process with libFuzzer's exit code."""
    options = _parse(arguments)
    ours = str(ROOT / "vol_plugins")
    if ours not in volatility3.plugins.__path__:
        volatility3.plugins.__path__.insert(0, ours)
    chosen = PARSERS[options.parser]
    if options.replay is not None:
        chosen(options.replay.read_bytes())
        return 0
    atheris = importlib.import_module("atheris")
    # The parsers import what they try when they are called; vol's plugins are loaded in a way of their own, so that
    # atheris cannot instrument them on import.
    for data in CORPORA[options.parser]():
        chosen(data)
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and (function.__module__ or "").startswith(_INSTRUMENTED):
            atheris.instrument_func(function)
    folder = options.folder or Path(tempfile.mkdtemp(prefix=f"apcaudit-{options.parser}-"))
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(CORPORA[options.parser]()):
        (folder / f"made-{number}").write_bytes(data)
    limits = [f"-max_total_time={round(60 * options.minutes)}", "-max_len=65536", "-timeout=20", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={folder}/", str(folder)], chosen)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
