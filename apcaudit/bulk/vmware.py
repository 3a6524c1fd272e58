"""VMware's pairs of files: a machine's memory (.vmem), and its state beside it (.vmss, .vmsn), which vol needs too."""

from __future__ import annotations

from collections.abc import Collection

_MEMORY = ".vmem"

_STATES = (".vmss", ".vmsn")
"""Of a suspended machine, and of a snapshot; vol takes the first that is there."""

_PACKINGS = ("", ".gz", ".xz")


def is_state(name: str, beside: Collection[str]) -> bool:
    """Tell whether a file is the state of a memory among the files beside it, which may be packed."""
    plain = _plain(name)
    return plain.endswith(_STATES) and any(plain[:-5] + _MEMORY + packing in beside for packing in _PACKINGS)


def states_of(name: str) -> dict[str, str]:
    """Return the names that the state of a memory may have, packed or not, and under which vol looks for each."""
    plain = _plain(name)
    if not plain.endswith(_MEMORY):
        return {}
    return {plain[:-5] + state + packing: plain[:-5] + state for state in _STATES for packing in _PACKINGS}


def _plain(name: str) -> str:
    return name[:-3] if name.endswith(_PACKINGS[1:]) else name
