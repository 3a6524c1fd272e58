"""The wheel lands where plain `vol` finds it, hides nothing of vol's, and leaves vol whole when it goes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests import bulk_images
from tests.volatility import CACHE, OURS, VOL, put_index

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = "windows.apcaudit.ApcAudit"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the checkout with the hatchling that is installed, no network."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install '.[test]'")
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(target), str(ROOT)], check=True)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a virtual environment with a volatility3 of its own; other packages come from this one."""
    import volatility3

    home = tmp_path_factory.mktemp("machine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    source = Path(volatility3.__file__).parent
    shutil.copytree(source, site / "volatility3", ignore=shutil.ignore_patterns("apcaudit", Path(OURS).name))
    version = importlib.metadata.version("volatility3")
    shutil.copytree(source.parent / f"volatility3-{version}.dist-info", site / f"volatility3-{version}.dist-info")
    # What vol itself imports, one by one: a whole site-packages may hold a copy of ours.
    for name in ("pefile", "ordlookup"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin)
            if path.name == "__init__.py":
                shutil.copytree(path.parent, site / name)
            else:
                shutil.copy(path, site / path.name)
    return home


def python_of(machine: Path) -> Path:
    return machine / ("Scripts" if os.name == "nt" else "bin") / "python"


def pip(machine: Path, *arguments: str) -> None:
    # Not this environment's pip run by the machine's Python: that would find a copy of ours installed here.
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python_of(machine)), "--quiet", *arguments], check=True
    )


def vol(machine: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    cache = machine / "cache"
    cache.mkdir(exist_ok=True)
    return subprocess.run(
        [python_of(machine), "-c", VOL, "-q", "--offline", "--cache-path", cache, *arguments],
        capture_output=True,
        text=True,
        cwd=machine,
        check=False,
    )


def test_wheel_has_only_the_two_top_levels(wheel: Path) -> None:
    """Files go below apcaudit and volatility3 alone, and none replaces one of vol's."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"apcaudit", "volatility3"}
    ours = [name for name in names if name.startswith("volatility3/")]
    prefixes = ("volatility3/plugins/windows/apcaudit/", "volatility3/symbols/windows/")
    assert [name for name in ours if not name.startswith(prefixes)] == []
    stock = {str(path) for path in importlib.metadata.files("volatility3") or ()}
    assert stock
    assert stock & set(ours) == set()


def test_wheel_carries_what_it_needs(wheel: Path) -> None:
    """The plugin, the symbol files and the layouts of the synthetic kernels are in the wheel."""
    names = zipfile.ZipFile(wheel).namelist()
    for folder, ending in (
        ("volatility3/plugins/windows/apcaudit/", ".py"),
        ("volatility3/symbols/windows/ntkrnlmp.pdb/", ".json.xz"),
        ("volatility3/symbols/windows/ntkrnlpa.pdb/", ".json.xz"),
        ("apcaudit/synthetic/layouts/", ".txt"),
    ):
        assert [name for name in names if name.startswith(folder) and name.endswith(ending)], folder


def test_plain_vol_runs_the_plugin_and_is_whole_afterwards(wheel: Path, machine: Path, tmp_path: Path) -> None:
    """Installed: no -p and no -s; the other plugins stay; uninstalled: vol is as it was."""
    image = tmp_path / "seed.dmp"
    before, files = vol(machine, "-h").stdout, files_of(machine)
    assert PLUGIN not in before

    pip(machine, "install", "--no-deps", "--no-index", "--no-compile", str(wheel))
    during = vol(machine, "-h").stdout
    assert PLUGIN in during
    assert plugins(during) - plugins(before) == {PLUGIN}
    assert plugins(before) <= plugins(during)
    subprocess.run(
        [python_of(machine), "-m", "apcaudit.cli", "synth", "seed", "--format", "dump", "-o", image],
        check=True,
        cwd=tmp_path,
    )
    run = vol(machine, "-f", str(image), "windows.apcaudit")
    assert run.returncode == 0, run.stderr
    assert "0x8ab54388" in run.stdout
    assert "detach-bugcheck" in run.stdout

    pip(machine, "uninstall", "--yes", "apcaudit")
    assert files_of(machine) == files


def files_of(machine: Path) -> dict[str, int]:
    """Return the files of a machine's packages with their sizes, but for what Python and vol keep for themselves."""
    files = (path for path in machine.rglob("*") if path.is_file())
    kept = {"__pycache__", "cache"}
    return {str(path): path.stat().st_size for path in files if not kept & {*path.relative_to(machine).parts}}


def plugins(help_text: str) -> set[str]:
    """Return the plugin names in the output of `vol -h`."""
    return {
        word for line in help_text.splitlines() for word in line.split()[:1] if word.startswith(("windows.", "linux."))
    }


def test_checkout_runs_uninstalled(tmp_path: Path) -> None:
    """`vol -p vol_plugins -s symbols` works with nothing of ours installed."""
    image = bulk_images.write(tmp_path / "seed.dmp", "seed")
    put_index(CACHE)
    arguments = ["-q", "--offline", "--cache-path", str(CACHE), "-p", "vol_plugins", "-s", "symbols", "-f", str(image)]
    run = subprocess.run(
        [sys.executable, "-c", VOL, *arguments, "windows.apcaudit"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "0x8ab54388" in run.stdout
