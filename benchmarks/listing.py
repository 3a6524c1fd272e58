"""The list view, which every run of the plugin takes: whole process, cost of a thread, memory, first row."""

from __future__ import annotations

from pathlib import Path

from benchmarks.processes import Series
from benchmarks.verdict import Bench, Result, Verdict, threads
from benchmarks.vol import OURS

TO_THREADS = 1 / 25
TO_MODULES = 1.5
A_THREAD = 15e-6
LINEAR = 1.2
MEMORY = 1.5
FIRST_ROW = 1.0


def whole_process(bench: Bench) -> Result:
    """Measure the plugin against windows.threads and windows.modules, each as a user would run it."""
    image, name = bench.images.many(bench.main), threads(bench.main)
    series = _beside_peers(bench, image, name)
    ours, peer, modules = (each.seconds for each in series)
    return Result(
        series,
        [
            Verdict(
                f"whole process, list view, {name}",
                f"at most 1/{1 / TO_THREADS:.0f} of windows.threads",
                f"1/{peer / ours:.1f} ({ours:.2f} s to {peer:.2f} s)",
                ours / peer <= TO_THREADS,
                {"ratio": ours / peer},
            ),
            Verdict(
                f"whole process, list view, {name}",
                f"at most {TO_MODULES} times windows.modules",
                f"{ours / modules:.2f} times ({ours:.2f} s to {modules:.2f} s)",
                ours / modules <= TO_MODULES,
                {"ratio": ours / modules},
            ),
        ],
    )


def desktop(bench: Bench) -> Result:
    """Measure the default listing of an ordinary machine, where hundreds of threads have something queued."""
    image, name = bench.images.desktop(), "an ordinary machine"
    series = _beside_peers(bench, image, name)
    ours, peer, modules = (each.seconds for each in series)
    return Result(
        series,
        [
            Verdict(
                f"whole process, default listing of {name}",
                "faster than windows.threads",
                f"1/{peer / ours:.1f} ({ours:.2f} s to {peer:.2f} s; windows.modules {modules:.2f} s)",
                ours < peer,
                {"ratio": ours / peer},
            )
        ],
    )


def _beside_peers(bench: Bench, image: Path, name: str) -> list[Series]:
    """Run the plugin, windows.threads and windows.modules over an image in turns."""
    vol = bench.vol
    return bench.processes.interleaved(
        [
            (vol.audit(image), name),
            (vol.command("windows.threads", "windows.threads", image, rounds=bench.slow_rounds), name),
            (vol.command("windows.modules", "windows.modules", image), name),
        ],
        bench.rounds,
    )


def cost_of_a_thread(bench: Bench) -> Result:
    """Measure run() within the process on three sizes.

    The cost of a thread is the slope from the smallest, which leaves out what an audit takes once.
    """
    sizes = (bench.small, bench.main, bench.big)
    series = bench.processes.interleaved(
        [
            (bench.vol.inside(f"{OURS}, within the process", "rows", bench.images.many(size)), threads(size))
            for size in sizes
        ],
        bench.rounds,
    )
    at_main, at_big = _slope(series, bench, 1, "total"), _slope(series, bench, 2, "total")
    busy_main, busy_big = _slope(series, bench, 1, "processor"), _slope(series, bench, 2, "processor")
    first, last = series[2].reported("first"), series[2].reported("total")
    return Result(
        series,
        [
            Verdict(
                f"marginal cost of a thread, {bench.small:,} to {threads(bench.main)}",
                f"at most {A_THREAD * 1e6:.0f} us",
                f"{at_main * 1e6:.1f} us (processor time {busy_main * 1e6:.1f} us)",
                at_main <= A_THREAD,
                {"seconds": at_main, "processor_seconds": busy_main},
            ),
            Verdict(
                f"marginal cost of a thread at {threads(bench.big)}",
                f"within {LINEAR} of that at {bench.main:,}",
                f"{at_big / at_main:.2f} times ({at_big * 1e6:.1f} us; processor time {busy_big * 1e6:.1f} us)",
                at_big / at_main <= LINEAR,
                {"ratio": at_big / at_main, "seconds": at_big, "processor_seconds": busy_big},
            ),
            Verdict(
                f"first row, {threads(bench.big)}",
                f"before {FIRST_ROW:.0f} s of audit time",
                f"{first:.2f} s (last: {last:.2f} s)",
                first < FIRST_ROW,
                {"seconds": first, "last": last},
            ),
        ],
    )


def _slope(series: list[Series], bench: Bench, size: int, clock: str) -> float:
    """Give the seconds that a thread adds between the smallest image and one of the others, by one of two clocks."""
    counts = (bench.small, bench.main, bench.big)
    return (series[size].reported(clock) - series[0].reported(clock)) / (counts[size] - counts[0])


def memory(bench: Bench) -> Result:
    """Measure the peak memory of a big image's audit against that of windows.modules."""
    image, name = bench.images.many(bench.big), threads(bench.big)
    series = bench.processes.interleaved(
        [(bench.vol.audit(image), name), (bench.vol.command("windows.modules", "windows.modules", image), name)],
        bench.slow_rounds,
    )
    ours, modules = (each.peak for each in series)
    return Result(
        series,
        [
            Verdict(
                f"peak memory, {name}, rows streamed",
                f"at most {MEMORY} times windows.modules",
                f"{ours / modules:.2f} times ({ours / 2**20:.0f} MiB to {modules / 2**20:.0f} MiB)",
                ours / modules <= MEMORY,
                {"ratio": ours / modules},
            )
        ],
    )
