"""The file of an image, before it is opened: what is none, and what it is instead."""

from __future__ import annotations

import stat
from pathlib import Path

from .regular import kind_of, path_of
from .text import printable

_MEMORY = ".vmem"
_STATES = (".vmss", ".vmsn")
"""A machine's memory as VMware writes it, and what vol opens beside it (volatility3 2.28.2, VmwareStacker)."""


def why_no_image(location: str) -> str | None:
    """Say in one line why there can be no image at a location; None where there may be one, or that is not known."""
    path = path_of(location)
    if path is None:
        return None
    kind = _kind(path)
    if kind is not None:
        return f"{printable(path.name)} is {kind}, no file with an image in it"
    for state in _STATES if path.suffix == _MEMORY else ():
        kind = _kind(path.with_suffix(state))
        if kind is not None:
            name = printable(path.with_suffix(state).name)
            return f"{name} beside {printable(path.name)} is {kind}, no file with a machine's state in it: remove it"
    return None


def _kind(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    # A block device has an end: memory may have been copied to one.
    return None if stat.S_ISBLK(mode) else kind_of(mode)
