"""What the scan of physical memory found; empty where none was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Scanned:
    """What the scan found: threads by virtual address, and physical KAPC addresses by KAPC.Thread.

    `unmapped` counts threads that no kernel address maps: copies, or pages given back. `cut_short` is whether
    more was found than is kept.
    """

    threads: dict[int, int] = field(default_factory=dict)
    apcs: dict[int, list[int]] = field(default_factory=dict)
    unmapped: int = 0
    cut_short: bool = False
