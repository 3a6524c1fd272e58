"""How long the report of 300 images takes to be made and, in a browser, until it can be used.

`python -m benchmarks.report` prints a table. It needs selenium, Chromium and its driver.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from apcaudit.reports import page
from benchmarks import machine
from benchmarks.table import markdown
from tests.browser import chromium, is_there
from tests.report_results import together, varied

#: When the document was read and its script had run (HTML, "document load timing info": domInteractive), and when all
#: of it was there, in milliseconds from the beginning of the navigation.
_TIMES = "const t = performance.getEntriesByType('navigation')[0]; return [t.domInteractive, t.loadEventEnd]"

TO_INTERACTIVE = 1.0


def main() -> int:
    """Make the report, open it a few times and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not is_there():
        print("benchmarks: no browser: apt-get install chromium chromium-driver", file=sys.stderr)
        return 1
    described = machine.describe()
    found = together(varied(options.images))
    began = time.perf_counter()
    html = page.render(found, "benchmark")
    rendered = time.perf_counter() - began
    with tempfile.TemporaryDirectory(prefix="apcaudit-bench-") as folder:
        path = Path(folder, "report.html")
        path.write_text(html, encoding="utf-8")
        with chromium(Path(folder, "profile")) as browser:
            times = []
            for _ in range(options.rounds):
                browser.get("about:blank")
                browser.get(path.as_uri())
                times.append(browser.execute_script(_TIMES))
    interactive, loaded = (median(each) / 1000 for each in zip(*times, strict=True))
    print("\n".join(f"{name}: {value}" for name, value in described.items()))
    size = f"{len(html) / 2**20:.1f} MiB of HTML"
    print(f"\nA report of {options.images} images, each with findings: {size}, made in {rendered:.2f} s;")
    print(f"all of it was in the browser after {loaded:.2f} s.\n")
    status = "met" if interactive <= TO_INTERACTIVE else "missed"
    row = ("until the report can be used", f"about {TO_INTERACTIVE:.0f} s", f"{interactive:.2f} s", status)
    print(markdown(("what", "target", "measured", ""), [row]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
