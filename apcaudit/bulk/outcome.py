"""What a scan is told to do and what became of an image: the values that cross between machines, never image bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for every image of a scan.

    `memory` in bytes and `timeout` in seconds limit one image. `scratch` is where images are unpacked, `cache` where
    vol keeps its index of symbol files; None is a folder of each machine's own. `retry` scans again what failed.
    `rules` is a file or folder of YARA rules, used beside those that ship; `skip_broken_rules` goes on without files of
    it that cannot be used. `basis` is what rows are made by, a component and its version each (fingerprint.basis);
    empty where nobody will ask whether the results are still good.
    """

    results: Path
    symbols: tuple[Path, ...] = ()
    offline: bool = False
    scan: bool = False
    memory: int = 4 << 30
    timeout: float = 3600.0
    scratch: Path | None = None
    cache: Path | None = None
    retry: bool = False
    rules: Path | None = None
    skip_broken_rules: bool = False
    basis: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Scanned:
    """An image with results; `reused` ones were there from an earlier scan."""

    source: str
    image: str
    severity: str
    findings: int
    seconds: float
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """An image without results: why, at which stage, and after how many seconds."""

    source: str
    image: str
    reason: str
    stage: str
    seconds: float
    reused: bool = False


Outcome = Scanned | Failed
