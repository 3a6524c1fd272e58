"""What our package costs any other command of vol, which imports every plugin that it finds."""

from __future__ import annotations

from statistics import median

from benchmarks.processes import Series
from benchmarks.verdict import Bench, Result, Verdict, threads

COST = 10e-3

#: Pairs of runs a round: the difference is a few parts in a hundred of what is measured. A single round tells nothing
#: about speed whatever it has, so it has one.
_PAIRS = 5


def cost_to_others(bench: Bench) -> Result:
    """Measure two other plugins with our package and without it: one that needs no image, and one that opens one."""
    series: list[Series] = []
    verdicts = []
    pairs = bench.rounds * _PAIRS if bench.rounds > 1 else 1
    for plugin, image in (("frameworkinfo", None), ("windows.info", bench.images.many(bench.small))):
        name = "no image" if image is None else threads(bench.small)
        commands = [
            (bench.vol.command(f"{plugin}, with our package", plugin, image, ours=True), name),
            (bench.vol.command(f"{plugin}, without it", plugin, image), name),
        ]
        ours, without = bench.processes.interleaved(commands, pairs)
        # The runs of a round are neighbours in time: what else the machine does weighs on both alike.
        cost = median(mine.seconds - bare.seconds for mine, bare in zip(ours.runs, without.runs, strict=True))
        busy = median(
            mine.processor_seconds - bare.processor_seconds for mine, bare in zip(ours.runs, without.runs, strict=True)
        )
        series += [ours, without]
        verdicts.append(
            Verdict(
                f"cost of our package to {plugin}",
                f"at most {COST * 1e3:.0f} ms",
                f"{cost * 1e3:.1f} ms of {without.seconds * 1e3:.0f} ms (processor time {busy * 1e3:.1f} ms)",
                cost <= COST,
                {"seconds": cost, "processor_seconds": busy},
            )
        )
    return Result(series, verdicts)
