"""The text of YARA rules: from files, folders and strings, and those that ship."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volatility3.framework.layers import resources

from ..regular import check_url, opened, path_of
from .options import Broken, BrokenRulesError, RuleError, RuleOptions

SHIPPED = Path(__file__).resolve().parent.parent / "rules"

SUFFIXES = (".yar", ".yara")
"""How rule files of a folder end."""

FILES_BOUND = 20_000
"""How many rule files a folder may hold, in all of its folders."""

_PACKED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".lzma": lzma.open}
"""Endings of files that are unpacked, as vol does (its ResourceAccessor), by what unpacks each."""

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


class UnreadRulesError(BrokenRulesError):
    """Every rule file that cannot be read, at once; `sources` are those that can."""

    def __init__(self, broken: Sequence[Broken], sources: Sequence[Source]) -> None:
        super().__init__(broken, of=len(broken) + sum(source.option == "yara-file" for source in sources))
        self.sources = tuple(sources)


def gather(options: RuleOptions) -> list[Source]:
    """Read the rules that options ask for, compiled files excepted.

    Raises:
        UnreadRulesError: files cannot be read.
        RuleError: a folder has no rules, or more than are taken.
    """
    unread: list[Broken] = []
    sources: list[Source] = []
    if options.file is not None:
        sources += _of_location(options.file, unread)
    if options.string is not None:
        sources.append(Source(_of_string(options), "the rule of --yara-string", option="yara-string"))
    if options.defaults:
        sources += [_of_path(path, None, SHIPPED) for path in sorted(SHIPPED.glob("*.yar"))]
    if unread:
        raise UnreadRulesError(unread, sources)
    return sources


def read_bytes(location: str, option: str) -> bytes:
    """Read a location, unpacked as vol does with compressed files.

    Raises:
        BrokenRulesError: it cannot be read, or is no file.
    """
    path = None if location.startswith("jar:") else path_of(location)
    name = location if path is None else str(path)
    try:
        # A packed file may hold far more than its own size.
        if path is None:
            check_url(location)
            with resources.ResourceAccessor().open(location, "rb") as remote:
                data: bytes = remote.read(SIZE_BOUND + 1)
        else:
            with opened(path) as file:
                unpack = _PACKED.get(path.suffix)
                data = (unpack(file) if unpack else file).read(SIZE_BOUND + 1) or b""
        _check_size(data)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise BrokenRulesError([Broken(name, _reason(error), None, option)]) from error
    return data


def _check_size(data: bytes) -> None:
    if len(data) > SIZE_BOUND:
        raise ValueError(f"more than {SIZE_BOUND >> 20} MiB of rules")


def read_text(path: str | Path) -> str:
    """Read a rule file.

    Raises:
        OSError: it cannot be read, or is no file.
        ValueError: it is too large, or no text of rules.
    """
    with opened(path) as file:
        data = file.read(SIZE_BOUND + 1) or b""
    _check_size(data)
    return decode(data)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _of_location(location: str, broken: list[Broken]) -> list[Source]:
    path = path_of(location)
    if path is None or not os.path.isdir(path):
        name = location if path is None else str(path)
        folder = None if path is None else str(path.parent)
        try:
            text = decode(read_bytes(location, "yara-file"))
        except TextError as error:
            broken.append(Broken(name, str(error), error.line, "yara-file"))
        except BrokenRulesError as error:
            broken += error.broken
        else:
            return [Source(text, name, folder, "yara-file", folder)]
        return []
    files = _rule_files(path, broken)
    if not files and not broken:
        raise RuleError(f"{path}: no {' or '.join(SUFFIXES)} file in this folder", "yara-file")
    sources = []
    for file in files:
        try:
            sources.append(_of_path(file, "yara-file", path))
        except BrokenRulesError as error:
            broken += error.broken
    return sources


def _rule_files(folder: Path, closed: list[Broken]) -> list[Path]:
    found: list[Path] = []

    def tell(error: OSError) -> None:
        closed.append(
            Broken(str(error.filename), f"a folder that cannot be listed: {_reason(error)}", None, "yara-file")
        )

    for path, folders, files in os.walk(folder, onerror=tell):
        folders.sort()
        found += [Path(path, name) for name in sorted(files) if name.lower().endswith(SUFFIXES)]
        if len(found) > FILES_BOUND:
            raise RuleError(f"{folder}: more than {FILES_BOUND} rule files", "yara-file")
    return found


def _of_path(path: Path, option: str | None, root: Path) -> Source:
    try:
        if path.is_symlink() and not _lies_below(path, root):
            raise ValueError(f"it is a link to a file that is not below {root}: give that one, or its folder")
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise BrokenRulesError([Broken(str(path), _reason(error), getattr(error, "line", None), option)]) from error
    return Source(text, str(path), str(path.parent), option, str(root))


def _lies_below(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


class TextError(ValueError):
    """What is no text of rules: the message says why, `line` where, if that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def decode(data: bytes) -> str:
    """Make text of a rule file's bytes.

    Raises:
        TextError: it is none.
    """
    if data.startswith(b"YARA"):
        raise TextError("these rules are compiled: give them with --yara-compiled-file")
    zero = data.find(0)
    if zero >= 0:
        # yara-python would pass by what is behind it without a word.
        raise TextError("rules have no zero byte", data.count(b"\n", 0, zero) + 1)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError("rules have to be UTF-8", data.count(b"\n", 0, error.start) + 1) from error


def _of_string(options: RuleOptions) -> str:
    """Make the rule that vol's yarascan makes of a string: text, { hexadecimal } or /regular expression/."""
    pattern = options.string or ""
    try:
        pattern.encode()
    except UnicodeEncodeError as error:
        raise RuleError("the rule of --yara-string: it has to be UTF-8", "yara-string") from error
    if not pattern.startswith(("{", "/")):
        pattern = f'"{pattern}"'
    if options.insensitive:
        pattern += " nocase"
    if options.wide:
        pattern += " wide ascii"
    return f"rule r1 {{strings: $a = {pattern} condition: $a}}"
