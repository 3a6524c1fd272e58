"""Builds machines whose threads some views miss, and audits them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.findings import Audited
from volatility3.plugins.windows.apcaudit.signatures.options import RuleOptions
from volatility3.plugins.windows.apcaudit.targets import Target

from apcaudit.synthetic import garbage
from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Process, Scene, Thread
from apcaudit.synthetic.scenes.common import FLTMGR, HAL
from tests.volatility import CACHE, construct

Change = Callable[[Image], None]


@dataclass(frozen=True, slots=True)
class Audits:
    """A built image, its audit, and what it found by TID; `source` is what another audit of it begins with."""

    image: Image
    audit: Audit
    source: tuple[Any, str]
    of: dict[int | None, Audited]

    def views(self, tid: int) -> str:
        """Return a thread's views, as the column shows them."""
        return "+".join(sorted(view.value for view in self.of[tid].thread.views))

    def codes(self, tid: int) -> dict[str, str]:
        """Return a thread's codes and those of its APCs, each with its severity."""
        audited = self.of[tid]
        findings = audited.all_findings
        return {finding.code: str(finding.severity) for finding in findings}

    def target(self, tid: int) -> Target | None:
        """Return what the first APC of a thread would run."""
        audited = self.of[tid]
        return audited.get(audited.thread.queues[0].apcs[0]).target

    def explanation(self, tid: int, code: str) -> str:
        """Return the explanation of one finding about a thread."""
        return next(finding.explanation for finding in self.of[tid].findings if finding.code == code)


def audited(
    kernel: str,
    folder: Path,
    threads: tuple[Thread, ...],
    *,
    others: tuple[Process, ...] = (),
    changes: tuple[Change, ...] = (),
    scan: bool = False,
    rules: RuleOptions | None = None,
    **scene: Any,
) -> Audits:
    """Build a machine with these threads in System, change it, and audit all of its threads.

    `rules` are YARA's, those that ship unless others are given.
    """
    processes = (Process("System", 4, threads, parent=0), *others)
    drivers = scene.pop("drivers", (HAL, FLTMGR))
    image = build(Scene("views", "threads and who sees them", kernel, processes, drivers, **scene), load_kernel(kernel))
    # Real pool is never empty otherwise.
    planted = garbage.plant(image) if scan else ()
    for change in changes:
        change(image)
    path = folder / "views.raw"
    image.write_dump(path)
    plugin = construct(path, "windows.apcaudit.ApcAudit", cache=CACHE, kernel=image.kernel)
    source = plugin.context, plugin.config["kernel"]
    audit = Audit(*source, scan_memory=scan, rules=rules)
    rows = list(audit.run(Selection(clean_too=True)))
    taken = [each.what for each in planted if any(each.holds(row.thread.address) for row in rows)]
    assert not taken, f"taken for threads: {taken}"
    return Audits(image, audit, source, {each.thread.members.tid: each for each in rows})
