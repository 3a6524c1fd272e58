"""The results on disk: their schemas, and that they are whole or not there."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from apcaudit.bulk import store
from apcaudit.bulk.records import FAILED, SCANNED, TABLES, Address, DriverRow, ImageRow, Records
from apcaudit.errors import ApcAuditError
from tests.bulk_images import ROOT, need_extra

need_extra()

NAMES = {"string": "string", "int64": "int64", "double": "double", "bool": "bool", "uint64": "uint64"}


def image_row(image: str, **changes: object) -> ImageRow:
    values: dict[str, object] = {each.name: None for each in dataclasses.fields(ImageRow)}
    values |= {"image": image, "source": f"/evidence/{image}", "status": SCANNED, "seconds": 1.5, "scanned_at": 2.5}
    values |= dict.fromkeys(("settings", "versions", "options", "rules", "not_done"), "")
    values |= {"worker": "here:1", "severity": "info", "findings": 0, "notes": ""}
    return ImageRow(**(values | changes))  # type: ignore[arg-type]


def test_schemas_are_documented() -> None:
    """docs/results.md has every column of every table with its type, whether it may be null, and what it is."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for table in TABLES:
        section = text.partition(f"\n### {table}\n")[2].partition("\n### ")[0]
        expected = []
        for each in store.schema(table):
            name = f"{each.name} ?" if each.nullable else each.name
            expected.append(f"| {name} | {NAMES[str(each.type)]} | {each.metadata[b'doc'].decode()} |")
        assert [line for line in section.splitlines() if line.startswith("| ")][1:] == expected


def test_an_image_is_written_and_found(tmp_path: Path) -> None:
    """What was written is found again by the image's name, every table has a file, and addresses stay unsigned."""
    top = Address(0xFFFFF80000000000)
    row = image_row("aa", kernel_age=3, notes="one\ntwo")
    store.write(tmp_path, Records(row, drivers=(DriverRow("aa", top, 4096, "x.sys", None, "loaded"),)))
    assert store.find(tmp_path, "aa") == row
    assert store.find(tmp_path, "bb") is None
    assert sorted(path.name for path in (tmp_path / "aa").iterdir()) == sorted(f"{table}.parquet" for table in TABLES)
    database = store.connect(tmp_path)
    assert database.execute("SELECT base FROM drivers").fetchall() == [(top,)]
    assert database.execute("SELECT count(*) FROM threads").fetchall() == [(0,)]


def test_an_image_is_there_once(tmp_path: Path) -> None:
    """A later scan replaces an image's rows, of all tables."""
    store.write(tmp_path, Records(image_row("aa"), drivers=(DriverRow("aa", Address(1), 1, "x", None, "loaded"),)))
    store.write(tmp_path, Records(image_row("aa", status=FAILED, reason="gone")))
    assert [row.reason for row in store.images(tmp_path)] == ["gone"]
    assert store.connect(tmp_path).execute("SELECT count(*) FROM drivers").fetchall() == [(0,)]
    assert [path.name for path in tmp_path.iterdir()] == ["aa"]


def test_what_is_unfinished_is_not_seen(tmp_path: Path) -> None:
    """What a killed writer leaves is no result, to no reader."""
    store.write(tmp_path, Records(image_row("aa")))
    (tmp_path / "aa").rename(tmp_path / ".unfinished-1")
    assert store.images(tmp_path) == []
    with pytest.raises(ApcAuditError, match="holds no results"):
        store.connect(tmp_path)
    store.write(tmp_path, Records(image_row("bb")))
    assert store.connect(tmp_path).execute("SELECT image FROM images").fetchall() == [("bb",)]


def test_damaged_results(tmp_path: Path) -> None:
    """Results that a disk has spoilt are told by name; a scan of that image finds none and puts whole ones there."""
    store.write(tmp_path, Records(image_row("aa")))
    (tmp_path / "aa" / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(ApcAuditError, match=r"aa/images.parquet: it is damaged"):
        store.images(tmp_path)
    assert store.find(tmp_path, "aa") is None
    store.write(tmp_path, Records(image_row("aa")))
    assert [row.image for row in store.images(tmp_path)] == ["aa"]


def test_several_writers_of_one_image(tmp_path: Path) -> None:
    """Writers of the same image at the same time leave it whole and once."""
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(5):
                store.write(tmp_path, Records(image_row("aa", worker=f"here:{number}")))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [row.image for row in store.images(tmp_path)] == ["aa"]
    assert [path.name for path in tmp_path.iterdir()] == ["aa"]
