"""Missing symbol files, and the script that fetches them on a connected machine."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_PDB = re.compile(r"[\w.-]{1,64}", re.ASCII)
_GUID = re.compile(r"[0-9A-Fa-f]{32}")

#: The URL of a kernel's image on Microsoft's symbol server, as in the plugin's message on a minidump.
_IMAGE = re.compile(r"https://msdl\.microsoft\.com/download/symbols/([\w.-]{1,64})/[0-9A-Fa-f]{9,16}/\1", re.ASCII)

_PDBCONV = "volatility3.framework.symbols.windows.pdbconv"

#: Reads the PDB's name, GUID and age from a kernel's image: its CodeView record, "RSDS" (PE format specification,
#: "Debug Type"; the record's layout is public in Microsoft's microsoft-pdb, cvinfo.h).
_BY_IMAGE = rf"""fetch_by_image() {{ python3 - "$1" <<'END'
import os, re, subprocess, sys, urllib.request, uuid
image = urllib.request.urlopen(sys.argv[1]).read()
found = re.search(rb"RSDS(.{{16}})(.{{4}})([\w.-]+\.pdb)\0", image, re.DOTALL)
if found is None:
    sys.exit(sys.argv[1] + ": no PDB is named in it")
guid, age, pdb = uuid.UUID(bytes_le=found[1]).hex.upper(), int.from_bytes(found[2], "little"), found[3].decode()
folder = "symbols/windows/" + pdb
os.makedirs(folder, exist_ok=True)
command = [sys.executable, "-m", "{_PDBCONV}"]
sys.exit(subprocess.call(command + ["-p", pdb, "-g", f"{{guid}}{{age}}", "-o", f"{{folder}}/{{guid}}-{{age}}.json.xz"]))
END
}}"""


@dataclass(frozen=True, slots=True)
class Symbols:
    """The PDB of an image's kernel, and whether its symbol file is there.

    Without a PDB, `reason` says why it is not known. For a minidump, only the URL `kernel` of the kernel's image is
    known, which names the PDB.
    """

    source: str
    pdb: str | None = None
    guid: str | None = None
    age: int | None = None
    present: bool = False
    reason: str | None = None
    kernel: str | None = None

    @property
    def missing(self) -> str | None:
        """What is missing, by its name on the symbol server; None where nothing is missing, or it is not known."""
        if self.present:
            return None
        if self.pdb is not None:
            return f"{self.pdb} {self.guid}-{self.age}"
        if self.kernel is None:
            return None
        *_, key, image = self.kernel.split("/")
        return f"the PDB of {image} {key}"

    @property
    def file(self) -> str:
        """The symbol file's path below a folder of symbol files."""
        return f"windows/{self.pdb}/{self.guid}-{self.age}.json.xz"


def symbols_of(source: str, kernel: dict[str, Any] | None, reason: str | None) -> Symbols:
    """Check what a reader process reports about an image's kernel, since it goes into commands.

    Args:
        source: the image.
        kernel: its PDB's name (`pdb`), `guid` and `age`.
        reason: why there is no symbol file; None where there is one.
    """
    present = reason is None
    named = kernel is not None and isinstance(kernel["age"], int)
    if kernel is None or not named or not _PDB.fullmatch(kernel["pdb"]) or not _GUID.fullmatch(kernel["guid"]):
        found = _IMAGE.search(reason or "")
        return Symbols(source, present=present, reason=reason, kernel=found[0] if found else None)
    return Symbols(source, kernel["pdb"], kernel["guid"], kernel["age"], present)


def missing_lines(every: Iterable[Symbols]) -> list[str]:
    """Name each missing symbol file once, with the number of images that need it, the most needed first."""
    counts = Counter(each.missing for each in every if each.missing is not None)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"  {name}: {count} image{'' if count == 1 else 's'}" for name, count in ordered]
    return [f"missing symbol files: {len(lines)}", *lines] if lines else []


def commands(every: Iterable[Symbols]) -> str:
    """Return the script that fetches the missing symbol files, empty if none is missing."""
    every = [each for each in every if not each.present]
    missing = {each.file: each for each in every if each.pdb is not None}
    kernels = {each.kernel for each in every if each.kernel is not None}
    if not missing and not kernels:
        return ""
    lines = [
        "# On a connected machine with volatility3 installed; then copy the folder `symbols` here and give it with -s.",
    ]
    for file, each in sorted(missing.items()):
        path = shlex.quote(f"symbols/{file}")
        lines.append(f"mkdir -p {shlex.quote(f'symbols/windows/{each.pdb}')}")
        lines.append(f"python3 -m {_PDBCONV} -p {shlex.quote(str(each.pdb))} -g {each.guid}{each.age} -o {path}")
    if kernels:
        lines += ["# Minidumps do not name their kernel's PDB: its image does.", _BY_IMAGE]
        lines += [f"fetch_by_image {shlex.quote(kernel)}" for kernel in sorted(kernels)]
    return "\n".join(lines) + "\n"
