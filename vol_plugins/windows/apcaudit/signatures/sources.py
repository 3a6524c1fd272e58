"""The text of YARA rules: from files, folders and strings, and those that ship."""

from __future__ import annotations

import lzma
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib import parse, request

from volatility3.framework.layers import resources

from .options import RuleError, RuleOptions

SHIPPED = Path(__file__).resolve().parent.parent / "rules"

SUFFIXES = (".yar", ".yara")
"""How rule files of a folder end."""

FILES_BOUND = 20_000
"""How many rule files a folder may hold, in all of its folders."""

PACKED = (".gz", ".bz2", ".xz", ".lzma")
"""Endings of files that vol unpacks (its ResourceAccessor, by Python's mimetypes)."""

SIZE_BOUND = 512 << 20
"""How many bytes one rule file may have, unpacked; compiled collections have some ten million."""


@dataclass(frozen=True, slots=True)
class Source:
    """One rule file or string: its text, where messages say it is, its folder for includes, the option it came by.

    `root` is the folder below which everything lies that it may include.
    """

    text: str
    name: str
    folder: str | None = None
    option: str | None = None
    root: str | None = None


def gather(options: RuleOptions) -> list[Source]:
    """Read the rules that options ask for, compiled files excepted.

    Raises:
        RuleError: a file cannot be read, or a folder has no rules.
    """
    sources: list[Source] = []
    if options.file is not None:
        sources += _of_location(options.file)
    if options.string is not None:
        sources.append(Source(_of_string(options), "the rule of --yara-string", option="yara-string"))
    if options.defaults:
        sources += [_of_path(path, None, SHIPPED) for path in sorted(SHIPPED.glob("*.yar"))]
    return sources


def local_path(location: str) -> Path | None:
    """Return the path that a file URL names, None for another URL."""
    url = parse.urlparse(location)
    if url.scheme == "file":
        return Path(request.url2pathname(url.path))
    return Path(location) if len(url.scheme) <= 1 else None


def read_bytes(location: str, option: str) -> bytes:
    """Read a location, unpacked as vol does with compressed files.

    Raises:
        RuleError: it cannot be read.
    """
    path = local_path(location)
    try:
        with _opened(location, path) as file:
            # A packed file may hold far more than its own size.
            data: bytes = file.read(SIZE_BOUND + 1)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise RuleError(f"{location}: {getattr(error, 'strerror', None) or error}", option) from error
    return _bounded(data, location, option)


def _opened(location: str, path: Path | None) -> IO[bytes]:
    """Open a location as vol does; it takes longer to find out how than to read a plain file, which needs no vol."""
    if path is not None and path.suffix not in PACKED:
        return path.open("rb")
    file: IO[bytes] = resources.ResourceAccessor().open(location if path is None else path.resolve().as_uri(), "rb")
    return file


def _bounded(data: bytes, name: str, option: str | None) -> bytes:
    if len(data) > SIZE_BOUND:
        raise RuleError(f"{name}: more than {SIZE_BOUND >> 20} MiB of rules", option)
    return data


def _of_location(location: str) -> list[Source]:
    path = local_path(location)
    if path is None or not path.is_dir():
        name = location if path is None else str(path)
        folder = None if path is None else str(path.parent)
        text = _decoded(read_bytes(location, "yara-file"), name, "yara-file")
        return [Source(text, name, folder, "yara-file", folder)]
    files = _rule_files(path)
    if not files:
        raise RuleError(f"{path}: no {' or '.join(SUFFIXES)} file in this folder", "yara-file")
    return [_of_path(file, "yara-file", path) for file in files]


def _rule_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path, folders, files in os.walk(folder):
        folders.sort()
        found += [Path(path, name) for name in sorted(files) if name.lower().endswith(SUFFIXES)]
        if len(found) > FILES_BOUND:
            raise RuleError(f"{folder}: more than {FILES_BOUND} rule files", "yara-file")
    return found


def _of_path(path: Path, option: str | None, root: Path) -> Source:
    try:
        with path.open("rb") as file:
            data = _bounded(file.read(SIZE_BOUND + 1), str(path), option)
    except OSError as error:
        raise RuleError(f"{path}: {error.strerror or error}", option) from error
    return Source(_decoded(data, str(path), option), str(path), str(path.parent), option, str(root))


def _decoded(data: bytes, name: str, option: str | None) -> str:
    if data.startswith(b"YARA"):
        raise RuleError(f"{name}: these rules are compiled: give them with --yara-compiled-file", option)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RuleError(f"{name}:{line}: rules have to be UTF-8", option) from error


def _of_string(options: RuleOptions) -> str:
    """Make the rule that vol's yarascan makes of a string: text, { hexadecimal } or /regular expression/."""
    pattern = options.string or ""
    if not pattern.startswith(("{", "/")):
        pattern = f'"{pattern}"'
    if options.insensitive:
        pattern += " nocase"
    if options.wide:
        pattern += " wide ascii"
    return f"rule r1 {{strings: $a = {pattern} condition: $a}}"
