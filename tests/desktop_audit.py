"""Builds the ordinary machine on a kernel and audits it, with and without a scan of physical memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.checks.delivery import why_queued
from volatility3.plugins.windows.apcaudit.findings import Audited
from volatility3.plugins.windows.apcaudit.model import Facts, QueueName

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import Kernel
from apcaudit.synthetic.scenes import desktop
from tests import volatility
from tests.situation_audit import ORDER, Findings, codes_of


@dataclass(frozen=True, slots=True)
class DesktopAudit:
    """The threads that each audit gave, the first without a scan if any was; `implanted` is the implant's _ETHREAD."""

    facts: Facts
    audits: tuple[tuple[Audited, ...], ...]
    implanted: int | None

    def raised(self) -> dict[int, Findings]:
        """Return the findings of the threads that have one at medium or above, by _ETHREAD."""
        found = {each.thread.address: codes_of(each) for audit in self.audits for each in audit}
        return {
            address: codes
            for address, codes in found.items()
            if any(ORDER.index(severity) >= ORDER.index("medium") for severity in codes.values())
        }

    def with_findings(self) -> int:
        """Return how many threads have a finding."""
        return sum(bool(codes_of(each)) for each in self.audits[0])

    def without_reason(self) -> list[str]:
        """Name the APCs on kernel lists that have no finding and of which nothing says why they are still queued."""
        return [
            f"{queue.name.value} {apc.kernel_routine} of {audited.thread.members.tid}"
            for audited in self.audits[0]
            if not codes_of(audited)
            for queue in audited.thread.queues
            if queue.name in (QueueName.KERNEL, QueueName.SAVED_KERNEL)
            for apc in queue.apcs
            if why_queued(apc, audited.thread, self.facts) is None
        ]


def audit_desktop(
    kernel: Kernel,
    folder: Path,
    symbols: tuple[Path, ...] = (volatility.REPOSITORY_SYMBOLS,),
    *,
    implant: bool = False,
    crowd: bool = True,
    scans: tuple[bool, ...] = (False, True),
    beside: Any = None,
) -> DesktopAudit:
    """Build the machine and audit it, for each of `scans` once, with a scan of physical memory or without.

    `implant` and `crowd` are the scene's; `beside` is volatility.construct's.
    """
    image = build(desktop.of(kernel, implant=implant, crowd=crowd), kernel)
    path = folder / "desktop.dmp"
    image.write_dump(path)
    plugin = volatility.construct(
        path, "windows.apcaudit.ApcAudit", cache=volatility.CACHE, symbols=symbols, kernel=kernel, beside=beside
    )
    source = plugin.context, plugin.config["kernel"]
    audits = [Audit(*source, scan_memory=scan) for scan in scans]
    threads = tuple(tuple(audit.run(Selection())) for audit in audits)
    apc = image.address_of.get("apc:implant")
    implanted = None if apc is None else image.memory.read(apc, "_KAPC", "Thread")
    return DesktopAudit(audits[0].facts, threads, implanted)
