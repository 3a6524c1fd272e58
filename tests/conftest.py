"""What every test needs: the checkout's plugin in vol's package, and the folder of genuine input."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import volatility3.plugins

ROOT = Path(__file__).resolve().parent.parent

# Before the first import of volatility3.plugins.windows: the checkout is tested, whether a copy is installed or not.
volatility3.plugins.__path__.insert(0, str(ROOT / "vol_plugins"))

# The same examples on every run, however slow the machine: a suite that fails by chance teaches nobody anything.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of genuine symbol files and images beside the checkout; skips the test where it is missing."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: the genuine symbol files and images for this test")
    return folder
