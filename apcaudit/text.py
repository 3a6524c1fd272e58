"""Escaping text from files and images before a terminal or a page shows it, and cutting it to fit."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

#: Unicode categories of invisible characters: controls, formats (bidirectional ones too), surrogates, private use,
#: unassigned, and the separators of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_SEAM = re.compile(r"(?<=[/\\])|(?<=::)")

ELLIPSIS = "…"


def visible(value: Any) -> Any:
    """Return a string with its invisible characters escaped; other values unchanged."""
    if type(value) is not str or value.isprintable():
        return value
    return "".join(_shown(character) for character in value)


def _shown(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in _UNSEEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cut(text: str, length: int) -> str:
    """Return the text, cut with an ellipsis if it is longer than `length` characters."""
    return text if len(text) <= length else text[: length - 1] + ELLIPSIS


def fold(text: str, width: int, lines: int) -> tuple[str, ...]:
    """Fold text into at most `lines` lines of `width` characters, at blanks and behind separators of paths."""
    made: list[str] = []
    rest = " ".join(text.split())
    while rest and len(made) < lines:
        if len(made) == lines - 1 or len(rest) <= width:
            made.append(cut(rest, width))
            break
        # A word that is longer than the rest of the line is cut: after a mark, else where the line ends.
        blank = rest.rfind(" ", width // 2, width + 1)
        mark = max(rest.rfind(each, width // 4, width) for each in "!\\/+,_-.")
        at = blank if blank > 0 else mark + 1 if mark > 0 else width
        made.append(rest[:at].rstrip())
        rest = rest[at:].lstrip()
    return tuple(made)


def seams(source: str) -> list[str]:
    """Split a source behind the separators of paths, where a page may break the line."""
    return _SEAM.split(source)


def name_of(source: str) -> str:
    """Return the short name of an image: the last part of its source's path, with the member of an archive."""
    path, mark, member = source.partition("::")
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2] + mark + member


def one_line(text: str) -> str:
    r"""Return the text in one line, with control and other invisible characters as `\xNN` or `\uNNNN`."""
    return str(visible(text)).replace("\n", "\\x0a")
