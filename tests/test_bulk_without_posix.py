"""A scan where the system has nothing of what Windows lacks: tried on Linux, by taking it away."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from apcaudit.bulk import store
from tests.bulk_images import apcaudit, indexed, need_extra, write

need_extra()

#: Python imports it at its start, in every process of a command.
LACKING = """
import os, signal, sys
sys.platform = "other"
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("fork", "getuid", "mkfifo", "register_at_fork", "O_NONBLOCK", "O_NOFOLLOW"):
    delattr(os, name)
del signal.SIGHUP
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lacks it by itself")
def test_a_scan(tmp_path: Path) -> None:
    """A scan needs no fork, no locks of fcntl, no limits of resource, and none of the signals and flags of POSIX."""
    image = write(tmp_path / "seed.dmp", "seed")
    before, results = tmp_path / "before", tmp_path / "results"
    before.mkdir()
    (before / "sitecustomize.py").write_text(LACKING, encoding="ascii")
    command = ("scan", image, "-o", results, "--offline", "--workers", 2)
    done = apcaudit(*command, cache=indexed(tmp_path / "cache"), before=before)
    assert done.returncode == 0, done.stderr
    (row,) = store.images(results)
    assert (row.status, row.severity) == ("scanned", "critical")
    assert [each.name for each in results.iterdir() if each.name != ".known"] == [row.image]
