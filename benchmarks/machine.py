"""The machine that a benchmark ran on: a time means nothing without it."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def describe() -> dict[str, str]:
    """Name processor, cores, memory, system, load and the versions of what runs."""
    return {
        "CPU": _processor(),
        "cores": str(_cores()),
        "memory": _memory(),
        "system": platform.platform(),
        "load at the start": " ".join(f"{each:.1f}" for each in os.getloadavg()),
        "Python": f"{platform.python_implementation()} {platform.python_version()} {sys.executable}",
        "volatility3": _version("volatility3"),
        "yara-python": _version("yara-python"),
    }


def _processor() -> str:
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return "unknown"
    return f"{size / (1 << 30):.0f} GiB"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"
