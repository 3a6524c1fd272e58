"""Run the benchmark as `python -m benchmarks`: images, peers and ours in turns, tables on stdout, talk on stderr."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from apcaudit import output
from apcaudit.errors import ApcAuditError
from benchmarks import machine, table
from benchmarks.images import Images, builder
from benchmarks.listing import cost_of_a_thread, desktop, memory, whole_process
from benchmarks.native import against_memprocfs
from benchmarks.processes import BenchmarkError, Processes, Series
from benchmarks.scanning import against_search, against_thrdscan
from benchmarks.startup import cost_to_others
from benchmarks.verdict import Bench, Measure, Verdict
from benchmarks.vol import Vol, copy_stock
from benchmarks.yara_rules import against_engine

MEASURES: dict[str, Measure] = {
    "list": whole_process,
    "desktop": desktop,
    "native": against_memprocfs,
    "thread": cost_of_a_thread,
    "memory": memory,
    "scan": against_thrdscan,
    "search": against_search,
    "yara": against_engine,
    "startup": cost_to_others,
}

SIZES = (1_000, 20_000, 200_000)
LARGE_MIB = 4096
ROUNDS = 5
SLOW_ROUNDS = 3

QUICK_SIZES = (300, 1_000, 3_000)
QUICK_LARGE_MIB = 64


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure windows.apcaudit beside its peers, in one run."
    )
    parser.add_argument("--quick", action="store_true", help="small images, one round: tells only that it works")
    parser.add_argument("--only", nargs="+", choices=tuple(MEASURES), metavar="MEASURE", help=", ".join(MEASURES))
    parser.add_argument("--sizes", nargs=3, type=int, metavar="N", help="thread counts: small, main, big")
    parser.add_argument("--large", type=int, metavar="MIB", help="size of the sparse image")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds; peers that take long run {SLOW_ROUNDS} times")
    parser.add_argument("--kernel", default="10-19041-x64", help="kernel of the images: a name of `apcaudit synth`")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep images here (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers here")
    options = parser.parse_args(arguments)
    options.sizes = tuple(options.sizes or (QUICK_SIZES if options.quick else SIZES))
    options.large = options.large or (QUICK_LARGE_MIB if options.quick else LARGE_MIB)
    options.rounds = options.rounds or (1 if options.quick else ROUNDS)
    if options.rounds < 1 or not 0 < options.sizes[0] < options.sizes[1] <= options.sizes[2]:
        parser.error("--sizes must be small < main <= big, and --rounds at least 1")
    return options


def prepare(folder: Path, options: argparse.Namespace) -> Bench:
    """Make the folder ready: vol's copy, and its cache warm."""
    small, main, big = options.sizes
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    processes = Processes(copy_stock(folder / "stock"), repeated=options.rounds > 1)
    vol = Vol(cache)
    images = Images(folder, options.kernel, processes, builder())
    # Vol's first run on a cache folder reads every symbol file.
    for command in (vol.command("warm-up", "windows.modules", images.many(small)), vol.audit(images.many(small))):
        processes.run(command)
    slow = min(options.rounds, SLOW_ROUNDS)
    return Bench(processes, vol, images, options.rounds, slow, small, main, big, options.large << 20)


def measure(bench: Bench, names: list[str]) -> tuple[list[Series], list[Verdict]]:
    """Take the measures by name, one after the other."""
    series: list[Series] = []
    verdicts: list[Verdict] = []
    for name in names:
        print(f"{name}:", file=sys.stderr, flush=True)
        result = MEASURES[name](bench)
        series += result.series
        verdicts += result.verdicts
    return series, verdicts


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; give 0 whether targets are met or not, 1 when something failed."""
    options = _parse(arguments)
    names = options.only or list(MEASURES)
    described = machine.describe()
    try:
        with tempfile.TemporaryDirectory(prefix="apcaudit-bench-") as temporary:
            folder = (options.work or Path(temporary)).resolve()
            series, verdicts = measure(prepare(folder, options), names)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"{name}: {value}" for name, value in described.items()))
    print(f"\nKernel {options.kernel}. Each value is the median of whole processes; the programs run alternately.")
    print(f"Rounds: {options.rounds}, and at most {SLOW_ROUNDS} of slow plugins.")
    if options.quick:
        print("A quick run: it shows that the benchmark works, and nothing about speed.")
    print(f"\n{table.of_targets(verdicts)}\n\n{table.of_runs(series)}")
    if options.json is not None:
        settings = {"kernel": options.kernel, "sizes": options.sizes, "large_mib": options.large, "measures": names}
        document = table.document(described, settings, series, verdicts)
        try:
            output.write(options.json, json.dumps(document, indent=2) + "\n")
        except ApcAuditError as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
