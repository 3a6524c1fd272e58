"""Vol as the benchmarks run it: a copy without our package, so that with and without it can be told apart."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT, BenchmarkError, Command

PLUGINS = ROOT / "vol_plugins"
SYMBOLS = ROOT / "symbols"

OURS = "windows.apcaudit"
#: Vol parses its own name with the options, and `-c` is one.
_START = "import sys; sys.argv[0] = 'vol'; from volatility3.cli import main; main()"


def copy_stock(folder: Path) -> Path:
    """Copy the installed volatility3, compiled, without what an installed apcaudit has put there; give its path."""
    spec = importlib.util.find_spec("volatility3")
    if spec is None or not spec.submodule_search_locations:
        raise BenchmarkError(f"volatility3 is not installed for {sys.executable}")
    installed = Path(spec.submodule_search_locations[0])
    own = {str(path.relative_to(SYMBOLS)) for path in SYMBOLS.rglob("*") if path.is_file()}

    def left_out(directory: str, names: list[str]) -> set[str]:
        place = Path(directory).relative_to(installed)
        if place == Path("plugins", "windows"):
            return {"apcaudit"} & set(names)
        if place.parts[:1] == ("symbols",):
            return {name for name in names if str(Path(*place.parts[1:], name)) in own}
        return set()

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(installed, folder / "volatility3", ignore=left_out)
    return folder


@dataclass(frozen=True, slots=True)
class Vol:
    """Makes vol's command lines; all share one cache and one symbol folder, only ours have the plugin folder."""

    cache: Path

    def command(
        self,
        label: str,
        plugin: str,
        image: Path | None,
        *options: str,
        ours: bool = False,
        rounds: int | None = None,
        output: Path | None = None,
    ) -> Command:
        """Make the command of a plugin; `ours` lets vol find our package."""
        arguments = [sys.executable, "-c", _START, "-q", "--offline", "--cache-path", str(self.cache)]
        arguments += ["-s", str(SYMBOLS)]
        if ours:
            arguments += ["-p", str(PLUGINS)]
        if image is not None:
            arguments += ["-f", str(image)]
        return Command(label, (*arguments, plugin, *options), rounds, output)

    def audit(
        self,
        image: Path,
        *options: str,
        label: str | None = None,
        rounds: int | None = None,
        output: Path | None = None,
    ) -> Command:
        """Make the command of windows.apcaudit, labelled with its options."""
        name = label or " ".join((OURS, *options))
        return self.command(name, OURS, image, *options, ours=True, rounds=rounds, output=output)

    def inside(self, label: str, what: str, image: Path, *more: str) -> Command:
        """Make the command that measures within the process, see `benchmarks.inside`."""
        arguments = ("-m", "benchmarks.inside", what, str(image), "--cache", str(self.cache), *more)
        return Command(label, (sys.executable, *arguments), reports=True)
