"""YARA over all drivers against the engine alone on the same bytes: by two rules, and by a file of thousands."""

from __future__ import annotations

from pathlib import Path

from benchmarks import rule_set
from benchmarks.driver_content import SIZES
from benchmarks.processes import Series
from benchmarks.verdict import Bench, Result, Verdict

TO_ENGINE = 1.2
IN_SECONDS = 10

YARA_ALL = "--yara-all"

#: Every string has to be looked for everywhere, and none is rare enough to make the search trivial: with rules that
#: cost the engine so little, what it does not do itself shows.
RULES = r"""
rule text { strings: $a = "ScUnInitExcludePath" $b = "FltSendMessage" wide ascii condition: any of them }
rule code { strings: $a = { 48 8B C4 48 89 58 ?? 57 48 83 EC } $b = { 0F 22 C0 [0-8] C3 } condition: any of them }
"""

WHAT = "YARA over all drivers"
_IMAGE = f"{len(SIZES)} drivers, {sum(SIZES) >> 20} MiB"


def against_engine(bench: Bench) -> Result:
    """Measure what rules over all drivers add to the process against the engine's time for the same bytes."""
    target = f"within {TO_ENGINE} of the engine alone"
    thousands = f"{WHAT}, a file of {rule_set.RULES:,} rules"
    few, many = bench.images.folder / "few.yar", bench.images.folder / "many.yar"
    few.write_text(RULES, encoding="ascii")
    rule_set.write(many)
    of_few, of_many = _series(bench, few, "2 rules"), _series(bench, many, f"{rule_set.RULES:,} rules")
    verdicts = [
        _ratio(f"{WHAT}, 2 rules", target, of_few),
        _ratio(thousands, target, of_many),
        _once(thousands, of_many),
    ]
    return Result([*of_few, *of_many], verdicts)


def _series(bench: Bench, rules: Path, name: str) -> list[Series]:
    image, without = bench.images.drivers(), "--no-default-rules"
    with_rules = (without, YARA_ALL, "--yara-file", str(rules))
    return bench.processes.interleaved(
        [
            (bench.vol.audit(image, *with_rules, label=f"with {name}"), _IMAGE),
            (bench.vol.audit(image, without, label="without YARA rules"), _IMAGE),
            (bench.vol.inside(f"the YARA engine alone, {name}", "engine", image, "--rules", str(rules)), _IMAGE),
            (bench.vol.inside(f"the audit from within, {name}", "yara", image, "--rules", str(rules)), _IMAGE),
        ],
        bench.rounds,
    )


def _ratio(what: str, target: str, series: list[Series]) -> Verdict:
    """Compare times, of compiling and scanning both; the audit scans by two threads, so tell processor time too."""
    ours, bare, engine, _ = series
    added, alone = ours.seconds - bare.seconds, engine.reported("seconds")
    of_processor = (ours.processor_seconds - bare.processor_seconds) / engine.reported("processor")
    return Verdict(
        what,
        target,
        f"{added / alone:.2f} times ({added:.2f} s to {alone:.2f} s; processor time {of_processor:.2f} times)",
        added / alone <= TO_ENGINE,
        {"ratio": added / alone, "ratio_of_processor_time": of_processor},
    )


def _once(what: str, series: list[Series]) -> Verdict:
    """Tell how long the whole process takes, and compiling and scanning apart, beside the engine's own."""
    ours, _, engine, within = series
    compilations, hits = within.reported("compilations"), within.reported("hits")
    scan, compiled = within.reported("seconds"), within.reported("compile")
    often = "once" if compilations == 1 else f"{compilations:.0f} times"
    return Verdict(
        what,
        f"compiled once, the same hits, whole process within {IN_SECONDS} s",
        f"{ours.seconds:.2f} s; compiled {often} in {compiled:.2f} s"
        f" (engine alone {engine.reported('compile'):.2f} s), audited and scanned in {scan:.2f} s (engine alone"
        f" {engine.reported('scan'):.2f} s), {hits:.0f} hits (engine alone {engine.reported('hits'):.0f})",
        compilations == 1 and hits == engine.reported("hits") and ours.seconds <= IN_SECONDS,
        {"seconds": ours.seconds, "compilations": compilations, "compile": compiled, "scan": scan},
    )
