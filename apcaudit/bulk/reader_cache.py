"""What vol keeps while a process reads images: an index of its own, and the only folder of symbol files that it writes.

When vol's index misses a symbol file that is there, vol opens the file's path for writing, to download it, and removes
it where that fails (volatility3 2.28.2, PDBUtility.download_pdb_isf). It does so in the first folder of its symbol path
that it may write to. So the first one is the process's own, and no process's index is written by another: vol waits
five seconds for another's lock, and goes on without what it could not note.
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

_KEPT = (INDEX, "apcaudit_kernel_symbols.json")
"""What is worth keeping for other processes: the index, and what the plugin remembers of kernels for minidumps."""


@dataclass(frozen=True, slots=True)
class ReaderCache:
    """The cache folder of one process, and the one that it takes from and leaves to others.

    Args:
        own: this process's alone; whoever started it removes it.
        shared: of all processes with the same folders of symbol files; both are on one file system.
    """

    own: Path
    shared: Path

    @property
    def first(self) -> Path:
        """The folder that comes first in the symbol path: what vol fetches is put there."""
        return self.own / "symbols"

    @property
    def last(self) -> Path:
        """The folder that comes last: what processes have fetched before."""
        return self.shared / "symbols"

    def begin(self) -> None:
        """Make the folders, and take what others have left."""
        self.clear()
        self.last.mkdir(parents=True, exist_ok=True)
        for name in _KEPT:
            try:
                shutil.copyfile(self.shared / name, self.own / name)
            except OSError:
                (self.own / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget what was fetched: of a process that was killed in the middle, files may be there in part."""
        shutil.rmtree(self.first, ignore_errors=True)
        self.first.mkdir(parents=True, exist_ok=True)

    def keep(self) -> None:
        """Leave to others what is new, each file whole or not at all; what cannot be left only costs them time."""
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
