"""Reading YARA rules: from files and folders, a string, the rules that ship, and what these include."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volatility3.framework.layers import resources

from ..formats.files import check_url, open_file, path_of
from .options import Broken, BrokenRulesError, RuleError, RuleOptions

SHIPPED = Path(__file__).resolve().parent.parent / "rules"

SUFFIXES = (".yar", ".yara")
"""Suffixes of rule files in a folder."""

FILES_BOUND = 20_000
"""How many rule files a folder may hold, folders below it included."""

_PACKED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".lzma": lzma.open}
"""The function that unpacks a file, by its suffix, as in vol's ResourceAccessor."""

SIZE_BOUND = 512 << 20
"""How many bytes one rule file may have, unpacked; compiled collections have tens of millions."""


@dataclass(frozen=True, slots=True)
class Source:
    """One rule file or string: its text, and its name in messages.

    Files that it includes are looked up in `folder` and have to lie below `root`: both None if it may include nothing.
    `option` is the option that gave it, None for the rules that ship.
    """

    text: str
    name: str
    folder: str | None = None
    option: str | None = None
    root: str | None = None


class UnreadRulesError(BrokenRulesError):
    """All rule files that cannot be read; `sources` are those that could be."""

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
        sources += _read_location(options.file, unread)
    if options.string is not None:
        sources.append(Source(_make_string_rule(options), "the rule of --yara-string", option="yara-string"))
    if options.defaults:
        sources += [_read_path(path, None, SHIPPED) for path in sorted(SHIPPED.glob("*.yar"))]
    if unread:
        raise UnreadRulesError(unread, sources)
    return sources


def read_bytes(location: str, option: str) -> bytes:
    """Read a location; compressed files are unpacked, as vol does.

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
            with open_file(path) as file:
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
        OSError: it cannot be read or is not a regular file.
        ValueError: it is larger than SIZE_BOUND, is compiled or is not UTF-8 text.
    """
    with open_file(path) as file:
        data = file.read(SIZE_BOUND + 1) or b""
    _check_size(data)
    return decode(data)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _read_location(location: str, broken: list[Broken]) -> list[Source]:
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
            sources.append(_read_path(file, "yara-file", path))
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


def _read_path(path: Path, option: str | None, root: Path) -> Source:
    try:
        if path.is_symlink() and not _lies_below(path, root):
            raise ValueError(
                f"it is a link to a file that is not below {root}: give the target file or its folder instead"
            )
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise BrokenRulesError([Broken(str(path), _reason(error), getattr(error, "line", None), option)]) from error
    return Source(text, str(path), str(path.parent), option, str(root))


def _lies_below(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


class TextError(ValueError):
    """Data that are no text of rules: the message says why, `line` where, if that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def decode(data: bytes) -> str:
    """Decode a rule file.

    Raises:
        TextError: it is no text of rules.
    """
    if data.startswith(b"YARA"):
        raise TextError("these rules are compiled: give them with --yara-compiled-file")
    zero = data.find(0)
    if zero >= 0:
        # yara-python would silently ignore everything behind it.
        raise TextError("a rule file must not contain a zero byte", data.count(b"\n", 0, zero) + 1)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError("rules have to be UTF-8", data.count(b"\n", 0, error.start) + 1) from error


def _make_string_rule(options: RuleOptions) -> str:
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


INCLUDES_BOUND = 10_000
CHARACTERS_BOUND = 256 << 20
"""How many files, and how many characters, all rules together may include: files may include one another."""

DEPTH_BOUND = 16
"""How deep includes may nest: as in YARA itself (YR_MAX_INCLUDE_DEPTH of its libyara/include/yara/limits.h)."""

_SHOWN = 100
"""How many characters of a name messages show."""

Find = Callable[[str], Sequence[tuple[int, int]]]
"""Finds the include statements of a text: (start, end) offsets in its UTF-8 bytes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rule file's text, the file's name, and the line that the part begins in."""

    text: str
    name: str
    line: int = 1


class _RefusedError(Exception):
    """A file may not or cannot be included: the text says why."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An include statement that was refused, and why."""

    requested: str
    why: str

    def __str__(self) -> str:
        """Describe it for a message."""
        return f"cannot include {_quoted(self.requested)}: {self.why}"

    def describe(self, source: Source, name: str, line: int | None) -> Broken:
        """Make the error of a source: `name` and `line` are those of the statement, in the source or a file in it."""
        place = "" if line is None else f" in line {line}" if name == source.name else f" in line {line} of {name}"
        return Broken(source.name, f"cannot include {_quoted(self.requested)}{place}: {self.why}", None, source.option)


class Includes:
    """Reads the files that the sources of one compilation include.

    `texts` are those read, by path; `refused` is the first include that was refused. Rule files come from strangers: a
    file that includes `/etc/shadow` would show words of it in YARA's messages, and one that includes a FIFO would never
    end.
    """

    def __init__(self, named: Mapping[str, Source]) -> None:
        self._named = named
        self._paths: dict[str, str] = {}
        self._files = 0
        self._characters = 0
        self.refused: Refused | None = None
        self.texts: dict[str, str] = {}
        self._statements: dict[str, Sequence[tuple[int, int]]] = {}

    def read(self, requested: str, including: str | None, namespace: str) -> str | None:
        """Read an included file for an engine; None where it may not or cannot be included.

        Args:
            requested: the name in the include statement.
            including: the name of the file that contains the statement, None if that is the source itself.
            namespace: the source's.
        """
        try:
            path = self._resolve(requested, self.path_of(including), self._named[namespace])
        except _RefusedError as error:
            self.refused = self.refused or Refused(requested, str(error))
            return None
        # The engine names a file only as it was included, and reads it to its end before the next of that name.
        self._paths[requested] = path
        return self.texts[path]

    def path_of(self, included: str | None) -> str | None:
        """Return the path of an included file by its name in the include statement."""
        return None if included is None else self._paths.get(included)

    def pieces(self, namespace: str, find: Find) -> Iterator[Piece]:
        """Yield the text of a source and of its includes in order, for an engine whose own includes are disabled.

        Raises:
            BrokenRulesError: a file may not or cannot be included.
        """
        source = self._named[namespace]
        yield from self._pieces(Piece(source.text, source.name), source, find, ())

    def _pieces(self, whole: Piece, source: Source, find: Find, chain: tuple[str, ...]) -> Iterator[Piece]:
        if "include" not in whole.text:
            if whole.text.strip():
                yield whole
            return
        data = whole.text.encode()
        line, done = 1, 0
        if whole.text not in self._statements:
            self._statements[whole.text] = find(whole.text)
        for begin, end in self._statements[whole.text]:
            before = data[done:begin]
            if before.strip():  # a compiler takes a millisecond even for an empty piece
                yield Piece(before.decode(), whole.name, line)
            line += before.count(b"\n")
            statement = Piece(data[begin:end].decode(), whole.name, line)
            yield from self._included(statement, source, find, chain)
            line += statement.text.count("\n")
            done = end
        if data[done:].strip():
            yield Piece(data[done:].decode(), whole.name, line)

    def _included(self, statement: Piece, source: Source, find: Find, chain: tuple[str, ...]) -> Iterator[Piece]:
        requested = _requested(statement.text)
        try:
            path = self._resolve(requested, chain[-1] if chain else None, source)
        except _RefusedError as error:
            refused = Refused(requested, str(error))
            raise BrokenRulesError([refused.describe(source, statement.name, statement.line)]) from error
        if path in chain or len(chain) == DEPTH_BOUND:
            why = "includes circular reference" if path in chain else "includes depth exceeded"
            raise BrokenRulesError([make_broken(why, statement.name, statement.line, source)])
        yield from self._pieces(Piece(self.texts[path], path), source, find, (*chain, path))

    def _resolve(self, requested: str, including: str | None, source: Source) -> str:
        """Read an included file, looked up in the including file's folder, then in the source's; return its path.

        Raises:
            _RefusedError: it may not or cannot be included.
        """
        if source.root is None or source.folder is None:
            raise _RefusedError("these rules are in no folder")
        root = os.path.realpath(source.root)
        try:
            path = os.path.realpath(os.path.join(os.path.dirname(including or ""), requested))
            if including is None or not os.path.lexists(path):
                path = os.path.realpath(os.path.join(source.folder, requested))
            if not path.startswith(root.rstrip(os.sep) + os.sep):
                raise _RefusedError(f"it is not below {root}")
            text = self.texts[path] if path in self.texts else read_text(path)
        except FileNotFoundError as error:
            raise _RefusedError("there is no such file") from error
        except (OSError, ValueError) as error:
            raise _RefusedError(getattr(error, "strerror", None) or str(error)) from error
        self._files += 1
        self._characters += len(text)
        if self._files > INCLUDES_BOUND or self._characters > CHARACTERS_BOUND:
            raise _RefusedError("the rules include more files or characters than the limit")
        self.texts[path] = text
        return path


def _quoted(requested: str) -> str:
    return repr(requested if len(requested) <= _SHOWN else f"{requested[:_SHOWN]}...")


def _requested(statement: str) -> str:
    """Extract the quoted name from an include statement, which may have comments before the name.

    The name has no escapes: YARA takes it literally, and yara-x allows none there.
    """
    at = len("include")
    while not statement.startswith('"', at):
        if statement.startswith("//", at):
            at = statement.index("\n", at)
        elif statement.startswith("/*", at):
            at = statement.index("*/", at + 2) + 1
        at += 1
    quotes = 3 if statement.startswith('"""', at) and len(statement) - at >= 6 else 1
    return statement[at + quotes : len(statement) - quotes]


def make_broken(reason: str, name: str, line: int | None, source: Source) -> Broken:
    """Make the error of a source, or of a file that it includes."""
    if name == source.name:
        return Broken(name, reason, line, source.option)
    return Broken(name, f"{reason} (included by {source.name})", line, source.option)
