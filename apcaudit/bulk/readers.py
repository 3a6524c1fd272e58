"""The processes that read images for this one: kept from image to image, one for each image read at the same time."""

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
"""The arguments of a process, by which one can be used again: symbol folders, cache folder, offline."""


class Readers:
    """Provides a process for each image that is read; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[_Kind, list[Isolation]] = {}
        self._in_use: set[Isolation] = set()
        self._stopped = False
        # Each process has a folder, which has to be removed when this program ends.
        atexit.register(self.stop)

    def prepare(self, settings: Settings, count: int) -> None:
        """Start processes ahead, so that they load what they need while this process goes on."""
        with self._lock:
            idle = self._idle.setdefault(_kind(settings), [])
            idle += [_started(_kind(settings)) for _ in range(count - len(idle))]

    @contextlib.contextmanager
    def acquire(self, settings: Settings) -> Iterator[Isolation]:
        """Provide a process for one image; it is kept for the next one afterwards.

        Raises:
            StoppedError: stop() was called, and reopen() not since.
        """
        kind = _kind(settings)
        with self._lock:
            if self._stopped:
                raise StoppedError
            idle = self._idle.setdefault(kind, [])
            isolation = idle.pop() if idle else _started(kind)
            self._in_use.add(isolation)
        try:
            yield isolation
        except ImageError:
            raise
        except BaseException:
            # The process may still be reading an image whose result nobody needs.
            isolation.close()
            raise
        finally:
            with self._lock:
                self._in_use.discard(isolation)
                if not self._stopped:
                    self._idle[kind].append(isolation)

    def stop(self) -> None:
        """End all processes, also those in use, whose ask() then raises StoppedError."""
        with self._lock:
            self._stopped = True
            every = [*self._in_use, *(each for idle in self._idle.values() for each in idle)]
            self._idle.clear()
        for each in every:
            each.stop()

    def reopen(self) -> None:
        """Provide processes again after stop(), once all threads that used some have ended."""
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
    """Return the default cache folder for these folders of symbol files.

    Vol drops from its index files that are not in the current folders, so each set of folders needs its own index.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apcaudit"
    return base / hashlib.sha256("\0".join(str(each) for each in symbols).encode()).hexdigest()[:16]
