"""The list view against MemProcFS, native code that nobody here wrote, which lists the threads of the same image.

Run as `python -m benchmarks.native IMAGE`, it is the peer: it prints a JSON object of numbers.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.processes import Command
from benchmarks.verdict import NOT_MEASURED, Bench, Result, Verdict, threads
from benchmarks.vol import OURS

TO_MEMPROCFS = 1.2

#: MemProcFS takes no machine for Windows that has fewer processes: the scene's have 400 threads each.
LEAST = 4_800


def against_memprocfs(bench: Bench) -> Result:
    """Measure the list view against MemProcFS's listing of every thread of every process."""
    name = threads(bench.main)
    what, target = f"whole process, list view, {name}", f"at most {TO_MEMPROCFS} times MemProcFS"
    if find_spec("memprocfs") is None or bench.main < LEAST:
        return Result([], [Verdict(what, target, NOT_MEASURED, None)])
    image = bench.images.many(bench.main)
    ours, within, modules, peer = series = bench.processes.interleaved(
        [
            (bench.vol.audit(image), name),
            (bench.vol.inside(f"{OURS}, within the process", "rows", image), name),
            (bench.vol.command("windows.modules", "windows.modules", image), name),
            (command(image), name),
        ],
        bench.rounds,
    )
    ratio = ours.seconds / peer.seconds
    return Result(
        series,
        [
            Verdict(
                what,
                target,
                f"{ratio:.2f} times ({ours.seconds:.2f} s to {peer.seconds:.2f} s for {peer.reported('threads'):,.0f} "
                f"threads; the audit within the process {within.reported('total'):.2f} s, windows.modules "
                f"{modules.seconds:.2f} s)",
                ratio <= TO_MEMPROCFS,
                {"ratio": ratio},
            )
        ],
    )


def command(image: Path) -> Command:
    """Make the command of the peer."""
    return Command("MemProcFS", (sys.executable, "-m", "benchmarks.native", str(image)), reports=True)


def listing(path: str) -> dict[str, float]:
    """List every thread with MemProcFS."""
    start = time.perf_counter()
    memprocfs: Any = importlib.import_module("memprocfs")
    vmm = memprocfs.Vmm(["-device", path, "-waitinitialize", "-disable-symbolserver", "-disable-python"])
    found = sum(len(process.maps.thread()) for process in vmm.process_list())
    seconds = time.perf_counter() - start
    vmm.close()
    return {"threads": found, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(listing(sys.argv[1])))
