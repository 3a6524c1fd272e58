"""Many images: one worker, all cores, a shell loop of vol and GNU parallel over the same folder.

`python -m benchmarks.bulk` makes the folder, ten broken images in it, checks what every way has found against what was
planted, and prints a table. `--images 100` is the folder that the scan has to tell a true story of.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from apcaudit.bulk import store
from benchmarks.processes import ROOT, BenchmarkError
from benchmarks.table import markdown
from benchmarks.vol import Vol
from tests import bulk_images

#: Scene, kernel, and the severity that was planted.
PLANTED = (
    ("healthy", "10-19041-x64", "info"),
    ("seed", "xp-sp3-x86", "critical"),
    ("healthy", "7-sp1-x86", "info"),
    ("situations", "11-26100-x64", "critical"),
    ("healthy", "11-22000-x64", "info"),
)


def make(folder: Path, count: int, *, raw: bool, broken: bool) -> Counter[str]:
    """Write images, and ten broken ones, and give how many of each severity were planted."""
    folder.mkdir(parents=True)
    planted: Counter[str] = Counter()
    whole = count
    if broken:
        bulk_images.write_broken(folder)
        whole -= len(bulk_images.BROKEN)
    built: dict[str, bytes] = {}
    for number, (scene, kernel, severity) in zip(range(whole), itertools.cycle(PLANTED), strict=False):
        name = f"{scene}-{kernel}"
        if name not in built:
            write = bulk_images.write_raw if raw else bulk_images.write
            built[name] = write(folder / "image", scene, kernel).read_bytes()
            (folder / "image").unlink()
        ending = "raw" if raw else "dmp"
        (folder / f"{number:04}-{name}.{ending}").write_bytes(bulk_images.distinct(built[name], number))
        planted[severity] += 1
    return planted


def scan(evidence: Path, results: Path, cache: Path, workers: int) -> float:
    """Run `apcaudit scan`; give its seconds."""
    started = time.monotonic()
    done = bulk_images.apcaudit("scan", evidence, "-o", results, "--offline", "--workers", workers, cache=cache)
    seconds = time.monotonic() - started
    if done.returncode not in (0, 2):
        raise BenchmarkError(done.stderr)
    return seconds


def check(results: Path, planted: Counter[str], failed: int) -> None:
    """Compare results with what was planted."""
    rows = store.images(results)
    found = Counter(row.severity for row in rows if row.status == "scanned")
    if found != planted or sum(row.status == "failed" for row in rows) != failed:
        raise BenchmarkError(f"{results}: {found} and not {planted}")


def shell(evidence: Path, output: Path, cache: Path, runner: str) -> float:
    """Run vol once an image, in turn or by a program that runs several at once; give the seconds."""
    output.mkdir()
    vol = Vol(cache).audit(Path("IMAGE"), "--wide")
    command = shlex.join(vol.arguments).replace("-q", "-q -r jsonl", 1)
    script = output / "one.sh"
    script.write_text(f'{command.replace("IMAGE", chr(34) + "$1" + chr(34))} > "$2" 2>/dev/null\n', encoding="utf-8")
    runners = {
        "loop": f'for each in {evidence}/*; do sh {script} "$each" {output}/$(basename "$each").jsonl; done',
        "parallel": f"parallel -j {os.cpu_count()} sh {script} {{}} {output}/{{/}}.jsonl ::: {evidence}/*",
        "xargs": f"ls {evidence} | xargs -P {os.cpu_count()} -I% sh {script} {evidence}/% {output}/%.jsonl",
    }
    started = time.monotonic()
    subprocess.run(["sh", "-c", runners[runner]], check=False, cwd=ROOT, env=bulk_images.environment(cache))
    return time.monotonic() - started


def main() -> int:
    """Make the images, run every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--dumps", action="store_true", help="crash dumps instead of raw memory")
    parser.add_argument("--broken", action="store_true", help="ten of the images are broken")
    parser.add_argument("--ways", default="one,all,loop,parallel", help="one, all, loop, parallel, xargs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        evidence, cache = folder / "evidence", folder / "cache"
        cache.mkdir()
        planted = make(evidence, options.images, raw=not options.dumps, broken=options.broken)
        failed = len(bulk_images.BROKEN) if options.broken else 0
        # The index of symbol files is made once a machine, not once a scan.
        first = next(evidence.glob("0000*"))
        scan(first, folder / "warm", cache, 0)
        shell_cache = folder / "vol-cache"
        shell_cache.mkdir()
        rows: list[tuple[str, str, str]] = []
        for way in options.ways.split(","):
            if way in ("one", "all"):
                workers = 1 if way == "one" else os.cpu_count() or 1
                name = f"apcaudit scan, {workers} worker{'s' if workers > 1 else ''}"
                seconds = scan(evidence, folder / way, cache, workers)
                check(folder / way, planted, failed)
            elif way == "parallel" and shutil.which("parallel") is None:
                print("GNU parallel is not installed: left out", file=sys.stderr)
                continue
            else:
                name = {"loop": "shell loop of vol", "parallel": "GNU parallel of vol", "xargs": "xargs -P of vol"}[way]
                seconds = shell(evidence, folder / way, shell_cache, way)
            rows.append((name, f"{seconds:.1f}", f"{options.images / seconds:.2f}"))
            print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)
        print(markdown(("way", "seconds", "images/s"), rows, frozenset({1, 2})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
