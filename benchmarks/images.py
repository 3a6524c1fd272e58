"""The images that are measured: built in processes of their own, kept as long as their builder is the same."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT, Command, Processes

#: Where a driver's code begins, and what is left for headers, constants and variables.
_CODE = 0x1000
_OTHER = 0x10000
_DRIVERS_THREADS = 100


@dataclass(frozen=True, slots=True)
class Images:
    """Image files in a folder, built when they are first asked for; `builder` names the state of what builds them."""

    folder: Path
    kernel: str
    processes: Processes
    builder: str

    def many(self, threads: int) -> Path:
        """Give the image with that many threads."""
        return self._made(f"many-{threads}", "many", str(threads))

    def desktop(self) -> Path:
        """Give the image of an ordinary machine: 1,650 threads in 120 processes, hundreds with something queued."""
        return self._made("desktop", "desktop", "0")

    def drivers(self, part: int = 1) -> Path:
        """Give the image with a hundred drivers that are full of bytes, as large as drivers are or a part of that."""
        return self._made(f"drivers-{part}", "drivers", "0", "--part", str(part))

    def sparse(self, threads: int, size: int) -> Path:
        """Give an image with threads at its start and a hole behind them, `size` bytes in all."""
        return self._made(f"sparse-{threads}-{size}", "many", str(threads), "--size", str(size))

    def _made(self, name: str, scene: str, threads: str, *more: str) -> Path:
        path = self.folder / f"{name}-{Path(self.kernel).name}-{self.builder}.raw"
        if not path.is_file():
            print(f"  building {path.name}", file=sys.stderr, flush=True)
            unfinished = path.with_suffix(".unfinished")
            arguments = (sys.executable, "-m", "benchmarks.images", scene, threads, self.kernel, str(unfinished), *more)
            self.processes.run(Command(f"building {path.name}", arguments))
            unfinished.rename(path)
        return path


def builder() -> str:
    """Name the state of what builds images: a kept image of another state is not used."""
    digest = hashlib.sha256()
    here = Path(__file__)
    own = (here, here.with_name("driver_content.py"), here.with_name("rule_set.py"))
    for path in sorted((*(ROOT / "apcaudit" / "synthetic").rglob("*"), *own)):
        if path.suffix in (".py", ".txt"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _build(scene: str, threads: int, kernel: str, path: Path, part: int) -> None:
    """Build a scene; imported here only, so that the benchmark's own process stays small."""
    from apcaudit.synthetic.build import build
    from apcaudit.synthetic.kernels import load_kernel
    from apcaudit.synthetic.scene import Driver, Scene
    from apcaudit.synthetic.scenes import desktop, many
    from benchmarks.driver_content import Content, sizes

    if scene == "many":
        build(many.scene(kernel, threads), load_kernel(kernel)).write_raw(path)
        return
    if scene == "desktop":
        build(desktop.scene(kernel), load_kernel(kernel)).write_raw(path)
        return
    crowd = many.scene(kernel, _DRIVERS_THREADS)
    content = Content()
    drivers = tuple(
        Driver(f"bench{number}.sys", size=size, code={_CODE: content.of(size - _OTHER)})
        for number, size in enumerate(sizes(part))
    )
    whole = Scene("drivers", "large drivers", kernel, crowd.processes, (*crowd.drivers, *drivers), processors=4)
    build(whole, load_kernel(kernel)).write_raw(path)


def main(arguments: list[str]) -> None:
    """Build one image; `--size` extends it to so many bytes."""
    parser = argparse.ArgumentParser(description="Build an image of the benchmark.")
    parser.add_argument("scene", choices=("many", "desktop", "drivers"))
    parser.add_argument("threads", type=int)
    parser.add_argument("kernel")
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", type=int)
    parser.add_argument("--part", type=int, default=1)
    options = parser.parse_args(arguments)
    _build(options.scene, options.threads, options.kernel, options.path, options.part)
    if options.size is not None:
        os.truncate(options.path, options.size)


if __name__ == "__main__":
    main(sys.argv[1:])
