"""The same rows under the oldest volatility3 that is demanded, one that others pin, and the newest: `make versions`.

Each version gets an environment of its own below .venv, made once. The test suite leaves it out, since it needs a
package index.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

VERSIONS = ("2.5.2", "2.26.0")
"""The oldest that pyproject.toml demands, and the one that VolWeb pins."""

SCENES = ("seed", "situations")

OF_THE_RUN = frozenset({"seconds", "scanned_at", "worker", "settings", "versions", "symbol_file"})
"""Columns of the Parquet tables that differ from run to run, or name the version or the environment."""


class Environment:
    """An environment with a volatility3 and the project.

    Args:
        programs: its folder of programs.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs

    @classmethod
    def make(cls, version: str) -> Environment:
        """Make an environment with a version of volatility3, then install the project, which must not replace it."""
        home = ROOT / ".venv" / f"volatility3-{version}"
        made = cls(home / ("Scripts" if os.name == "nt" else "bin"))
        if not home.exists():
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        made.run("python", "-m", "pip", "install", "--quiet", f"volatility3=={version}", "pefile")
        made.run("python", "-m", "pip", "install", "--quiet", f"{ROOT}[bulk]")
        there = made.run("python", "-c", "import importlib.metadata as m; print(m.version('volatility3'))").strip()
        if there != version:
            sys.exit(f"installing replaced volatility3 {version} by {there}")
        return made

    def run(self, program: str, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
        """Run a program of the environment outside of the checkout; return its stdout."""
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [str(self._programs / program), *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, check=False
            )
        if done.returncode not in ok:
            sys.exit(f"{self._programs / program} {' '.join(arguments)}: exit code {done.returncode}")
        return done.stdout

    def rows(self, image: Path) -> list[dict[str, Any]]:
        """Return the rows that vol prints."""
        out = self.run("vol", "-q", "--offline", "-r", "jsonl", "-f", str(image), "windows.apcaudit", "--wide")
        return [json.loads(line) for line in out.splitlines() if line.strip()]

    def tables(self, images: list[Path], results: Path) -> dict[str, list[str]]:
        """Scan images; return the rows of the Parquet tables as text, sorted."""
        import pyarrow.parquet

        self.run("apcaudit", "scan", "--offline", *map(str, images), "-o", str(results))
        found: dict[str, list[str]] = {}
        for file in results.glob("*/*.parquet"):
            for row in pyarrow.parquet.read_table(file).to_pylist():
                kept = {name: value for name, value in row.items() if name not in OF_THE_RUN}
                found.setdefault(file.name, []).append(repr(kept))
        return {name: sorted(rows) for name, rows in found.items()}


def main() -> None:
    """Compare; exit with the first difference."""
    newest = Environment(Path(sys.executable).parent)
    with tempfile.TemporaryDirectory() as folder:
        images = [Path(folder, f"{scene}.dmp") for scene in SCENES]
        for image in images:
            newest.run("apcaudit", "synth", image.stem, "--format", "dump", "-o", str(image))
        rows = {image: newest.rows(image) for image in images}
        tables = newest.tables(images, Path(folder, "newest"))
        cut = Path(folder, "cut.dmp")
        cut.write_bytes(images[1].read_bytes()[:-0x20000])
        for version in VERSIONS:
            made = Environment.make(version)
            for image in images:
                if made.rows(image) != rows[image]:
                    sys.exit(f"volatility3 {version}: other rows of {image.stem}")
            if made.tables(images, Path(folder, version)) != tables:
                sys.exit(f"volatility3 {version}: other tables")
            _check_cut(made, cut, Path(folder, f"{version}-cut"))
            print(f"volatility3 {version}: {sum(map(len, rows.values()))} rows and {len(tables)} tables are the same")


def _check_cut(made: Environment, image: Path, results: Path) -> None:
    """Check that a scan of a cut crash dump ends, and that it says how much is missing."""
    import pyarrow.parquet

    made.run("apcaudit", "scan", "--offline", "--timeout", "20", str(image), "-o", str(results), ok=(0, 2))
    (file,) = results.glob("*/images.parquet")
    (row,) = pyarrow.parquet.read_table(file).to_pylist()
    if "promises" not in f"{row['reason']} {row['notes']}":
        sys.exit(f"a cut crash dump is not told: {row['reason']} {row['notes']}")


if __name__ == "__main__":
    main()
