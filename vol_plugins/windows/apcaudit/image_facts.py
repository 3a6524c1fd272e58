"""The facts about the image that go into the document, gathered from an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .document import ImageFacts
from .windows_version import read_version

if TYPE_CHECKING:
    from .audit import Audit


def image_facts(audit: Audit) -> ImageFacts:
    """Gather what is known of the image; what views and drivers there are is known once all threads have been given."""
    header = audit.crash_header
    return ImageFacts(
        kernel_base=audit.symbols.base,
        bits=audit.memory.bits,
        version=read_version(audit.memory, audit.symbols),
        symbols=audit.symbols.file,
        borrowed_types=audit.symbols.borrowed_from,
        processors=len(audit.processors) or (header.number_processors if header is not None else 0),
        system_time=audit.system_time.value or (header.system_time if header is not None else None),
        bugcheck=audit.facts.bugcheck,
        crashing_thread=audit.facts.crashing_thread,
        partial=audit.facts.partial,
        scanned=audit.scanned,
        complete={
            "processes": audit.processes.complete,
            "modules": audit.drivers.complete,
            "cid": audit.cid.evidence,
        },
        lacks=tuple(sorted(audit.facts.lacks)),
        drivers=(*audit.drivers.drivers, *audit.drivers.unlisted),
        unloaded=audit.drivers.unloaded,
    )
