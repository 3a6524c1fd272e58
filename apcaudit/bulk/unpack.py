"""Unpacking an image from gzip, xz or zip, with the files that vol needs beside it, and hashing its bytes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from apcaudit.bulk.room import NoRoomError, report_full
from apcaudit.bulk.vmware import states_of
from apcaudit.errors import ApcAuditError

_BLOCK = 4 << 20

_SPARE = 1 << 30
"""Bytes that unpacking leaves free on the scratch disk."""

_ADVICE = "give another folder with --scratch"

_ENDINGS = (".gz", ".xz", ".zip")

_UNSAFE = re.compile(r"[^A-Za-z0-9 ._()+-]")
_LONGEST = 100

Stream = IO[bytes] | gzip.GzipFile | lzma.LZMAFile

_GZIP, _XZ, _ZIP = b"\x1f\x8b", b"\xfd7zXZ\0", b"PK\x03\x04"


#: Files that cannot be read to their end: a FIFO waits for its writer, a device may be endless.
_NO_FILES = ((stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"))


def is_packed(path: Path, member: str | None) -> bool:
    """Tell whether a file has to be unpacked; a member of an archive always has to be.

    Raises:
        ApcAuditError: it is no regular file or disk.
    """
    mode = path.stat().st_mode
    for is_kind, kind in _NO_FILES:
        if is_kind(mode):
            raise ApcAuditError(f"{path} is {kind}, no file with an image in it")
    if stat.S_ISDIR(mode):
        # A folder gets here only if it could not be listed: this raises the reason.
        os.listdir(path)
        raise ApcAuditError(f"{path} is a folder, no file with an image in it")
    return member is not None or _head(path).startswith((_GZIP, _XZ, _ZIP))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def image_of(path: Path, member: str | None, scratch: Path, stage: Callable[[str], None]) -> tuple[Path, str, int]:
    """Return the file with an image's bytes, their SHA-256 and their number.

    Args:
        path: the file that was found.
        member: its member, where it is a zip archive.
        scratch: folder for unpacked files; the caller removes it.
        stage: called with `unpack` or `hash` when that begins.

    Raises:
        ApcAuditError: the archive is damaged or encrypted.
        NoRoomError: the disk is too small for its contents.
    """
    digest = hashlib.sha256()
    if not is_packed(path, member):
        stage("hash")
        with path.open("rb") as file:
            size = _read(file, digest.update)
        return taken_by_vol(path, scratch), digest.hexdigest(), size
    stage("unpack")
    name = Path(member or path).name
    for ending in _ENDINGS:
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    unpacked = scratch / _safe(name)
    size = _unpack(path, member, unpacked, digest.update)
    for beside, known_as in states_of(Path(member or path).name).items():
        state = scratch / _safe(known_as)
        if not state.exists() and (found := _beside(path, member, beside)):
            _unpack(*found, state, lambda _: None)
    return unpacked, digest.hexdigest(), size


def taken_by_vol(path: Path, scratch: Path) -> Path:
    """Return a path of a file that vol can make a URL of: where a name is no UTF-8, that of a link in `scratch`.

    The files that vol needs beside it get links too.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # A packed state is none that vol would read beside an image that is not packed.
        for name in {path.name, *states_of(path.name).values()}:
            if path.with_name(name).is_file():
                (scratch / _safe(name)).symlink_to(path.with_name(name))
        return scratch / _safe(path.name)
    return path


def _safe(name: str) -> str:
    """Make a safe file name from a member's name, which may hold any characters."""
    return _UNSAFE.sub("_", name).lstrip(".")[-_LONGEST:] or "image"


def _beside(path: Path, member: str | None, name: str) -> tuple[Path, str | None] | None:
    """Find a file by its name, beside a file or beside the member of an archive."""
    if member is None:
        return (path.with_name(name), None) if path.with_name(name).is_file() else None
    sibling = member[: -len(PurePosixPath(member).name)] + name
    with zipfile.ZipFile(path) as archive:
        return (path, sibling) if sibling in archive.namelist() else None


def _unpack(path: Path, member: str | None, target: Path, consume: Callable[[bytes], object]) -> int:
    """Write a file's or member's bytes to a file, pass each block to `consume`, and return their number."""

    def write(block: bytes) -> None:
        if shutil.disk_usage(target.parent).free < _SPARE + len(block):
            raise NoRoomError(f"no room to unpack it in {target.parent}: {_ADVICE}")
        file.write(block)
        consume(block)

    try:
        with report_full(target.parent, _ADVICE), _opened(path, member) as packed, target.open("wb") as file:
            return _read(packed, write)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        raise ApcAuditError(f"the archive is damaged: {error}") from error
    except (RuntimeError, NotImplementedError) as error:
        # zipfile raises these for encrypted members and unknown methods.
        raise ApcAuditError(f"the archive cannot be unpacked: {error}") from error


def _read(file: Stream, consume: Callable[[bytes], object]) -> int:
    size = 0
    while block := file.read(_BLOCK):
        consume(block)
        size += len(block)
    return size


@contextlib.contextmanager
def _opened(path: Path, member: str | None) -> Iterator[Stream]:
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
    elif not head.startswith(_ZIP):
        with path.open("rb") as file:
            yield file
    else:
        raise zipfile.BadZipFile("its directory cannot be read")
