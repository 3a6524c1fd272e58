"""The processes that read images for this one: kept from image to image, as many as images are read at once."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from apcaudit.bulk.isolation import ImageError, Isolation, StoppedError
from apcaudit.bulk.outcome import Settings

_Kind = tuple[tuple[Path, ...], Path, bool]
"""What a process was started with, and what it can be asked for: symbol folders, cache folder, offline."""


class Readers:
    """Lends a process to whoever reads an image; threads may ask at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[_Kind, list[Isolation]] = {}
        self._lent: set[Isolation] = set()
        self._stopped = False
        # Each has a folder of its own, which is removed when it ends.
        atexit.register(self.stop)

    def prepare(self, settings: Settings, count: int) -> None:
        """Start processes before they are needed: they load what they need while this one does something else."""
        with self._lock:
            idle = self._idle.setdefault(_kind(settings), [])
            idle += [_started(_kind(settings)) for _ in range(count - len(idle))]

    @contextlib.contextmanager
    def lend(self, settings: Settings) -> Iterator[Isolation]:
        """Lend a process for one image.

        Raises:
            StoppedError: stop() was called, and reopen() not since.
        """
        kind = _kind(settings)
        with self._lock:
            if self._stopped:
                raise StoppedError
            idle = self._idle.setdefault(kind, [])
            isolation = idle.pop() if idle else _started(kind)
            self._lent.add(isolation)
        try:
            yield isolation
        except ImageError:
            raise
        except BaseException:
            # It may be in the middle of an image, for which nobody waits any more.
            isolation.close()
            raise
        finally:
            with self._lock:
                self._lent.discard(isolation)
                if not self._stopped:
                    self._idle[kind].append(isolation)

    def stop(self) -> None:
        """End all processes, also those that read an image, which is no failure of the image's."""
        with self._lock:
            self._stopped = True
            every = [*self._lent, *(each for idle in self._idle.values() for each in idle)]
            self._idle.clear()
        for each in every:
            each.stop()

    def reopen(self) -> None:
        """Lend again: those whom stop() was meant for are gone."""
        with self._lock:
            self._stopped = False


def _kind(settings: Settings) -> _Kind:
    return settings.symbols, settings.cache or cache_folder(settings.symbols), settings.offline


def _started(kind: _Kind) -> Isolation:
    symbols, cache, offline = kind
    made = Isolation(symbols, cache, offline=offline)
    made.start()
    return made


def cache_folder(symbols: tuple[Path, ...]) -> Path:
    """Return where vol's index for these folders of symbol files is kept.

    Vol drops from its index what the folders of the moment do not hold, so each set of folders has an index of its own.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apcaudit"
    return base / hashlib.sha256("\0".join(str(each) for each in symbols).encode()).hexdigest()[:16]
