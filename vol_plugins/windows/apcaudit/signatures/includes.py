"""What rule files may include: other rule files of the folder that was given, within bounds, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .options import Broken, BrokenRulesError
from .sources import Source, read_text

INCLUDES_BOUND = 10_000
CHARACTERS_BOUND = 256 << 20
"""How many files rules may include, and how many characters, all of them together: files may include one another."""

DEPTH_BOUND = 16
"""How deep: that of YARA itself (YR_MAX_INCLUDE_DEPTH of its libyara/include/yara/limits.h)."""

_SHOWN = 100
"""Characters of a name that messages show."""

Find = Callable[[str], Sequence[tuple[int, int]]]
"""Finds the include statements of a text: offsets of begin and end in its UTF-8 bytes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a rule file's text, with the file's name and the line that the part begins in."""

    text: str
    name: str
    line: int = 1


class _RefusedError(Exception):
    """A file that may not be included, or cannot be: the text says why."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What an include asked for and did not get, and why."""

    requested: str
    why: str

    def __str__(self) -> str:
        """Say it."""
        return f"cannot include {_quoted(self.requested)}: {self.why}"

    def told(self, source: Source, name: str, line: int | None) -> Broken:
        """Say it of a source, and in which file and line it was asked for: the source, or what that includes."""
        place = "" if line is None else f" in line {line}" if name == source.name else f" in line {line} of {name}"
        return Broken(source.name, f"cannot include {_quoted(self.requested)}{place}: {self.why}", None, source.option)


class Includes:
    """Reads what the sources of one compilation include; `refused` is the first that was refused, and why.

    Rule files come from strangers. One that includes `/etc/shadow` would show words of it in YARA's messages, and one
    that includes a FIFO would never end. `texts` is what was given, by its path.
    """

    def __init__(self, named: Mapping[str, Source]) -> None:
        self._named = named
        self._paths: dict[str, str] = {}
        self._files = 0
        self._bytes = 0
        self.refused: Refused | None = None
        self.texts: dict[str, str] = {}
        self._statements: dict[str, Sequence[tuple[int, int]]] = {}

    def read(self, requested: str, including: str | None, namespace: str) -> str | None:
        """Read an included file for an engine that asks; None where it may not be or cannot be.

        Args:
            requested: the name that `include` gives it.
            including: the name of the included file that asks for it, None for the source itself.
            namespace: the source's.
        """
        try:
            path = self._resolve(requested, self.path_of(including), self._named[namespace])
        except _RefusedError as error:
            self.refused = self.refused or Refused(requested, str(error))
            return None
        self._paths[requested] = path
        return self.texts[path]

    def path_of(self, included: str | None) -> str | None:
        """Return the path of an included file by the name that `include` gave it."""
        return None if included is None else self._paths.get(included)

    def pieces(self, namespace: str, find: Find) -> Iterator[Piece]:
        """Put a source together with what it includes, in order, for an engine that includes nothing itself.

        Raises:
            BrokenRulesError: something may not be included, or cannot be.
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
            if before.strip():  # a compiler takes a millisecond for nothing too
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
            raise BrokenRulesError([refused.told(source, statement.name, statement.line)]) from error
        if path in chain or len(chain) == DEPTH_BOUND:
            why = "includes circular reference" if path in chain else "includes depth exceeded"
            raise BrokenRulesError([wrong(why, statement.name, statement.line, source)])
        yield from self._pieces(Piece(self.texts[path], path), source, find, (*chain, path))

    def _resolve(self, requested: str, including: str | None, source: Source) -> str:
        """Read the file that a name means, and return its path: beside the file that asks for it, or the source.

        Raises:
            _RefusedError: it may not be included, or cannot be.
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
        self._bytes += len(text)
        if self._files > INCLUDES_BOUND or self._bytes > CHARACTERS_BOUND:
            raise _RefusedError("the rules include more than is taken")
        self.texts[path] = text
        return path


def _quoted(requested: str) -> str:
    return repr(requested if len(requested) <= _SHOWN else f"{requested[:_SHOWN]}...")


def _requested(statement: str) -> str:
    """Take the name out of an include statement that an engine has found: behind white space and comments, in quotes.

    No escape can be in it: YARA takes it as it stands, and yara-x knows none there.
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


def wrong(reason: str, name: str, line: int | None, source: Source) -> Broken:
    """Say what is wrong in a source, or in a file that it includes."""
    if name == source.name:
        return Broken(name, reason, line, source.option)
    return Broken(name, f"{reason} (included by {source.name})", line, source.option)
