"""What results say of how they were made: programs, options, rules with hashes, symbol file, what was not done."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import apcaudit
from apcaudit.bulk import fingerprint, provenance, store, worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.outcome import Failed, Scanned, Settings
from tests import bulk_images, command
from tests.bulk_images import need_extra, shared_cache
from tests.conftest import ROOT

need_extra()

SHIPPED = ROOT / "vol_plugins" / "windows" / "apcaudit" / "rules"
RULE = "rule {name} {{ condition: false }}\n"


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[None]:
    """The cache that tests share."""
    with shared_cache():
        yield


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rule_lines(settings: Settings) -> list[str]:
    """Return the lines about the user's rule files."""
    shipped = len(list(SHIPPED.glob("*.yar")))
    return str(provenance.describe(settings)["rules"]).splitlines()[shipped:]


def test_a_scan_says_how(tmp_path: Path) -> None:
    """Rows of an image that was scanned, and of one that failed, say with what; the first names its symbol file."""
    (tmp_path / "own.yar").write_text(RULE.format(name="own"))
    bulk_images.write(tmp_path / "seed.dmp", "seed")
    (tmp_path / "noise.raw").write_bytes(b"no memory " * 1000)
    settings = Settings(tmp_path / "results", offline=True, rules=tmp_path / "own.yar", timeout=600)
    settings = dataclasses.replace(settings, basis=fingerprint.basis(settings))
    outcomes = [worker.scan(Evidence(tmp_path / name), settings) for name in ("seed.dmp", "noise.raw")]
    assert [type(each) for each in outcomes] == [Scanned, Failed]
    rows = {Path(row.source).name: row for row in store.images(settings.results)}
    for row in rows.values():
        assert row.versions.startswith(f"apcaudit {apcaudit.__version__}+")
        assert f", volatility3 {metadata.version('volatility3')}, " in row.versions
        assert row.options == f"--offline --yara-file {tmp_path / 'own.yar'} --memory 4096M --timeout 600"
        assert row.rules.splitlines() == [
            *(f"{sha256(path)}  {path.name} (ships with apcaudit)" for path in sorted(SHIPPED.glob("*.yar"))),
            f"{sha256(tmp_path / 'own.yar')}  own.yar",
        ]
        assert row.not_done.splitlines() == list(fingerprint.lacking(settings))
        assert row.not_done.count("(--") == 2
    symbol_file = rows["seed.dmp"].symbol_file
    assert symbol_file is not None
    # Where apcaudit is installed, vol has the same symbol file twice, and takes either.
    (own,) = (ROOT / "symbols" / "windows" / "ntkrnlpa.pdb").glob("*.json.xz")
    assert Path(symbol_file).parts[-3:] == own.parts[-3:]
    assert rows["noise.raw"].symbol_file is None


def test_included_rules_are_listed(tmp_path: Path) -> None:
    """Of a folder of rules each file is listed by its path in it, and so is what files include."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "common.inc").write_text(RULE.format(name="common"))
    (tmp_path / "parts" / "one.yar").write_text('include "common.inc"\n' + RULE.format(name="one"))
    (tmp_path / "two.yara").write_text(RULE.format(name="two"))
    assert rule_lines(Settings(Path("results"), rules=tmp_path)) == [
        f"{sha256(tmp_path / name)}  {name}" for name in ("parts/common.inc", "parts/one.yar", "two.yara")
    ]


def test_many_rules_are_one_line(tmp_path: Path) -> None:
    """Of more than a hundred files the row has their number, and the SHA-256 of the list that `sha256sum` prints."""
    for number in range(101):
        (tmp_path / f"{number:03}.yar").write_text(RULE.format(name=f"rule{number}"))
    listed = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(tmp_path.iterdir()))
    (line,) = rule_lines(Settings(Path("results"), rules=tmp_path))
    assert (
        line == f"{hashlib.sha256(listed.encode()).hexdigest()}  the list of the 101 files in {tmp_path}, each as above"
    )


def test_rules_that_are_gone(tmp_path: Path) -> None:
    """Rules that cannot be read any more fail no image: the row says so."""
    (line,) = rule_lines(Settings(Path("results"), rules=tmp_path / "gone.yar"))
    assert "gone.yar" in line


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///symbols/ntkrnlmp.pdb/A9%20C0-1.json.xz", "/symbols/ntkrnlmp.pdb/A9 C0-1.json.xz"),
        ("https://host/ntkrnlmp.pdb/A9C0-1.json.xz", "https://host/ntkrnlmp.pdb/A9C0-1.json.xz"),
        ("", ""),
    ],
)
def test_a_symbol_file_is_a_path(url: str, path: str) -> None:
    """A symbol file of this machine is named by its path, another by its URL."""
    assert provenance.symbol_file(url) == path


def test_what_is_missing_is_said() -> None:
    """A program that is not installed is named among the versions."""
    has = (("apcaudit", "0.1.0+abc"), ("volatility3", "2.28.2"), ("yara", "none"), ("capstone", "none"))
    found = provenance.versions(Settings(Path("results"), basis=has))
    assert found[:4] == ["apcaudit 0.1.0+abc", "volatility3 2.28.2", "no YARA engine", "no capstone"]


def test_version() -> None:
    """`apcaudit --version` prints a line a program, apcaudit first."""
    done = command.run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"apcaudit {apcaudit.__version__}+")
    assert lines[1] == f"volatility3 {metadata.version('volatility3')}"
    assert lines[-1].startswith(f"Python {platform.python_version()} on ")
