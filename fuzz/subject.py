"""What is mutated and audited again and again: an image in memory, opened by vol once."""

from __future__ import annotations

import struct
import tempfile
from bisect import bisect_left
from pathlib import Path
from typing import Any

from volatility3.framework.layers import intel

from fuzz.findings import Result, audit
from fuzz.ground import PAGE, Ground, Mutation
from fuzz.layer import PatchedLayer
from fuzz.machine import machine, open_image
from fuzz.mutations import mutation
from fuzz.targets import EVERYBODY, Target, spare, targets

READS = 400_000
"""How many reads of physical memory an audit of one of these images may take; undamaged, it takes a few thousand."""

SPARE = 24 * PAGE
"""How much memory that nothing uses a machine has for what is built there: chains, rings, tables."""


class Subject:
    """A synthetic machine: its mutations, and the audits of them."""

    def __init__(self, kernel: str) -> None:
        self.name = kernel
        image = machine(kernel)
        room = image.pool.take_pages(SPARE)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.dmp"
            # Vol finds the page tables of a crash dump at once; a raw image it has to search.
            image.write_dump(path)
            self._context, self._module = open_image(path)
        layer: Any = self._context.layers[self._context.modules[self._module].layer_name]
        below = layer.config["memory_layer"]
        self._layer = PatchedLayer(self._context, below, image.raw(), READS)
        # From here on the file is not needed: vol's layer reads ours, which has its name.
        self._context.layers._layers[below] = self._layer
        chosen = targets(image)
        self._links = _thread_links(image, chosen)
        space, pointer = image.memory.space, image.memory.pointer_size
        self._ground = Ground(
            chosen, self._layer.content, pointer, struct.calcsize(space.mode.entry), spare(image, room, SPARE)
        )
        self._before: dict[bool, Result] = {}

    def mutation(self, seed: int, index: int) -> Mutation:
        """Make a mutation of this machine."""
        return mutation(self._ground, seed, index)

    def before(self, *, scan: bool) -> Result:
        """Return the audit of the undamaged machine; what was damaged is restored for it."""
        if scan not in self._before:
            self._layer.restore()
            self._before[scan] = self._audit(scan=scan)
        return self._before[scan]

    @property
    def reads(self) -> int:
        """How often the last audit read physical memory."""
        return self._layer.reads

    def apply(self, made: Mutation) -> None:
        """Do the damage."""
        self._layer.restore()
        for address, data in made.patches:
            self._layer.patch(address, data)
        for page in made.dropped:
            self._layer.drop(page)
        if made.end is not None:
            self._layer.end = made.end

    def after(self, *, scan: bool, everything: bool = True) -> Result | None:
        """Audit the damaged machine."""
        self._layer.reads = 0
        return self._audit(scan=scan, everything=everything)

    def is_local(self, made: Mutation) -> bool:
        """Tell whether a mutation touched only what belongs to single threads, and no link between threads."""
        if EVERYBODY in made.owners or made.end is not None:
            return False
        return not any(self._hits_link(address, address + len(data)) for address, data in made.patches)

    def _hits_link(self, start: int, stop: int) -> bool:
        at = bisect_left(self._links, (stop, 0)) - 1
        return at >= 0 and self._links[at][1] > start

    def _audit(self, *, scan: bool, everything: bool = True) -> Result:
        for remembered in (intel.Intel._get_valid_table, intel.Intel._translate_entry):
            remembered.cache_clear()
        return audit(self._context, self._module, scan=scan, everything=everything)


def _thread_links(image: Any, chosen: list[Target]) -> list[tuple[int, int]]:
    """Give the physical ranges whose change moves a thread in other views: its list entry, ID, type and process."""
    memory = image.memory
    paths = ["ThreadListEntry", "Cid", "Tcb.Header"]
    ranges = []
    for target in chosen:
        if not target.name.startswith("thread "):
            continue
        for path in paths:
            offset = memory.offset("_ETHREAD", path)
            physical = target.physical(offset)
            if physical is not None:
                ranges.append((physical, physical + memory.layout.field("_ETHREAD", path).size))
    return sorted(ranges)
