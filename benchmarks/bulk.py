"""Many images: one worker, all cores, a shell loop of vol and GNU parallel over the same folder.

`python -m benchmarks.bulk` makes the folder, checks what every way has found against what was planted, and prints two
tables. `--images 100 --broken` is a folder with ten broken images, of which the scan has to tell a true story.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from apcaudit.bulk import store
from apcaudit.bulk.records import SEVERITIES
from benchmarks import machine
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

_TARGETED = 60


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


@dataclass(frozen=True, slots=True)
class Taken:
    """What a way over the whole folder took; nothing where it could not be gone."""

    way: str
    seconds: float | None = None
    processor_seconds: float | None = None


def measured(way: str, run: Callable[[], object]) -> Taken:
    """Run something, and measure it and the processes that it waits for."""
    print(f"{way} ...", file=sys.stderr, flush=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run()
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"    {seconds:.1f} s, {spent:.1f} s of processor time", file=sys.stderr, flush=True)
    return Taken(way, seconds, spent)


def scan(evidence: Path, results: Path, cache: Path, workers: int) -> None:
    """Run `apcaudit scan`."""
    done = bulk_images.apcaudit(
        "scan", evidence, "-o", results, "--offline", "--workers", workers, cache=cache, timeout=None
    )
    if done.returncode not in (0, 2):
        raise BenchmarkError(done.stderr)


def check(results: Path, planted: Counter[str], failed: int) -> None:
    """Compare results with what was planted."""
    rows = store.images(results)
    found = Counter(row.severity for row in rows if row.status == "scanned")
    if found != planted or sum(row.status == "failed" for row in rows) != failed:
        raise BenchmarkError(f"{results}: {found} and not {planted}")


def shell(evidence: Path, output: Path, cache: Path, runner: str) -> None:
    """Run vol once an image, in turn or by a program that runs several at once."""
    output.mkdir()
    vol = Vol(cache).audit(Path("IMAGE"), "--wide")
    command = shlex.join(vol.arguments).replace("-q", "-q -r jsonl", 1)
    script = output.with_suffix(".sh")
    script.write_text(f'{command.replace("IMAGE", chr(34) + "$1" + chr(34))} > "$2" 2>/dev/null\n', encoding="utf-8")
    runners = {
        "loop": f'for each in {evidence}/*; do sh {script} "$each" {output}/$(basename "$each").jsonl; done',
        "parallel": f"parallel -j {os.cpu_count()} sh {script} {{}} {output}/{{/}}.jsonl ::: {evidence}/*",
    }
    environment = bulk_images.environment(cache)
    subprocess.run(["sh", "-c", runners[runner]], check=False, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def check_shell(output: Path, planted: Counter[str], failed: int) -> None:
    """Compare vol's rows with what was planted: an image without rows is healthy or broken."""
    found: Counter[str] = Counter()
    for path in output.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        # Of an image that it cannot read vol says why, in words.
        severities = [json.loads(line)["Severity"] for line in lines if line.startswith("{")]
        found[max(severities, key=SEVERITIES.index, default=SEVERITIES[0])] += 1
    if found != planted + Counter({SEVERITIES[0]: failed}):
        raise BenchmarkError(f"{output}: {found} and not {planted}")


def is_gnu_parallel() -> bool:
    """Tell whether `parallel` is there and GNU's: moreutils has another one."""
    if shutil.which("parallel") is None:
        return False
    return "GNU" in subprocess.run(["parallel", "--version"], check=False, capture_output=True, text=True).stdout


def targets(taken: dict[str, Taken]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the lines of the table of targets for what was measured."""
    for peer, what, target in (("one", "one worker", 0.55), ("loop", "a shell loop of vol", 0.2)):
        if taken.keys() >= {"all", peer}:
            ours, theirs = taken["all"].seconds, taken[peer].seconds
            assert ours is not None
            assert theirs is not None
            ratio = ours / theirs
            status = "met" if ratio <= target else "missed"
            yield f"time of all cores beside {what}", f"at most {target}", f"{ratio:.2f}", status


def line_of(taken: Taken, images: int) -> tuple[str, str, str, str]:
    """Make a line of the table of times."""
    if taken.seconds is None or taken.processor_seconds is None:
        return taken.way, "not installed", "", ""
    numbers = f"{taken.seconds:.1f}", f"{taken.processor_seconds:.1f}", f"{images / taken.seconds:.2f}"
    return taken.way, *numbers


def main() -> int:
    """Make the images, go every way over them and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    parser.add_argument("--images", type=int, default=_TARGETED)
    parser.add_argument("--dumps", action="store_true", help="crash dumps instead of raw memory")
    parser.add_argument("--broken", action="store_true", help="ten of the images are broken")
    parser.add_argument("--ways", default="one,all,loop,parallel", help="default: one,all,loop,parallel")
    options = parser.parse_args()
    if options.images <= len(bulk_images.BROKEN) * options.broken:
        parser.error(f"--images: at least {1 + len(bulk_images.BROKEN) * options.broken}")
    described = machine.describe()
    cores = os.cpu_count() or 1
    taken: dict[str, Taken] = {}
    with tempfile.TemporaryDirectory(prefix="apcaudit-bench-") as temporary:
        folder = Path(temporary)
        evidence, cache = folder / "evidence", folder / "cache"
        cache.mkdir()
        planted = make(evidence, options.images, raw=not options.dumps, broken=options.broken)
        failed = len(bulk_images.BROKEN) if options.broken else 0
        # The index of symbol files is made once a machine, not once a scan: either's is there before the clock starts.
        first = folder / "first"
        first.mkdir()
        shutil.copy(next(evidence.glob("0000*")), first)
        scan(first, folder / "warm", cache, 1)
        shell(first, folder / "warm-shell", cache, "loop")
        for way in options.ways.split(","):
            output = folder / way
            if way in ("one", "all"):
                workers = 1 if way == "one" else cores
                name = f"apcaudit scan, {workers} worker{'s' if workers > 1 else ''}"
                taken[way] = measured(name, lambda: scan(evidence, output, cache, workers))  # noqa: B023
                check(output, planted, failed)
            elif way == "parallel" and not is_gnu_parallel():
                taken[way] = Taken("GNU parallel of vol")
            else:
                name = {"loop": "shell loop of vol", "parallel": f"GNU parallel of vol, {cores} at once"}[way]
                taken[way] = measured(name, lambda: shell(evidence, output, cache, way))  # noqa: B023
                check_shell(output, planted, failed)
    print("\n".join(f"{name}: {value}" for name, value in described.items()))
    kind = "crash dumps" if options.dumps else "raw images"
    print(f"\n{options.images} {kind}, {failed} of them broken; what each way found is what was planted.\n")
    rows = [line_of(each, options.images) for each in taken.values()]
    print(markdown(("way", "seconds", "CPU s", "images/s"), rows, frozenset({1, 2, 3})))
    verdicts = list(targets(taken))
    # The targets are of sixty raw images; of fewer, starting up would be most.
    if verdicts and options.images >= _TARGETED and not options.dumps and not options.broken:
        print(f"\n{markdown(('what', 'target', 'measured', ''), verdicts, frozenset({2}))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
