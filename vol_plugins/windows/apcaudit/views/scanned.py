"""What the scan of physical memory found; empty where none was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Scanned:
    """What the scan found: threads by virtual address, and physical KAPC addresses by KAPC.Thread.

    `unmapped` counts threads that no kernel address maps: their pages have been given back. `without_process` counts
    what would be a thread if it named a process. `cut_short` is whether more was found than is looked at.
    """

    threads: dict[int, int] = field(default_factory=dict)
    apcs: dict[int, list[int]] = field(default_factory=dict)
    unmapped: int = 0
    without_process: int = 0
    cut_short: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, and why."""
        texts = (
            (self.cut_short, "the scan found more than it looks at: threads and APCs may be missing"),
            (self.unmapped, f"{self.unmapped} threads of the scan are left out: no kernel address maps them"),
            (self.without_process, f"{self.without_process} candidates of the scan name no process and are left out"),
        )
        return tuple(text for holds, text in texts if holds)
