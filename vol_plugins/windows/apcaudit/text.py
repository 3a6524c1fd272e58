"""Text out of an image is data: the one place where it becomes something that may be printed."""

from __future__ import annotations

import unicodedata

LONGEST = 256
"""How many characters of a name are kept; the longest path of a driver fits."""

# Categories that can move a cursor, hide text or turn it around: control, format, surrogate, private use,
# unassigned, line and paragraph separators, and spaces that are not the space (Unicode Standard, chapter 4.5).
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})


def printable(text: str) -> str:
    r"""Make text out of an image harmless: what a terminal could act on is `\xNN` or `\uNNNN`."""
    if text.isascii() and text.isprintable():
        return text if len(text) <= LONGEST else text[:LONGEST] + "..."
    shown = "".join(_escape(character) for character in text[:LONGEST])
    return shown if len(text) <= LONGEST else shown + "..."


def from_ansi(data: bytes) -> str:
    """Decode a fixed-size array of 8-bit characters that ends at its first NUL."""
    return printable(data.partition(b"\0")[0].decode("latin-1"))


def from_utf16(data: bytes) -> str:
    """Decode the buffer of a UNICODE_STRING; lone surrogates are kept as escapes."""
    return printable(data.decode("utf-16-le", "surrogatepass" if len(data) % 2 == 0 else "replace"))


def _escape(character: str) -> str:
    if character == " " or unicodedata.category(character) not in _UNPRINTABLE:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
