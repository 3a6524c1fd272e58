"""Which threads two listings of vol hold: the rows of its quick renderer, compared by PID and TID.

Run as `python -m benchmarks.found OURS THEIRS`; prints a JSON object of numbers. A process of its own, since its memory
would count for every process that the benchmark starts afterwards.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def threads(listing: Path) -> set[tuple[str, str]]:
    """Read PID and TID of every row; of a listing with Views, those that the scan found.

    Threads of the idle process are left out: windows.thrdscan rejects PID 0.
    """
    rows = [line.split("\t") for line in listing.read_text(encoding="utf-8").splitlines() if "\t" in line]
    if not rows:
        return set()
    header, *rest = rows
    pid, tid = header.index("PID"), header.index("TID")
    if "Views" in header:
        views = header.index("Views")
        rest = [row for row in rest if "scan" in row[views].split("+")]
    return {(row[pid], row[tid]) for row in rest if row[pid] != "0"}


def compare(ours: Path, theirs: Path) -> dict[str, int]:
    """Count the threads of the second listing, those that the first lacks, and what only the first has."""
    mine, peers = threads(ours), threads(theirs)
    return {"peer": len(peers), "missed": len(peers - mine), "others": len(mine - peers)}


if __name__ == "__main__":
    print(json.dumps(compare(Path(sys.argv[1]), Path(sys.argv[2]))))
