"""Finding images in files, folders, patterns and zip archives; only the directories of archives are read."""

from __future__ import annotations

import glob
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from apcaudit.bulk.vmware import is_state
from apcaudit.errors import ApcAuditError
from apcaudit.text import encodable

#: Suffixes of files in a folder of evidence that are no images; a file that the user names itself is always taken.
_NOT_IMAGES = frozenset(
    {
        ".txt",
        ".md",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".log",
        ".xml",
        ".html",
        ".pdf",
        ".md5",
        ".sha1",
        ".sha256",
        ".sha512",
        ".sig",
        ".asc",
        ".yaml",
        ".yml",
        ".ini",
        ".py",
        ".yar",
        ".parquet",
        ".nvram",
        ".vmx",
        ".vmxf",
        ".vmsd",
        ".pcap",
        ".pcapng",
    }
)


@dataclass(frozen=True, slots=True, order=True)
class Evidence:
    """A file that may be an image, or a member of a zip archive."""

    path: Path
    member: str | None = None

    @property
    def source(self) -> str:
        """Its name in the results."""
        path = encodable(str(self.path))
        return path if self.member is None else f"{path}::{self.member}"


def find(
    paths: Iterable[str], leave_out: Path | None = None, passed_by: Callable[[Path], None] = lambda _: None
) -> list[Evidence]:
    """Find images.

    A link to a file is taken for the file, one that leads nowhere for an image that cannot be read. Links to folders
    are followed only where they are named, since they may lead round in circles.

    Args:
        paths: files, folders (searched with all below them), and patterns of these.
        leave_out: a folder that is not searched, the one for the results.
        passed_by: called with each link to a folder that is not followed.

    Raises:
        ApcAuditError: a path does not exist, or a pattern matches nothing.
    """
    found: dict[Evidence, None] = {}
    for text in paths:
        path = Path(text)
        named = (
            [path]
            if _true_if_refused(path.exists)
            else [Path(each) for each in sorted(glob.glob(text, recursive=True))]
        )
        if not named:
            raise ApcAuditError(f"{text}: no such file or folder, and no file matches it")
        for each in named:
            absolute = Path(os.path.abspath(each))
            files = _below(absolute, leave_out, passed_by) if os.path.isdir(absolute) else [absolute]
            for file in files:
                found.update(dict.fromkeys(_members(file)))
    return list(found)


def _below(folder: Path, leave_out: Path | None, passed_by: Callable[[Path], None]) -> Iterator[Path]:
    hidden = None if leave_out is None else os.path.abspath(leave_out)
    closed: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        folders[:] = sorted(each for each in folders if each[0] != "." and os.path.join(parent, each) != hidden)
        for each in folders:
            if os.path.islink(os.path.join(parent, each)):
                passed_by(Path(parent, each))
        for name in sorted(files):
            path = Path(parent, name)
            if name[0] == "." or path.suffix.lower() in _NOT_IMAGES or is_state(name, files):
                continue
            if _true_if_refused(path.is_file) or _leads_nowhere(path):
                yield path
    # A folder that cannot be listed may hold images, so it becomes a row of its own.
    yield from closed


def _leads_nowhere(path: Path) -> bool:
    """Tell whether a path is a link whose target is missing, as on a disk that is not mounted."""
    return os.path.islink(path) and not os.path.exists(path)


def _true_if_refused(tell: Callable[[], bool]) -> bool:
    """Ask the system about a file; True where it refuses, so that the scan of the file fails and its row says why."""
    try:
        return tell()
    except OSError:
        return True


def _members(path: Path) -> Iterator[Evidence]:
    """Yield the members of a zip archive that may be images, or the file itself."""
    try:
        if not path.is_file():
            # Opening a FIFO would wait for its writer.
            yield Evidence(path)
            return
        # A dump or raw image may end like a zip archive, so an archive has to begin like one.
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                names = [each.filename for each in archive.infolist() if not each.is_dir()]
            for name in names:
                if Path(name).suffix.lower() not in _NOT_IMAGES and not is_state(name, names):
                    yield Evidence(path, name)
            return
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        # The scan of the file will fail too, and its row says why.
        pass
    yield Evidence(path)
