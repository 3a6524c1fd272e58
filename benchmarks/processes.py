"""Whole processes, measured: wall time and peak memory of each run, commands taking turns round by round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent

#: Variables that slow Python down: bytecode not kept, output not buffered.
_SLOWING = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")

#: ru_maxrss is in kibibytes, on macOS in bytes (getrusage(2) of either).
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class BenchmarkError(Exception):
    """A process that failed: its time would mean nothing."""


@dataclass(frozen=True, slots=True)
class Command:
    """A process to run; `rounds` bounds how often it takes part, `output` keeps its stdout.

    One that `reports` prints a JSON object of numbers, its own measurements.
    """

    label: str
    arguments: tuple[str, ...]
    rounds: int | None = None
    output: Path | None = None
    reports: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One run: wall and processor seconds, peak resident bytes, and what the process reported itself."""

    seconds: float
    processor_seconds: float
    peak: int
    report: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Series:
    """All runs of one command on one image."""

    label: str
    image: str
    runs: tuple[Run, ...]

    @property
    def seconds(self) -> float:
        """Median wall time of the process."""
        return median(run.seconds for run in self.runs)

    @property
    def processor_seconds(self) -> float:
        """Median processor time, which tells a busy machine from a slow program."""
        return median(run.processor_seconds for run in self.runs)

    @property
    def peak(self) -> float:
        """Median peak resident memory in bytes."""
        return median(run.peak for run in self.runs)

    def reported(self, name: str) -> float:
        """Give the median of a number that the process reported."""
        return median(run.report[name] for run in self.runs)


class Processes:
    """Runs commands in one environment, with the checkout as working directory.

    `path` comes first in Python's module path. Unless they are `repeated`, commands that several measures have in
    common run once: then nothing is told about speed anyway.
    """

    def __init__(self, path: Path, *, repeated: bool = True) -> None:
        self._repeated = repeated
        self._done: dict[tuple[str, ...], Run] = {}
        following = os.environ.get("PYTHONPATH")
        self._environment = {name: value for name, value in os.environ.items() if name not in _SLOWING}
        self._environment["PYTHONPATH"] = os.pathsep.join((str(path), following)) if following else str(path)

    def run(self, command: Command) -> Run:
        """Run a command to its end.

        The peak includes what this process had when it started the child, so this one imports and builds nothing large.

        Raises:
            BenchmarkError: the command failed.
        """
        done = None if self._repeated or command.output else self._done.get(command.arguments)
        if done is None:
            done = self._done[command.arguments] = self._run(command)
        return done

    def _run(self, command: Command) -> Run:
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as report:
            with (command.output or Path(os.devnull)).open("wb") as sink:
                start = time.perf_counter()
                process = subprocess.Popen(
                    command.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=report if command.reports else sink,
                    stderr=errors,
                    cwd=ROOT,
                    env=self._environment,
                )
                _, status, usage = os.wait4(process.pid, 0)
                seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip()
                raise BenchmarkError(f"{command.label}: exit code {process.returncode}: {said[-2000:]}")
            report.seek(0)
            numbers = json.load(report) if command.reports else {}
        return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _MAXRSS_UNIT, numbers)

    def interleaved(self, commands: Sequence[tuple[Command, str]], rounds: int) -> list[Series]:
        """Run commands, each given with the name of its image, in turns: A B C A B C, and so on."""
        runs: list[list[Run]] = [[] for _ in commands]
        for number in range(rounds):
            for (command, image), done in zip(commands, runs, strict=True):
                if command.rounds is None or number < command.rounds:
                    print(f"  {command.label}, {image}: round {number + 1}", file=sys.stderr, flush=True)
                    done.append(self.run(command))
        return [
            Series(command.label, image, tuple(done)) for (command, image), done in zip(commands, runs, strict=True)
        ]
