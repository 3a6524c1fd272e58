"""`--scan` against windows.thrdscan, which finds the same threads, and against a plain search of the same file."""

from __future__ import annotations

import sys

from benchmarks.processes import Command
from benchmarks.search import WAYS
from benchmarks.verdict import Bench, Result, Verdict, threads
from benchmarks.vol import OURS

TO_THRDSCAN = 1 / 40
TO_SEARCH = 0.5

SCAN = "--scan"

#: Shorter than any difference that two medians of whole processes can tell from nothing.
_LEAST = 1e-3


def against_thrdscan(bench: Bench) -> Result:
    """Measure a scan against windows.thrdscan, and compare the threads that both found."""
    name = threads(bench.main)
    what, target = f"`--scan`, {name}, same threads found", f"at most 1/{1 / TO_THRDSCAN:.0f} of windows.thrdscan"
    vol, image = bench.vol, bench.images.many(bench.main)
    ours_out, peer_out = bench.images.folder / "scan.txt", bench.images.folder / "thrdscan.txt"
    peer_command = vol.command("windows.thrdscan", "windows.thrdscan", image, rounds=bench.slow_rounds, output=peer_out)
    series = bench.processes.interleaved(
        [
            (vol.audit(image, SCAN), name),
            (vol.audit(image, SCAN, "--all", "--wide", rounds=bench.slow_rounds, output=ours_out), name),
            (peer_command, name),
        ],
        bench.rounds,
    )
    ours, listing, peer = (each.seconds for each in series)
    comparison = (sys.executable, "-m", "benchmarks.found", str(ours_out), str(peer_out))
    found = bench.processes.run(Command("comparison of the threads found", comparison, reports=True)).report
    return Result(
        series,
        [
            Verdict(
                what,
                target,
                f"1/{peer / ours:.1f} ({ours:.2f} s to {peer:.2f} s; listing all rows 1/{peer / listing:.1f}); "
                f"{found['peer']:,} threads found by windows.thrdscan, {found['missed']:,} of them missed, "
                f"{found['others']:,} others found",
                ours / peer <= TO_THRDSCAN and found["peer"] > 0 and not found["missed"],
                {"ratio": ours / peer, "ratio_listing": listing / peer, **found},
            )
        ],
    )


def against_search(bench: Bench) -> Result:
    """Measure the rate of a scan over a large image against that of a search for two byte strings.

    The time of the scan is what `--scan` adds to the process; the search tells its own time.
    """
    size = f"{bench.large / 2**30:.3g} GiB"
    what, target = f"`--scan`, {size} image", f"at least {TO_SEARCH} of the rate of a search for two byte strings"
    image = bench.images.sparse(bench.small, bench.large)
    searches = [
        Command(f"search with {way}", (sys.executable, "-m", "benchmarks.search", way, str(image)), reports=True)
        for way in WAYS
    ]
    # So that the first command in turn is not the one that has the file read into memory.
    bench.processes.run(searches[0])
    commands = [bench.vol.audit(image, SCAN), bench.vol.audit(image), *searches]
    series = bench.processes.interleaved([(command, size) for command in commands], bench.slow_rounds)
    whole, without, *peers = series
    seconds = max(whole.seconds - without.seconds, _LEAST)
    peer = min(peers, key=lambda each: each.reported("seconds"))
    rate, peer_rate = bench.large / seconds, bench.large / peer.reported("seconds")
    return Result(
        series,
        [
            Verdict(
                what,
                target,
                f"{rate / peer_rate:.2f} ({rate / 2**20:,.0f} MiB/s to {peer_rate / 2**20:,.0f} MiB/s; "
                f"whole processes {peer.seconds / whole.seconds:.2f}, {OURS} without the scan {without.seconds:.2f} s)",
                rate / peer_rate >= TO_SEARCH,
                {
                    "ratio": rate / peer_rate,
                    "bytes_per_second": rate,
                    "search_bytes_per_second": peer_rate,
                    "ratio_whole_processes": peer.seconds / whole.seconds,
                },
            )
        ],
    )
