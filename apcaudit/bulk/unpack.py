"""An image's bytes: out of a gzip or xz file or a zip archive, and their SHA-256."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from apcaudit.errors import ApcAuditError

_BLOCK = 4 << 20

_SPARE = 1 << 30
"""Bytes that unpacking leaves free on the scratch disk: an archive may hold far more than there is room for."""

_ENDINGS = (".gz", ".xz", ".zip")

_UNSAFE = re.compile(r"[^A-Za-z0-9 ._()+-]")
_LONGEST = 100


_GZIP, _XZ, _ZIP = b"\x1f\x8b", b"\xfd7zXZ\0", b"PK\x03\x04"


def is_packed(path: Path, member: str | None) -> bool:
    """Tell whether a file has to be unpacked; a member of an archive always has."""
    return member is not None or _head(path).startswith((_GZIP, _XZ, _ZIP))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def image_of(path: Path, member: str | None, scratch: Path, stage: Callable[[str], None]) -> tuple[Path, str, int]:
    """Return the file with an image's bytes, their SHA-256 and how many they are.

    Args:
        path: the file that was found.
        member: its member, where it is a zip archive.
        scratch: folder for what has to be unpacked; the caller removes it.
        stage: told `unpack` or `hash` when that begins.

    Raises:
        ApcAuditError: the archive is damaged, encrypted, or holds more than the disk does.
    """
    digest = hashlib.sha256()
    size = 0
    if not is_packed(path, member):
        stage("hash")
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
        return path, digest.hexdigest(), size
    stage("unpack")
    name = Path(member or path).name
    for ending in _ENDINGS:
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    # A member may be called anything, also what no file system takes.
    unpacked = scratch / (_UNSAFE.sub("_", name).lstrip(".")[-_LONGEST:] or "image")
    try:
        with _opened(path, member) as packed, unpacked.open("wb") as target:
            while block := packed.read(_BLOCK):
                if shutil.disk_usage(scratch).free < _SPARE + len(block):
                    raise ApcAuditError(f"no room to unpack it in {scratch}: give another folder with --scratch")
                digest.update(block)
                target.write(block)
                size += len(block)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        raise ApcAuditError(f"the archive is damaged: {error}") from error
    except (RuntimeError, NotImplementedError) as error:
        # What zipfile raises for encrypted members and unknown methods.
        raise ApcAuditError(f"the archive cannot be unpacked: {error}") from error
    return unpacked, digest.hexdigest(), size


@contextlib.contextmanager
def _opened(path: Path, member: str | None) -> Iterator[IO[bytes] | gzip.GzipFile | lzma.LZMAFile]:
    head = _head(path)
    if member is not None:
        with zipfile.ZipFile(path) as archive, archive.open(member) as inner:
            yield inner
    elif head.startswith(_GZIP):
        with gzip.open(path) as stream:
            yield stream
    elif head.startswith(_XZ):
        with lzma.open(path) as stream:
            yield stream
    else:
        raise zipfile.BadZipFile("its directory cannot be read")
