"""Text from images made visible: what a browser would not show, or would let reorder its neighbours, as an escape."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

#: Categories of Unicode that a reader does not see: controls, formats (bidirectional ones too), surrogates, private
#: use, and the separators of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_SEAM = re.compile(r"(?<=[/\\])|(?<=::)")

ELLIPSIS = "…"


def visible(value: Any) -> Any:
    """Return a string with everything unseen in it as an escape; other values as they are."""
    if type(value) is not str or value.isprintable():
        return value
    return "".join(_shown(character) for character in value)


def _shown(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in _UNSEEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cut(text: str, length: int) -> str:
    """Return the text, its end replaced by an ellipsis where it is longer than the length."""
    return text if len(text) <= length else text[: length - 1] + ELLIPSIS


def folded(text: str, width: int, lines: int) -> tuple[str, ...]:
    """Fold text into at most so many lines of a width, at blanks and after the marks of paths and symbols."""
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
    """Cut a source where a reader would break the line: behind the marks of paths."""
    return _SEAM.split(source)


def name_of(source: str) -> str:
    """Return the last part of a source's path, with the member of an archive: what a reader knows the image by."""
    path, mark, member = source.partition("::")
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2] + mark + member
