"""A symbol file that unpacks to gigabytes costs `apcaudit scan` no more than its limit, and ends nothing."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bulk_images import indexed, need_extra
from tests.conftest import ROOT

need_extra()

LIMIT = 384 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the process that reads images")
def test_a_bomb_among_the_symbol_files(tmp_path: Path) -> None:
    """The process that indexes symbol files passes one by that does not fit into its limit, and is ready."""
    folder = tmp_path / "symbols" / "windows" / "ntkrnlmp.pdb"
    folder.mkdir(parents=True)
    # Streams that follow one another are one file (The .xz File Format, chapter 2).
    (folder / f"{'0' * 32}-1.json.xz").write_bytes(lzma.compress(bytes(1 << 20)) * (LIMIT >> 20))
    own = tmp_path / "own"
    own.mkdir()
    # The cache as it is once the other symbol files are indexed.
    (cache,) = indexed(tmp_path / "cache").glob("apcaudit/*")
    start = {"symbols": [str(tmp_path / "symbols")], "cache": str(cache), "own": str(own), "offline": True}
    # Not getrusage's peak, which a process takes over from the one that started it.
    script = "import pathlib, sys; from apcaudit.bulk import child; child.main(); "
    script += "sys.stderr.write(pathlib.Path('/proc/self/status').read_text())"
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps({**start, "index_memory": LIMIT, "forks": True})],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == ""
    assert int(done.stderr.rpartition("VmHWM:")[2].split()[0]) << 10 < LIMIT
