"""VMware's pairs of files: a machine's memory (.vmem) and its state (.vmss, .vmsn), both of which vol needs."""

from __future__ import annotations

from collections.abc import Collection

_MEMORY = ".vmem"

_STATES = (".vmss", ".vmsn")
"""Suffixes for a suspended machine and for a snapshot; vol takes the first that exists."""

_PACKINGS = ("", ".gz", ".xz")


def is_state(name: str, beside: Collection[str]) -> bool:
    """Tell whether a file is the state that belongs to a memory file beside it; both may be packed."""
    plain = _plain(name)
    return plain.endswith(_STATES) and any(plain[:-5] + _MEMORY + packing in beside for packing in _PACKINGS)


def states_of(name: str) -> dict[str, str]:
    """Return the possible names of a memory file's state, packed or not, and for each the name that vol looks for."""
    plain = _plain(name)
    if not plain.endswith(_MEMORY):
        return {}
    return {plain[:-5] + state + packing: plain[:-5] + state for state in _STATES for packing in _PACKINGS}


def _plain(name: str) -> str:
    return name[:-3] if name.endswith(_PACKINGS[1:]) else name
