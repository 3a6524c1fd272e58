"""Text out of an image is data to every command: one test an output, each with names that attack it."""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.formats.text import LONGEST, printable

from apcaudit.bulk import export, store
from apcaudit.bulk.outcome import Failed, Scanned
from apcaudit.bulk.progress import Bars, Lines, text_of
from apcaudit.bulk.stack import stack
from apcaudit.bulk.stack_command import line_of as stack_line
from apcaudit.bulk.symbols_command import Symbols, line_of
from apcaudit.bulk.unpack import image_of
from apcaudit.cli import main
from apcaudit.text import visible
from tests.bulk_images import need_extra
from tests.report_results import image, suspect, write
from tests.test_cli_show import ROW, written

need_extra()

#: Clears the screen, sets the title, forges a line, turns text around, hides it; rich's markup; a formula.
EVIL = "=a\x1b[2J\x1b]0;x\x07\r\nforged: fine\t\u202egnp.exe\u200b\u2028\x9b1m[bold red]x[/]\ud800"
ACTING = ("\x1b", "\r", "\x07", "\x9b", "\u202e", "\u200b", "\u2028", "\ud800")


def harmless(text: str, lines: int | None = None) -> None:
    """Check that text holds nothing that acts, and that no name made a line of its own."""
    assert [each for each in ACTING if each in text] == []
    assert "\nforged" not in text
    assert lines is None or len(text.strip("\n").splitlines()) == lines


#: What the command prints as it is: line feeds, and blanks (Unicode Standard, chapter 4.5, category Zs).
BLANKS = ("\n", " ", "\xa0", "\u1680", *map(chr, range(0x2000, 0x200B)), "\u202f", "\u205f", "\u3000")


def test_both_rings_escape_alike() -> None:
    """What the plugin's function makes of a character, the command's makes of it too; blanks stay with the command."""
    left_out = dict.fromkeys(map(ord, BLANKS))
    # Planes 4 to 13 are unassigned, 15 and 16 private use: within one all is alike, but for its last characters.
    whole = {0, 1, 2, 3, 14}
    firsts = [first for first in range(0, sys.maxunicode + 1, LONGEST) if first >> 16 in whole]
    firsts += [(plane << 16) + at for plane in {*range(17)} - whole for at in (0, 0xFF00)]
    for first in firsts:
        text = "".join(map(chr, range(first, first + LONGEST))).translate(left_out)
        assert visible(text) == printable(text)


def test_cards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`apcaudit show` prints rows that somebody else may have written."""
    row = {name: EVIL if isinstance(value, str) else value for name, value in ROW.items()}
    row |= {"Severity": "high", "Findings": f"detach-bugcheck,{EVIL}"}
    assert main(["show", written(tmp_path, row)]) == 0
    harmless(capsys.readouterr().out)


@pytest.mark.parametrize("line", ["[1]", '{"Severity": "high"}', '{"Severity": 1, "Findings": ""}', "[" * 100_000])
def test_cards_of_what_are_no_rows(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON that holds no rows is one clear error."""
    path = tmp_path / "rows.jsonl"
    path.write_text(line)
    assert main(["show", str(path)]) == 1
    assert "holds no rows of the audit" in capsys.readouterr().err


def test_error_messages(capsys: pytest.CaptureFixture[str]) -> None:
    """An error that names a file is one line."""
    assert main(["show", f"/nowhere/{EVIL[:-1]}"]) == 1
    harmless(capsys.readouterr().err, lines=1)


def test_progress_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The line of an image holds its name and, where it failed, the reason, both harmless."""
    shown = Lines(2)
    shown.done(Failed(EVIL, "0" * 64, EVIL, "open", 1.0))
    shown.done(Scanned(EVIL, "0" * 64, "info", 0, 1.0))
    harmless(capsys.readouterr().err, lines=2)


def test_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars show names as they are: rich's markup in them is text, and nothing in them acts."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    bars = Bars(1)
    bars.stage("w", EVIL, "open")
    bars.done(Failed(EVIL, "0" * 64, EVIL, "open", 1.0))
    bars.close()
    out = stream.getvalue()
    assert "[bold red]x[/]" in out.replace("\n", "")
    assert [each for each in ACTING if each not in "\x1b\r" and each in out] == []
    assert "\x1b]0" not in out
    assert "\x1b[2Jx" not in text_of(Failed(EVIL, "0" * 64, EVIL, "open", 1.0))


def test_stack(tmp_path: Path) -> None:
    """A line of `apcaudit stack` is one line."""
    records = suspect(1, EVIL[:-1])
    results = write(tmp_path / "results", records)
    for each in stack(store.read(results)):
        harmless(stack_line(each), lines=1)


def test_symbols() -> None:
    """A line of `apcaudit symbols` is one line."""
    harmless(line_of(Symbols(EVIL, reason=EVIL)), lines=1)


@pytest.fixture
def results(tmp_path: Path) -> store.Results:
    """Results whose every text attacks."""
    evil = EVIL[:-1]
    records = suspect(1, evil)
    folder = write(tmp_path / "results", records)
    store.write(folder, type(records)(image(2, source=evil, status="failed", reason=evil, stage="open", notes=evil)))
    return store.read(folder)


def test_csv(results: store.Results) -> None:
    """No cell of the CSV is a formula or acts on the terminal that it is printed on."""
    for table in ("images", "threads", "findings"):
        text = "".join(export.comma_separated(results, table))
        assert [each for each in ACTING if each in text.replace("\r\n", "\n")] == []
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        assert [cell for cell in cells if cell[:1] in set("=+@")] == []


def test_json_lines(results: store.Results) -> None:
    """A row is one line of ASCII, whatever it holds."""
    for text in (*export.jsonl(results, "images"), *export.jsonl(results, "threads"), *export.timesketch(results)):
        assert text.isascii()
        harmless(text, lines=1)
        json.loads(text)


def test_html(results: store.Results, tmp_path: Path) -> None:
    """The report has no element and no character that came out of a name."""
    page = tmp_path / "report.html"
    assert main(["report", str(results.folder), "-o", str(page)]) == 0
    harmless(page.read_text(encoding="utf-8").replace("\nforged", ""))


@pytest.mark.parametrize("member", ["../../outside.raw", "/tmp/outside.raw", "\x1b[2J.raw", "x" * 240 + ".raw", ".."])
def test_file_names(member: str, tmp_path: Path) -> None:
    """A member of an archive is unpacked within the folder for it, under a name that any file system takes."""
    path = tmp_path / "evidence.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"content")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    file, _, size = image_of(path, member, scratch, lambda _: None)
    assert (file.parent, size) == (scratch, 7)
    assert file.name.isprintable()
    assert [each for each in tmp_path.rglob("*outside*") if each != file] == []
