"""Checking folders of symbol files before vol opens all files in them for its index."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from apcaudit.errors import ApcAuditError
from apcaudit.no_file import kind_of

#: Suffixes of symbol files and of archives of them in vol (volatility3 2.28.2: constants.ISF_EXTENSIONS,
#: IntermediateSymbolTable.file_symbol_url).
_SYMBOLS = (".json", ".json.xz", ".json.gz", ".json.bz2")
_ARCHIVE = ".zip"


def check(folders: Iterable[str | Path]) -> None:
    """Check the folders that a user gave, and every file in them that vol would open.

    Raises:
        ApcAuditError: one is no folder, or holds a FIFO or device, on which vol would hang.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            wrong = "is no folder" if Path(folder).exists() else "no such folder"
            raise ApcAuditError(f"{folder}: {wrong} (-s)")
        look_into(folder)


def look_into(*folders: str | Path) -> None:
    """Check every file in folders that vol would open; missing folders are ignored.

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
        # A damaged archive would make vol give up on all symbol files.
        raise ApcAuditError(f"{path} is no zip archive, or a damaged one: remove it")
