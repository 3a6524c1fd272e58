"""The symbol files that types can be borrowed from: those of the synthetic kernels, whose layouts are genuine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from volatility3.framework import constants
from volatility3.framework.layers import resources
from volatility3.framework.symbols import intermed

from .. import symbol_file
from ..regular import check_url

# How the invented GUIDs of the kernels that ship begin. Files of real kernels are many and large, and say nothing of
# their build.
_GUID = "A9C0DE00"

_PAE_ENTRY = 8  # sizeof(_MMPTE) where the page tables of x86 are those of PAE (Intel SDM volume 3, 4.4)


@dataclass(frozen=True, slots=True)
class Donor:
    """A symbol file with types: its URL and document, the build it is of, bytes of a pointer, whether it is of PAE."""

    url: str
    document: Mapping[str, Any]
    build: int
    pointer_size: int
    pae: bool

    @property
    def name(self) -> str:
        """What a message calls it."""
        pe = self.document["metadata"]["windows"]["pe"]
        bits = "x64" if self.pointer_size == 8 else "x86 PAE" if self.pae else "x86"
        return f"Windows {pe['major']}.{pe['minor']}.{self.build} {bits} ({'/'.join(self.url.split('/')[-2:])})"


def read_document(url: str) -> dict[str, Any]:
    """Read a symbol file's JSON.

    Raises:
        OSError, SymbolFileError: it cannot be read or is no JSON.
    """
    check_url(url)
    with resources.ResourceAccessor().open(url) as file:
        document: dict[str, Any] = symbol_file.load(file)
    return document


def donors(pointer_size: int, *, pae: bool, build: int | None) -> list[Donor]:
    """Return the files of Volatility's symbol path that fit a machine, the nearest build first.

    Args:
        pointer_size: bytes of a pointer.
        pae: whether the machine has page tables of PAE; such files come first.
        build: the machine's build number, None if unknown.
    """
    found: dict[str, Donor] = {}
    for name in constants.windows.KERNEL_MODULE_NAMES:
        for url in intermed.IntermediateSymbolTable.file_symbol_url(f"windows/{name}.pdb"):
            file = url.split("/")[-1]
            if file.upper().startswith(_GUID) and file not in found:
                donor = _donor(url)
                if donor is not None and donor.pointer_size == pointer_size:
                    found[file] = donor
    return sorted(found.values(), key=lambda donor: (donor.pae != pae, abs(donor.build - (build or 0)), donor.url))


def _donor(url: str) -> Donor | None:
    try:
        document = read_document(url)
        size = int(document["base_types"]["pointer"]["size"])
        # The third part of the version is the build; pdbconv and the schema call it revision.
        build = int(document["metadata"]["windows"]["pe"]["revision"])
        pae = size == 4 and document["user_types"]["_MMPTE"]["size"] == _PAE_ENTRY
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Donor(url, document, build, size, pae)
