"""Vol's cache while a process reads images: an index of its own, and the only folder of symbol files that vol writes.

When vol's index misses an existing symbol file, vol opens the file's path for writing, to download it, and removes the
file when that fails (volatility3 2.28.2, PDBUtility.download_pdb_isf). It does so in the first writable folder of its
symbol path, so the first folder is the process's own. Each process also has its own index: for the lock of another
process vol waits five seconds, then goes on without an entry.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INDEX = "identifier.cache"
"""Vol's index of symbol files (volatility3.framework.constants.IDENTIFIERS_FILENAME)."""

_KEPT = (INDEX,)
"""The files to keep for other processes."""


@dataclass(frozen=True, slots=True)
class ReaderCache:
    """The cache folder of one process, and the folder that it shares with others.

    Args:
        own: this process's folder; the process that started it removes the folder.
        shared: folder of all processes with the same folders of symbol files, on the same file system.
    """

    own: Path
    shared: Path

    @property
    def first(self) -> Path:
        """The first folder in the symbol path, where vol puts files that it fetches."""
        return self.own / "symbols"

    @property
    def last(self) -> Path:
        """The last folder in the symbol path, with files that processes have fetched before."""
        return self.shared / "symbols"

    def begin(self) -> None:
        """Make the folders, and copy the shared files."""
        self.clear()
        self.last.mkdir(parents=True, exist_ok=True)
        for name in _KEPT:
            try:
                shutil.copyfile(self.shared / name, self.own / name)
            except OSError:
                (self.own / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove fetched files, which may be incomplete if a process was killed."""
        shutil.rmtree(self.first, ignore_errors=True)
        self.first.mkdir(parents=True, exist_ok=True)

    def keep(self) -> None:
        """Copy new files to the shared folder, each whole or not at all; a failure only costs other processes time."""
        for name in _KEPT:
            self._leave(self.own / name, self.shared / name)
        for path in self._fetched():
            self._leave(path, self.last / path.relative_to(self.first))

    def _fetched(self) -> Iterator[Path]:
        return (path for path in sorted(self.first.rglob("*.json.xz")) if path.is_file())

    def _leave(self, source: Path, target: Path) -> None:
        unfinished = self.own / "unfinished"
        with contextlib.suppress(OSError):
            data = source.read_bytes()
            if target.is_file() and target.read_bytes() == data:
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(data)
            os.replace(unfinished, target)
