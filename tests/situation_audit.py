"""Builds the machine with every situation on a kernel, audits it, and compares with what was planted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.findings import Audited
from volatility3.plugins.windows.apcaudit.output.columns import COLUMNS, rows_of

from apcaudit.synthetic import garbage, situations
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import Kernel
from tests import volatility

ORDER = ("info", "low", "medium", "high", "critical")

Findings = dict[str, str]


@dataclass(frozen=True, slots=True)
class SituationAudit:
    """What audits of one machine found, by TID: each code with its own severity, and the first one's explanations.

    `taken_for_threads` is what of the garbage in the pool has a row, `plugin` what audited it. `listed` is None where
    it was audited with a scan only.
    """

    kernel: Kernel
    listed: dict[int, Findings] | None
    scanned: dict[int, Findings]
    explanations: dict[int, str]
    taken_for_threads: tuple[str, ...]
    plugin: Any

    def differences(self) -> dict[str, str]:
        """Return, by situation, how the findings differ from those planted; empty when all is right."""
        found = dict.fromkeys(self.taken_for_threads, "a row")
        for tid, situation in situations.tids(self.kernel).items():
            audits = {"--scan": self.scanned} if situation.scan else {"list": self.listed, "--scan": self.scanned}
            for name, audit in audits.items():
                if audit is None:
                    continue
                codes = audit.get(tid)
                if codes != situation.expected:
                    found[f"{situation.name} ({name})"] = f"{codes} instead of {dict(situation.expected)}"
            if situation.why is not None and situation.why not in self.explanations[tid]:
                found[situation.name] = f"{self.explanations[tid]!r} does not say {situation.why!r}"
        return found

    def others(self) -> dict[int, Findings]:
        """Return the findings on threads to which nothing has happened."""
        planted = {*situations.tids(self.kernel), situations.TIED}
        both = [*(self.listed or {}).items(), *self.scanned.items()]
        return {tid: codes for tid, codes in both if tid not in planted and codes}


def audit_situations(
    kernel: Kernel,
    folder: Path,
    symbols: tuple[Path, ...] = (volatility.REPOSITORY_SYMBOLS,),
    *,
    scan_only: bool = False,
) -> SituationAudit:
    """Build the machine with every situation that a kernel can have and audit it, with --scan and without."""
    image = build(situations.of(kernel), kernel)
    planted = garbage.plant(image)
    # A crash dump names its page tables; in a raw image vol searches for them, for seconds.
    path = folder / "situations.dmp"
    image.write_dump(path)
    plugin = volatility.construct(
        path, "windows.apcaudit.ApcAudit", cache=volatility.CACHE, symbols=symbols, kernel=kernel
    )
    source = plugin.context, plugin.config["kernel"]
    explanations: dict[int, str] = {}
    addresses: set[int] = set()
    found: dict[bool, dict[int, Findings]] = {}
    for scan in (True,) if scan_only else (False, True):
        audit = Audit(*source, scan_memory=scan)
        threads = list(audit.run(Selection(clean_too=True)))
        found[scan] = {_tid(each): codes_of(each) for each in threads}
        addresses |= {each.thread.address for each in threads}
        if not explanations:
            explanations = {_tid(each): " ".join(_explained(each, audit)) for each in threads}
    taken = tuple(each.what for each in planted if any(map(each.holds, addresses)))
    return SituationAudit(kernel, found.get(False), found[True], explanations, taken, plugin)


def _tid(audited: Audited) -> int:
    return audited.thread.members.tid or 0


def _explained(audited: Audited, audit: Audit) -> Iterable[str]:
    column = next(column for column in COLUMNS if column.name == "Explanation")
    return (str(column.value(row)) for row in rows_of(audited, audit.facts))


def codes_of(audited: Audited) -> Findings:
    """Return the codes of a thread and of its APCs, each with the highest severity that it has there."""
    codes: Findings = {}
    for finding in audited.all_findings:
        severity = str(finding.severity)
        codes[finding.code] = max(codes.get(finding.code, "info"), severity, key=ORDER.index)
    return codes


def by_tid(rows: list[dict[str, Any]]) -> dict[int, Findings]:
    """Return every thread's codes, its APCs' included, with the severity of each row's highest."""
    found: dict[int, Findings] = {}
    for row in rows:
        codes = found.setdefault(row["TID"], {})
        for code in filter(None, row["Findings"].split(",")):
            codes[code] = max(codes.get(code, "info"), row["Severity"], key=ORDER.index)
    return found


def highest(codes: Any) -> str:
    """Return the highest severity in a mapping of codes, `info` when it is empty."""
    return max(codes.values(), key=ORDER.index, default="info")
