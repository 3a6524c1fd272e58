"""How a scan gets on, on stderr: bars on a terminal, a line an image elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from apcaudit.bulk.extra import load
from apcaudit.bulk.outcome import Failed, Outcome
from apcaudit.text import one_line

_SHOWN = 60
"""So many characters of a path stand beside a worker: its end, which tells images apart."""


class Progress(Protocol):
    """What a scan tells of itself while it runs."""

    def stage(self, worker: str, source: str, stage: str) -> None:
        """Say what a worker is at."""

    def done(self, outcome: Outcome) -> None:
        """Say what became of an image."""

    def close(self) -> None:
        """End."""


@dataclass
class Counts:
    """How many images there are, are done, failed, and were there from an earlier scan."""

    total: int
    done: int = 0
    failed: int = 0
    reused: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        """Count an image."""
        self.done += 1
        self.failed += isinstance(outcome, Failed)
        self.reused += outcome.reused

    @property
    def rate(self) -> float:
        """Images a second, not counting those of an earlier scan."""
        return (self.done - self.reused) / max(0.001, time.monotonic() - self.started)

    @property
    def left(self) -> str:
        """The time that the others will take."""
        if not self.rate:
            return "-:--"
        seconds = round((self.total - self.done) / self.rate)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def __str__(self) -> str:
        text = f"{self.done}/{self.total} images, {self.failed} failed, {self.rate:.1f} images/s"
        return text if self.done == self.total else f"{text}, {self.left} left"


def make(total: int) -> Progress:
    """Make the progress that fits where stderr goes."""
    return Bars(total) if sys.stderr.isatty() else Lines(total)


class Lines:
    """A line an image."""

    def __init__(self, total: int) -> None:
        self._counts = Counts(total)

    def stage(self, worker: str, source: str, stage: str) -> None:
        """Say nothing: lines are for what is finished."""

    def done(self, outcome: Outcome) -> None:
        """Print what became of an image and how far the scan is."""
        self._counts.add(outcome)
        print(f"{text_of(outcome)} [{self._counts}]", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the lines."""


class Bars:
    """A bar for the whole and a line for what each worker is at."""

    def __init__(self, total: int) -> None:
        rich = load("rich.progress")
        console = load("rich.console").Console(stderr=True)
        self._counts = Counts(total)
        self._workers: dict[str, Any] = {}
        self._bars = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=24),
            rich.TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
        )
        self._whole = self._bars.add_task("images", total=total, note=str(self._counts))
        self._bars.start()

    def stage(self, worker: str, source: str, stage: str) -> None:
        """Show what a worker is at."""
        if worker not in self._workers:
            self._workers[worker] = self._bars.add_task(f"worker {len(self._workers) + 1}", total=None, note="")
        shown = source if len(source) <= _SHOWN else f"…{source[1 - _SHOWN :]}"
        self._bars.update(self._workers[worker], note=one_line(f"{stage} {shown}"))

    def done(self, outcome: Outcome) -> None:
        """Advance the bar; what failed stays on the screen."""
        self._counts.add(outcome)
        if isinstance(outcome, Failed):
            self._bars.console.print(text_of(outcome), markup=False, highlight=False)
        self._bars.update(self._whole, advance=1, note=str(self._counts))

    def close(self) -> None:
        """Take the bars away."""
        self._bars.stop()


def text_of(outcome: Outcome) -> str:
    """Say in one line what became of an image; neither file names nor reasons can act on the terminal."""
    source = one_line(outcome.source)
    earlier = ", scanned earlier" if outcome.reused else f" in {outcome.seconds:.1f} s"
    if isinstance(outcome, Failed):
        return f"{source}: failed at {outcome.stage}{earlier}: {one_line(outcome.reason)}"
    return f"{source}: {outcome.severity}, {outcome.findings} findings{earlier}"
