"""Builds the machine with every situation on a kernel, audits it, and compares with what was planted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apcaudit.synthetic import garbage, situations
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import Kernel
from tests import volatility

ORDER = ("info", "low", "medium", "high", "critical")

Findings = dict[str, str]


@dataclass(frozen=True, slots=True)
class SituationAudit:
    """What two audits of one machine found, by TID: the codes, each with the highest severity of its rows.

    `taken_for_threads` is what of the garbage in the pool has a row.
    """

    kernel: Kernel
    listed: dict[int, Findings]
    scanned: dict[int, Findings]
    taken_for_threads: tuple[str, ...]

    def differences(self) -> dict[str, str]:
        """Return, by situation, how the findings differ from those planted; empty when all is right."""
        found = dict.fromkeys(self.taken_for_threads, "a row")
        for tid, situation in situations.tids(self.kernel).items():
            audits = {"--scan": self.scanned} if situation.scan else {"list": self.listed, "--scan": self.scanned}
            for name, audit in audits.items():
                codes = audit.get(tid)
                if codes is None:
                    found[f"{situation.name} ({name})"] = "no row"
                elif set(codes) != set(situation.expected) or highest(codes) != highest(situation.expected):
                    found[f"{situation.name} ({name})"] = f"{codes} instead of {dict(situation.expected)}"
        return found

    def others(self) -> dict[int, Findings]:
        """Return the findings on threads to which nothing has happened."""
        planted = set(situations.tids(self.kernel))
        both = [*self.listed.items(), *self.scanned.items()]
        return {tid: codes for tid, codes in both if tid not in planted and codes}


def audit_situations(
    kernel: Kernel, folder: Path, symbols: tuple[Path, ...] = (volatility.REPOSITORY_SYMBOLS,)
) -> SituationAudit:
    """Build the machine with every situation that a kernel can have and audit it, with and without --scan."""
    image = build(situations.of(kernel), kernel)
    planted = garbage.plant(image)
    # A crash dump names its page tables; in a raw image vol searches for them, for seconds.
    path = folder / "situations.dmp"
    image.write_dump(path)
    options: dict[str, Any] = {"cache": folder / "cache", "symbols": symbols, "wide": True, "all": True}
    listed = volatility.rows(path, **options)
    scanned = volatility.rows(path, scan=True, **options)
    threads = {int(row["Thread"]) for row in scanned}
    return SituationAudit(
        kernel,
        by_tid(listed),
        by_tid(scanned),
        tuple(each.what for each in planted if any(map(each.holds, threads))),
    )


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
