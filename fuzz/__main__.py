"""Damage images at random and audit them: `python -m fuzz`; the table goes to stdout, talk to stderr."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from fuzz.minidump import MinidumpSubject
from fuzz.subject import Subject
from fuzz.symbol_file import SymbolFileSubject
from fuzz.trial import BAD, GOOD, Trial, Tried, attempt

KERNELS = ("10-19041-x64", "xp-sp3-x86")
COUNT = 10_000
SEED = 20_261_122


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Audit images that are damaged at random.")
    parser.add_argument("--count", type=int, default=COUNT, metavar="N", help="mutations of each image")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help="of the damage; the same gives the same")
    parser.add_argument("--kernel", nargs="*", metavar="NAME", help=f"kernels (default: {' '.join(KERNELS)})")
    parser.add_argument("--minidump", type=Path, metavar="PATH", help="also damage this genuine minidump")
    parser.add_argument("--symbols", type=Path, metavar="FOLDER", help="where the minidump's symbol file is")
    parser.add_argument(
        "--symbol-file", nargs="*", default=[], metavar="NAME", help="kernels whose symbol file to damage"
    )
    parser.add_argument("--minutes", type=float, metavar="N", help="stop each image's trials after so long")
    parser.add_argument("--replay", nargs="+", metavar="SEED:INDEX", help="try these mutations alone")
    return parser.parse_args(arguments)


def run(
    subject: Tried, chosen: Sequence[tuple[int, int]], say: Callable[[str], None], minutes: float | None = None
) -> list[Trial]:
    """Try mutations by seed and number, for so many minutes at most; tell of each that breaks a promise."""
    trials = []
    start = time.monotonic()
    for count, (seed, index) in enumerate(chosen, 1):
        trial = attempt(subject, seed, index)
        trials.append(trial)
        if not trial.good:
            say(f"{subject.name} --replay {seed}:{index}  {trial.kind}: {trial.outcome}: {trial.detail}")
        if minutes is not None and time.monotonic() - start > 60 * minutes:
            say(f"{subject.name}: time is up after {count} of {len(chosen)}")
            break
        if count % 1000 == 0:
            say(f"{subject.name}: {count} of {len(chosen)}, {time.monotonic() - start:.0f} s")
    return trials


def table(trials: Sequence[Trial]) -> str:
    """Make the table of outcomes by image and kind of damage."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for trial in trials:
        counts.setdefault((trial.subject, trial.kind), Counter())[trial.outcome] += 1
    columns = [*GOOD, *(each for each in BAD if any(count[each] for count in counts.values()))]
    lines = [("image", "damage", *columns, "broken")]
    for (subject, kind), count in counts.items():
        broken = sum(count[each] for each in BAD)
        lines.append((subject, kind, *(str(count[each]) for each in columns), str(broken)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(shown)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try mutations; give 0 when every promise was kept, 1 otherwise."""
    options = _parse(arguments)
    chosen = [(options.seed, index) for index in range(options.count)]
    if options.replay:
        chosen = [(int(seed), int(index)) for seed, _, index in (each.partition(":") for each in options.replay)]
    kernels = KERNELS if options.kernel is None else options.kernel
    subjects: list[Tried] = [Subject(kernel) for kernel in kernels]
    subjects += [SymbolFileSubject(kernel) for kernel in options.symbol_file]
    if options.minidump is not None:
        subjects.append(MinidumpSubject(options.minidump, options.symbols))
    # What stays for all trials would be looked through by each of their garbage collections.
    gc.freeze()
    trials = []
    for subject in subjects:
        trials += run(subject, chosen, _say, options.minutes)
    print(table(trials))
    longest = max(trials, key=lambda trial: trial.seconds)
    broken = [trial for trial in trials if not trial.good]
    print(f"\n{len(trials)} mutations, {len(broken)} broke a promise; the longest audit took {longest.seconds:.2f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
