"""Folders of symbol files, before vol opens all that is in them for its index."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from apcaudit.errors import ApcAuditError
from apcaudit.no_file import kind_of

#: What vol takes for a symbol file, and for an archive of them (volatility3 2.28.2: constants.ISF_EXTENSIONS,
#: IntermediateSymbolTable.file_symbol_url).
_SYMBOLS = (".json", ".json.xz", ".json.gz", ".json.bz2")
_ARCHIVE = ".zip"


def check(folders: Iterable[str | Path]) -> None:
    """Look at folders that a user gave, and at every file in them that vol would open.

    Raises:
        ApcAuditError: one is no folder, or holds what would keep vol for ever: a FIFO, a device.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            wrong = "is no folder" if Path(folder).exists() else "no such folder"
            raise ApcAuditError(f"{folder}: {wrong} (-s)")
        look_into(folder)


def look_into(*folders: str | Path) -> None:
    """Look at every file of folders that vol would open, those that are there.

    Raises:
        ApcAuditError: one is a FIFO, a device, or a damaged archive.
    """
    for folder in folders:
        for parent, below, files in os.walk(folder):
            for name in sorted((*files, *below)):
                if name.endswith((*_SYMBOLS, _ARCHIVE)):
                    _check(Path(parent, name))


def _check(path: Path) -> None:
    kind = kind_of(path)
    if kind is not None:
        raise ApcAuditError(f"{path} is {kind}, no symbol file: remove it")
    if path.name.endswith(_ARCHIVE) and path.exists() and not zipfile.is_zipfile(path):
        # Vol gives up on all of its symbol files then.
        raise ApcAuditError(f"{path} is no zip archive, or a damaged one: remove it")
