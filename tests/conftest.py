"""What every test needs: the checkout's plugin in vol's package, and the folder of genuine input."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import hypothesis
import hypothesis.strategies
import pytest
import volatility3.plugins
import volatility3.symbols

from tests.installed_copy import other_symbol_files

ROOT = Path(__file__).resolve().parent.parent

# The tests start hundreds of processes: without this each would compile the project anew where this is set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The tests hold images and symbol files of hundreds of thousands of objects, through all of which Python's collector
# would go again and again: a sixth of the time.
gc.set_threshold(300_000, 20, 1000)

# Before the first import of volatility3.plugins.windows: the checkout is tested, whether a copy is installed or not.
volatility3.plugins.__path__.insert(0, str(ROOT / "vol_plugins"))

# The same examples on every run, however slow the machine: a suite that fails by chance teaches nobody anything.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


def pytest_configure() -> None:
    """Stop where an installed copy has other symbol files than the checkout: vol would use now these, now those."""
    others = other_symbol_files(ROOT / "symbols", map(Path, volatility3.symbols.__path__))
    if others:
        raise pytest.UsageError(
            f"{others[0]} is not the checkout's: an older copy of the project is installed; run make .venv/.test"
        )


#: Files whose tests take longest, so that no process is left with one of them at the end.
LONGEST = ("test_shared", "test_benchmarks", "test_fuzz", "test_synthetic_real_kernels", "test_reader_against_vol")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: those above, then those that start commands; the order is fixed."""
    items.sort(key=lambda item: (item.path.stem not in LONGEST, not item.path.stem.startswith("test_bulk_")))


@hypothesis.given(hypothesis.strategies.none())
def _first_example(_: None) -> None:
    """Hypothesis goes through all objects at its first example: here there are few, later millions."""


def pytest_collection_finish() -> None:
    """Leave what has been imported and collected out of Python's garbage collection."""
    _first_example()
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Look once for what nobody closed: pytest does it five times at its end, through all that the tests still hold."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of genuine symbol files and images beside the checkout; skips the test where it is missing."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: the genuine symbol files and images for this test")
    return folder
