"""YARA over all drivers against the engine alone on the same bytes."""

from __future__ import annotations

from benchmarks.images import DRIVER_SIZE, DRIVERS
from benchmarks.verdict import NOT_BUILT, Bench, Result, Verdict

TO_ENGINE = 1.2

YARA_ALL = "--yara-all"

#: Every string has to be looked for everywhere, and none is rare enough to make the search trivial.
RULES = r"""
rule text { strings: $a = "ScUnInitExcludePath" $b = "FltSendMessage" wide ascii condition: any of them }
rule code { strings: $a = { 48 8B C4 48 89 58 ?? 57 48 83 EC } $b = { 0F 22 C0 [0-8] C3 } condition: any of them }
"""


def against_engine(bench: Bench) -> Result:
    """Measure what rules over all drivers add to the process against the engine's time for the same bytes."""
    name = f"{DRIVERS} drivers of {DRIVER_SIZE >> 20} MiB"
    what, target = "YARA over all drivers", f"within {TO_ENGINE} of the engine alone"
    if YARA_ALL not in bench.options:
        return Result([], [Verdict(what, target, NOT_BUILT, None)])
    rules = bench.images.folder / "bench.yar"
    rules.write_text(RULES, encoding="ascii")
    image, without = bench.images.drivers(), "--no-default-rules"
    series = bench.processes.interleaved(
        [
            (bench.vol.audit(image, without, YARA_ALL, "--yara-file", str(rules), label="with YARA rules"), name),
            (bench.vol.audit(image, without, label="without YARA rules"), name),
            (bench.vol.inside("the YARA engine alone", "engine", image, "--rules", str(rules)), name),
        ],
        bench.rounds,
    )
    ours, bare, engine = series[0].seconds, series[1].seconds, series[2].reported("seconds")
    ratio = (ours - bare) / engine
    return Result(
        series,
        [
            Verdict(
                what,
                target,
                f"{ratio:.2f} times ({ours - bare:.2f} s to {engine:.2f} s)",
                ratio <= TO_ENGINE,
                {"ratio": ratio},
            )
        ],
    )
