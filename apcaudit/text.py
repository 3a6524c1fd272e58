"""Escaping text from files and images before a terminal or a page shows it, and cutting it to fit."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

#: Unicode categories of invisible characters: controls, formats (bidirectional ones too), surrogates, private use,
#: unassigned, and the separators of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_SEAM = re.compile(r"(?<=[/\\])|(?<=::)")

_SURROGATE = re.compile("[\ud800-\udfff]")
_SEPARATOR = re.compile(r"[/\\]")

_DIGITS = 8
"""How many digits of a SHA-256 tell images apart that were found under one path."""

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


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: `1 image`, `1,500 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


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


def short_names(sources: Mapping[str, str]) -> dict[str, str]:
    """Name images by the shortest ends of their paths that are unique: `WKS01/memory.raw`.

    Args:
        sources: where each image was found, by its SHA-256.

    Returns:
        The name of each, by its SHA-256. Where several were found under one path, one after the other, the first digits
        of the SHA-256 stand behind the path.
    """
    at: dict[str, list[str]] = defaultdict(list)
    for image, source in sources.items():
        at[source].append(image)
    names: dict[str, str] = {}
    # Paths that share an end of n parts share all shorter ends: only these are left for n + 1.
    left = {source: _parts(source) for source in at}
    length = 1
    while left:
        alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for source, parts in left.items():
            alike[parts[-length:]].append(source)
        for parts, same in alike.items():
            if len(same) == 1 or all(len(left[each]) <= length for each in same):
                for source in same:
                    names[source] = "/".join(parts) if len(same) == 1 else source
                    del left[source]
        length += 1
    return {
        image: names[source] if len(images) == 1 else f"{names[source]} ({image[:_DIGITS]})"
        for source, images in at.items()
        for image in images
    }


def _parts(source: str) -> tuple[str, ...]:
    """Split a source into the parts of its path; the last has the member of an archive behind it."""
    path, mark, member = source.partition("::")
    *folders, file = _SEPARATOR.split(path.rstrip("/\\"))
    return (*folders, file + mark + member)


def encodable(name: str) -> str:
    """Return a name that the system gave as text that can be encoded: a byte of it that is no UTF-8 is `%FC`.

    Python has such a byte as one of U+DC80 to U+DCFF (PEP 383).
    """
    return name if name.isascii() else _SURROGATE.sub(_escaped, name)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"%u{code:04X}"


def one_line(text: str) -> str:
    r"""Return the text in one line, with control and other invisible characters as `\xNN` or `\uNNNN`."""
    return str(visible(text)).replace("\n", "\\x0a")
