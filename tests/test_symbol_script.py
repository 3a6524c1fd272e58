"""The script that fetches missing symbol files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apcaudit.bulk.symbol_script import Symbols, commands, symbols_of

GUID = "0123456789ABCDEF0123456789ABCDEF"

#: What the plugin says of a minidump whose kernel has no symbol file.
REASON = "has no symbols. Its image is at {}: the debug directory in there names PDB and GUID, then `...` makes it"

IMAGE = "https://msdl.microsoft.com/download/symbols/ntoskrnl.exe/0D8333E61046000/ntoskrnl.exe"


def test_one_command_a_kernel() -> None:
    """However many images have a kernel, its symbol file is fetched once; what is there is not fetched."""
    guid = "0123456789ABCDEF0123456789ABCDEF"
    missing = [Symbols(name, "ntkrnlmp.pdb", guid, 1) for name in ("a", "b")]
    there = Symbols("c", "ntkrpamp.pdb", guid, 2, present=True)
    assert commands([*missing, there]).count("pdbconv") == 1
    assert commands([there, Symbols("d", reason="no image")]) == ""


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        (IMAGE, IMAGE),
        ("https://example.org/ntoskrnl.exe/0D8333E61046000/ntoskrnl.exe", None),
        (IMAGE.replace("ntoskrnl.exe", "a';reboot"), None),
        (IMAGE.replace("0D8333E61046000", "../.."), None),
    ],
)
def test_where_a_minidump_has_its_kernel_from(url: str, taken: str | None) -> None:
    """A minidump names no PDB: what is fetched is its kernel, from Microsoft's symbol server and nowhere else."""
    found = symbols_of("a.dmp", None, REASON.format(url))
    assert (found.kernel, found.pdb, found.present) == (taken, None, False)
    assert (url in commands([found])) == (taken is not None)


@pytest.mark.parametrize(
    "changed", [{"pdb": "a b.pdb"}, {"guid": GUID[1:]}, {"guid": f"{GUID[2:]};x"}, {"age": "1; reboot"}]
)
def test_words_that_are_no_command(changed: dict[str, object]) -> None:
    """What an image says of its kernel becomes a command only when it looks like it."""
    said = {"pdb": "ntkrnlmp.pdb", "guid": GUID, "age": 1}
    assert f"-g {GUID}1 " in commands([symbols_of("a", said, "missing")])
    assert commands([symbols_of("a", said | changed, "missing")]) == ""


def test_a_kernel_image_names_its_symbols(tmp_path: Path) -> None:
    """The script reads PDB, GUID and age out of the kernel's image, and makes that symbol file."""
    image = tmp_path / "ntoskrnl.exe"
    guid = bytes(range(16))
    image.write_bytes(b"MZ" + bytes(900) + b"RSDS" + guid + (2).to_bytes(4, "little") + b"ntkrnlmp.pdb\0" + bytes(90))
    script = commands([symbols_of("a.dmp", None, REASON.format(IMAGE))]).replace(IMAGE, image.as_uri())
    # In the place of vol's converter, which would ask Microsoft: it writes down what it is asked for.
    stand_in = tmp_path / "path" / "volatility3" / "framework" / "symbols" / "windows" / "pdbconv.py"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text("import sys; open(sys.argv[-1], 'w').write(' '.join(sys.argv[1:]))")
    (tmp_path / "python3").symlink_to(sys.executable)
    path = os.pathsep.join((str(tmp_path), os.environ["PATH"]))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "path"), "PATH": path}
    subprocess.run(["sh", "-c", script], check=True, cwd=tmp_path, env=environment)
    # The first three fields of a GUID are little-endian (PE format specification).
    name = "03020100050407060809" + "0A0B0C0D0E0F"
    made = tmp_path / "symbols" / "windows" / "ntkrnlmp.pdb" / f"{name}-2.json.xz"
    assert made.read_text() == f"-p ntkrnlmp.pdb -g {name}2 -o symbols/windows/ntkrnlmp.pdb/{name}-2.json.xz"
