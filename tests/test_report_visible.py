"""What of an image or a path is shown in the report: what cannot be seen made visible, what is long fold."""

from __future__ import annotations

import pytest

from apcaudit.text import fold, name_of, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("svchost.exe", "svchost.exe"),
        ("gnp\u202eexe.scr", "gnp\\u202eexe.scr"),
        ("a\x00b\x1b[2J", "a\\x00b\\x1b[2J"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("half\udc80", "half\\udc80"),
        ("Größe 日本", "Größe 日本"),
    ],
)
def test_what_is_unseen_is_shown(text: str, shown: str) -> None:
    """Controls, marks that turn the direction of writing, and halves of characters are written as escapes."""
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ("short",)),
        ("nt!KiSuspendNop+0x12", ("nt!", "KiSuspendN", "op+0x12")),
        ("one two three four five six seven", ("one two", "three four", "five six …")),
        ("", ()),
    ],
)
def test_folding(text: str, lines: tuple[str, ...]) -> None:
    """Text is fold at blanks and marks into lines of ten, at most three, and what is cut off shows as an ellipsis."""
    assert fold(text, 10, 3) == lines


@pytest.mark.parametrize(
    ("source", "name"),
    [("/a/b.dmp", "b.dmp"), ("C:\\a\\b.dmp", "b.dmp"), ("/a/b.zip::c/d.raw", "b.zip::c/d.raw"), ("b", "b")],
)
def test_an_images_name(source: str, name: str) -> None:
    """An image is named by the last part of its path, with the member of its archive."""
    assert name_of(source) == name
