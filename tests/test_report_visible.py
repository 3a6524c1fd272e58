"""What of an image or a path is shown in the report: what cannot be seen made visible, what is long fold."""

from __future__ import annotations

import pytest

from apcaudit.text import encodable, fold, name_of, short_names, visible


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
    ("name", "text"),
    [
        ("plain.dmp", "plain.dmp"),
        ("b\xfcro.dmp", "b\xfcro.dmp"),
        (b"b\xfcro.dmp".decode(errors="surrogateescape"), "b%FCro.dmp"),
        # A name of Windows, which may have halves of a pair.
        ("a\ud83db", "a%uD83Db"),
    ],
)
def test_a_name_that_is_no_text(name: str, text: str) -> None:
    """A name of the system that is no UTF-8 can be written, and looks like no other path."""
    assert encodable(name) == text
    assert text.encode()


@pytest.mark.parametrize(
    ("source", "name"),
    [("/a/b.dmp", "b.dmp"), ("C:\\a\\b.dmp", "b.dmp"), ("/a/b.zip::c/d.raw", "b.zip::c/d.raw"), ("b", "b")],
)
def test_an_images_name(source: str, name: str) -> None:
    """An image is named by the last part of its path, with the member of its archive."""
    assert name_of(source) == name


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        pytest.param(("/case/a.raw", "/case/b.raw"), ("a.raw", "b.raw"), id="file names differ"),
        pytest.param(
            ("/case/WKS01/memory.raw", "/case/WKS02/memory.raw", "/case/dc.raw"),
            ("WKS01/memory.raw", "WKS02/memory.raw", "dc.raw"),
            id="a folder a host",
        ),
        pytest.param(
            ("/case/1/WKS01/m.raw", "/case/2/WKS01/m.raw", "/case/2/WKS02/m.raw"),
            ("1/WKS01/m.raw", "2/WKS01/m.raw", "WKS02/m.raw"),
            id="a host twice",
        ),
        pytest.param(("C:\\case\\A\\m.raw", "C:\\case\\B\\m.raw"), ("A/m.raw", "B/m.raw"), id="Windows"),
        pytest.param(
            ("/case/A/all.zip::m.raw", "/case/B/all.zip::m.raw", "/case/B/all.zip::n.raw"),
            ("A/all.zip::m.raw", "B/all.zip::m.raw", "all.zip::n.raw"),
            id="members of archives",
        ),
        pytest.param(("/m.raw", "/case/m.raw"), ("/m.raw", "case/m.raw"), id="one path ends as the other"),
        pytest.param(("m.raw", "case/m.raw"), ("m.raw", "case/m.raw"), id="one is the end of the other"),
        # An image that was replaced by another of the same name has results, too.
        pytest.param(("/m.raw", "/m.raw", "/n.raw"), ("m.raw (0000000a)", "m.raw (0000000b)", "n.raw"), id="one path"),
        pytest.param(("a/m", "a\\m"), ("a/m", "a\\m"), id="separators of two systems"),
        pytest.param((), (), id="none"),
    ],
)
def test_short_names(sources: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Images are named by the shortest ends of their paths that are unique, so no two have the same name."""
    images = [f"{number:08x}" + "0" * 56 for number in range(10, 10 + len(sources))]
    assert short_names(dict(zip(images, sources, strict=True))) == dict(zip(images, names, strict=True))
