"""Text out of an image becomes harmless, and stays legible where it was harmless."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volatility3.plugins.windows.apcaudit.formats.text import LONGEST, from_ansi, from_utf16, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("BAVSvc.exe", "BAVSvc.exe", id="a name"),
        pytest.param(
            r"\SystemRoot\System32\drivers\fltMgr.sys", r"\SystemRoot\System32\drivers\fltMgr.sys", id="a path"
        ),
        pytest.param("Проводник.exe", "Проводник.exe", id="Cyrillic"),
        pytest.param("設定.exe", "設定.exe", id="Japanese"),
        # A spreadsheet would run it, but a name is a name; the writer of CSV sees to spreadsheets.
        pytest.param("-agent.exe", "-agent.exe", id="a name that begins like a formula"),
        pytest.param("=1+2", "=1+2", id="a formula"),
        pytest.param("\uff1d1+2", "\uff1d1+2", id="a formula in wide form"),
        pytest.param("=\x1b[2J", r"=\x1b[2J", id="a formula with an escape sequence"),
        pytest.param("\x1b[2J", r"\x1b[2J", id="an escape sequence"),
        pytest.param("a\r\nb\tc", r"a\x0d\x0ab\x09c", id="line ends and tabs"),
        pytest.param("\x9b31m", r"\x9b31m", id="an 8-bit control"),
        pytest.param("a\x7fb", r"a\x7fb", id="delete"),
        pytest.param("fdp\u202eexe.txt", r"fdp\u202eexe.txt", id="right-to-left override"),
        pytest.param("svc\u200bhost.exe", r"svc\u200bhost.exe", id="a zero-width space"),
        pytest.param("a\u2028b", r"a\u2028b", id="a line separator"),
        pytest.param("\ud800", r"\ud800", id="a lone surrogate"),
        pytest.param("\U000e0041", r"\U000e0041", id="an invisible tag"),
        pytest.param("", "", id="nothing"),
        pytest.param("x" * LONGEST, "x" * LONGEST, id="the longest"),
        pytest.param("x" * (LONGEST + 1), "x" * LONGEST + "...", id="longer, ASCII"),
        pytest.param("é" * (LONGEST + 1), "é" * LONGEST + "...", id="longer, not ASCII"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    """What a terminal acts on becomes an escape; letters of any script stay; the length has a bound."""
    assert printable(text) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"System\0\0\0\0\0\0\0\0\0", "System"),
        (b"svchost.exe\0old", "svchost.exe"),
        (b"fifteen-letters", "fifteen-letters"),
        (b"@agent.exe\0", "@agent.exe"),
        (b"\0garbage", ""),
        (b"caf\xe9\x1b\0", r"café\x1b"),
    ],
)
def test_an_array_of_characters_ends_at_its_nul(data: bytes, expected: str) -> None:
    """An 8-bit name is what stands before the first NUL, or the whole array."""
    assert from_ansi(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("Bfilter.sys".encode("utf-16-le"), "Bfilter.sys"),
        ("+agent.exe".encode("utf-16-le"), "+agent.exe"),
        ("\U0001f600".encode("utf-16-le"), "\U0001f600"),
        (b"a\0\x00\xd8b\0", r"a\ud800b"),
        (b"a\0\0\0b\0", r"a\x00b"),
        (b"", ""),
        (b"a\0b", "a\ufffd"),
    ],
)
def test_a_unicode_string(data: bytes, expected: str) -> None:
    """A UNICODE_STRING's buffer is counted, so that a NUL in it shows; half a character is told as such."""
    assert from_utf16(data) == expected


@given(st.text(alphabet=st.characters()))
def test_nothing_printable_acts_on_a_terminal(text: str) -> None:
    """No text leaves with a control, format, surrogate or separator character in it."""
    acting = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not [character for character in printable(text) if unicodedata.category(character) in acting]


@given(st.binary(max_size=600))
def test_any_bytes_are_text(data: bytes) -> None:
    """No bytes stop the decoding, and what comes out can be encoded and is short."""
    for decode in (from_ansi, from_utf16):
        text = decode(data)
        text.encode("utf-8")
        assert "\x1b" not in text
        assert len(text) <= LONGEST * len(r"\U0010ffff") + 3
