"""A scan's settings and an image's outcome: the values sent between machines, which never hold bytes of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a scan, the same for every image.

    `memory` in bytes and `timeout` in seconds limit one image. `scratch` is where images are unpacked, `cache` where
    vol keeps its index of symbol files; None is each machine's default folder. `retry` scans failed images again.
    `rules` is a file or folder of YARA rules, used beside those that ship; `skip_broken_rules` goes on without its
    files that cannot be used. `basis` has the components that make rows and their versions (fingerprint.basis); it is
    empty where results are not kept for a later scan.
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
    """An image with results; `reused` is whether they are an earlier scan's, `crash` the line on its bugcheck."""

    source: str
    image: str
    severity: str
    findings: int
    seconds: float
    reused: bool = False
    crash: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """An image that failed: why, at which stage, after how many seconds; `reused` and `crash` as in Scanned."""

    source: str
    image: str
    reason: str
    stage: str
    seconds: float
    reused: bool = False
    crash: str | None = None


Outcome = Scanned | Failed
