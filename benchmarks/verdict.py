"""A target and what was measured: met, missed, or not measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.images import Images
from benchmarks.processes import Processes, Series
from benchmarks.vol import Vol

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table of targets; `met` is None where the peer is not installed."""

    what: str
    target: str
    measured: str
    met: bool | None
    values: dict[str, float] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """The verdict in words."""
        return NOT_MEASURED if self.met is None else "met" if self.met else "missed"


@dataclass(frozen=True, slots=True)
class Result:
    """What a measure gives: the processes that it ran, and its lines of the table of targets."""

    series: list[Series]
    verdicts: list[Verdict]


@dataclass(frozen=True, slots=True)
class Bench:
    """What a measure works with.

    `small`, `main` and `big` are thread counts, `large` is the size in bytes of the sparse image. Slow peers run
    `slow_rounds` times.
    """

    processes: Processes
    vol: Vol
    images: Images
    rounds: int
    slow_rounds: int
    small: int
    main: int
    big: int
    large: int


Measure = Callable[[Bench], Result]


def threads(count: int) -> str:
    """Name an image by its thread count."""
    return f"{count:,} threads"
