"""The progress of a scan, on stderr: bars on a terminal, else one line per image."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from apcaudit.bulk.extra import load
from apcaudit.bulk.outcome import Failed, Outcome
from apcaudit.text import counted, one_line

_SHOWN = 60
"""How many characters of a path are shown beside a worker: its end, by which images differ."""


class Progress(Protocol):
    """Shows a scan's progress while it runs."""

    def stage(self, worker: str, source: str, stage: str) -> None:
        """Show that a worker begins a stage of an image."""

    def done(self, outcome: Outcome) -> None:
        """Show the outcome of an image."""

    def close(self) -> None:
        """End the display."""


@dataclass
class Counts:
    """How many images there are, how many are done, how many failed, and how many results are an earlier scan's."""

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
        """Images per second, without those of an earlier scan; call it where one was read."""
        return (self.done - self.reused) / max(0.001, time.monotonic() - self.started)

    @property
    def left(self) -> str:
        """The estimated time for the remaining images, as h:mm:ss."""
        seconds = round((self.total - self.done) / self.rate)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def __str__(self) -> str:
        text = f"{self.done}/{counted(self.total, 'image')}, {self.failed} failed"
        if self.done == self.reused:
            # Nothing was read yet, so there is no rate.
            return f"{text}, {self.reused} of an earlier scan" if self.reused else text
        text += f", {self.rate:.1f} images/s"
        return text if self.done == self.total else f"{text}, {self.left} left"


def make(total: int) -> Progress:
    """Make bars where stderr is a terminal, else lines."""
    return Bars(total) if sys.stderr.isatty() else Lines(total)


class Lines:
    """Prints one line per image."""

    def __init__(self, total: int) -> None:
        self._counts = Counts(total)

    def stage(self, worker: str, source: str, stage: str) -> None:
        """Print nothing, since lines are for finished images."""

    def done(self, outcome: Outcome) -> None:
        """Print the outcome of an image and the counts."""
        self._counts.add(outcome)
        print(f"{text_of(outcome)} [{self._counts}]", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Do nothing: the lines stay."""


class Bars:
    """Shows a bar for the whole scan and a line for each worker."""

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
        """Show that a worker begins a stage of an image."""
        if worker not in self._workers:
            self._workers[worker] = self._bars.add_task(f"worker {len(self._workers) + 1}", total=None, note="")
        shown = source if len(source) <= _SHOWN else f"…{source[1 - _SHOWN :]}"
        self._bars.update(self._workers[worker], note=one_line(f"{stage} {shown}"))

    def done(self, outcome: Outcome) -> None:
        """Advance the bar; failures stay on the screen."""
        self._counts.add(outcome)
        if isinstance(outcome, Failed):
            self._bars.console.print(text_of(outcome), markup=False, highlight=False)
        self._bars.update(self._whole, advance=1, note=str(self._counts))

    def close(self) -> None:
        """Remove the bars."""
        self._bars.stop()


def text_of(outcome: Outcome) -> str:
    """Describe an image's outcome in one line; control characters in names and reasons are escaped."""
    source = one_line(outcome.source)
    earlier = ", scanned earlier" if outcome.reused else f" in {outcome.seconds:.1f} s"
    crash = f"; the machine stopped: {one_line(outcome.crash)}" if outcome.crash else ""
    if isinstance(outcome, Failed):
        told = outcome.crash is not None and outcome.crash in outcome.reason
        return f"{source}: failed at {outcome.stage}{earlier}: {one_line(outcome.reason)}{'' if told else crash}"
    return f"{source}: {outcome.severity}, {counted(outcome.findings, 'finding')}{earlier}{crash}"
