"""What is asked of results: what is rare, the rows in other tools' formats, and which symbol files are missing."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from apcaudit.bulk import export, stack, stack_command, store
from apcaudit.bulk.records import (
    FAILED,
    SCANNED,
    TABLES,
    Address,
    ApcRow,
    DriverRow,
    FindingRow,
    ImageRow,
    Records,
    ThreadRow,
)
from apcaudit.bulk.symbol_script import Symbols
from apcaudit.bulk.symbols_command import line_of
from apcaudit.errors import ApcAuditError
from tests import bulk_images
from tests.bulk_images import need_extra, shared_cache
from tests.command import run

need_extra()

KERNEL, DRIVER = Address(0xFFFFF80000000000), Address(0xFFFFF80100000000)
THREAD, APC = Address(0xFFFFAB8400001080), Address(0xFFFFAB8400002000)


def row(table: str, **values: Any) -> Any:
    """Make a row of a table, what is not given None or the type's zero."""
    kinds = {each.name: str(each.type) for each in dataclasses.fields(TABLES[table])}
    zero = {"str": "", "int": 0, "float": 0.0, "Address": Address(0), "bool": False}
    return TABLES[table](**{name: zero.get(kind) for name, kind in kinds.items()} | values)


def plant(results: Path, image: str, *routines: tuple[str | None, int, str], **changes: Any) -> None:
    """Write an image's results: one thread with an APC for each (module, RVA, text) of a KernelRoutine."""
    about = {"image": image, "thread": THREAD, "pid": 4, "tid": 8, "process": "System"}
    apcs: list[ApcRow] = []
    for number, (module, rva, text) in enumerate(routines):
        place = {"kernel_routine": text, "kernel_module": module, "kernel_rva": rva if module else None}
        apcs.append(row("apcs", **about, **place, queue="kernel", apc=Address(APC + number), severity="info"))
    thread: ThreadRow = row(
        "threads",
        **about,
        severity="high",
        created=1767322800.5,
        yara=changes.pop("yara", None),
        findings="list-broken",
    )
    finding: FindingRow = row(
        "findings", **about, code="list-broken", severity="high", explanation=changes.pop("text", "broken")
    )
    driver: DriverRow = row("drivers", image=image, base=DRIVER, size=4096, name="Evil.sys", status="loaded")
    values = {"source": f"/evidence/{image}.raw", "status": SCANNED, "severity": "high", "system_time": 1767323045.25}
    found: ImageRow = row("images", image=image, **(values | changes))
    store.write(results, Records(found, (thread,), tuple(apcs), (finding,), (driver,)))


def kinds(found: list[stack.Stacked], kind: str) -> list[tuple[str, int]]:
    return [(each.name, len(each.images)) for each in found if each.kind == kind]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three scanned images and one that failed. All queue nt's routine, two a driver's, one code of no module."""
    folder = tmp_path / "results"
    common, shared = ("ntoskrnl.exe", 0x1000, "nt!Common"), ("av.sys", 0x20, "av!Apc")
    plant(folder, "aa", common, shared, (None, 0, "0xffff800012345678"))
    plant(folder, "bb", common, shared, common, yara="one, two")
    # The same code under another name: the module in capitals, and no symbol.
    plant(folder, "cc", ("NTOSKRNL.EXE", 0x1000, "nt+0x1000"), yara="two")
    store.write(folder, Records(row("images", image="dd", source="/evidence/dd.raw", status=FAILED, severity="info")))
    return folder


def test_the_rarest_come_first(results: Path) -> None:
    """A routine is its module and RVA, whatever its name; an image counts once; failed images do not count."""
    found = stack.stack(store.read(results))
    assert kinds(found, "kernel-routine") == [("<no module>", 1), ("av!Apc", 2), ("nt!Common", 3)]
    assert kinds(found, "yara") == [("one", 1), ("two", 2)]
    assert kinds(found, "driver") == [("evil.sys", 3)]
    assert kinds(found, "finding") == [("list-broken", 3)]
    counts = [len(each.images) for each in found]
    assert counts == sorted(counts)
    # Among the equally rare, drivers last: a machine has a hundred of its own.
    assert [each.kind for each in found if len(each.images) == 3] == ["kernel-routine", "finding", "driver"]
    assert {each.of for each in found} == {3}
    av = next(each for each in found if each.name == "av!Apc")
    assert (av.module, av.rva, av.images, av.sources) == (
        "av.sys",
        0x20,
        ("aa", "bb"),
        ("/evidence/aa.raw", "/evidence/bb.raw"),
    )


def test_a_baseline_leaves_what_is_new(results: Path, tmp_path: Path) -> None:
    """What any image of the baseline has is left out, by the same comparison; code of no module is known then too."""
    baseline = tmp_path / "baseline"
    plant(baseline, "ee", ("ntoskrnl.exe", 0x1000, "nt!OtherName"), ("av.sys", 0x24, "av!Apc+0x4"))
    found = stack.stack(store.read(results), baseline=store.read(baseline))
    assert kinds(found, "kernel-routine") == [("<no module>", 1), ("av!Apc", 2)]
    assert kinds(found, "driver") == kinds(found, "finding") == []
    assert stack.stack(store.read(results), baseline=store.read(results)) == []


def test_stack_as_a_user_calls_it(results: Path, tmp_path: Path) -> None:
    """The table names the images; --kind, --at-most and --jsonl choose; a folder without results is an error."""
    done = run("stack", results, "--kind", "kernel-routine", "--at-most", 2)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["images", "kind", "what", "where"],
        ["1", "of", "3", "kernel-routine", "<no", "module>", "aa.raw"],
        ["2", "of", "3", "kernel-routine", "av!Apc", "(av.sys+0x20)", "aa.raw,", "bb.raw"],
    ]
    lines = run("stack", results, "--kind", "yara", "--jsonl").stdout.splitlines()
    assert [(json.loads(line)["name"], json.loads(line)["images"]) for line in lines] == [
        ("one", ["bb"]),
        ("two", ["bb", "cc"]),
    ]
    done = run("stack", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds no results" in done.stderr


def test_jsonl_has_every_column(results: Path) -> None:
    """A JSON line a row: every column by its name, unknown values null, addresses hexadecimal, and what image it is."""
    lines = [json.loads(line) for line in export.jsonl(store.read(results), "apcs")]
    assert len(lines) == 3 + 3 + 1
    own = [each.name for each in dataclasses.fields(ApcRow)]
    assert all(list(line) == ["image", "image_name", "source", *own[1:]] for line in lines)
    assert {(line["image_name"], line["source"]) for line in lines} == {
        (f"{name}.raw", f"/evidence/{name}.raw") for name in ("aa", "bb", "cc")
    }
    assert {line["thread"] for line in lines} == {"0xffffab8400001080"}
    assert {line["normal_routine"] for line in lines} == {None}


@pytest.mark.parametrize("table", TABLES)
def test_no_number_is_too_large(results: Path, table: str) -> None:
    """No export has a number above 2^53, which jq and JavaScript round, and each row names its image and its source."""
    found = store.read(results)
    lines = [json.loads(line) for line in (*export.jsonl(found, table), *export.timesketch(found))]
    assert all(line["image_name"] and line["source"] for line in lines)
    for line in lines:
        assert all(abs(value) <= 1 << 53 for value in line.values() if isinstance(value, (int, float)))


def test_each_host_is_named(tmp_path: Path) -> None:
    """Images of one name in a folder a host are told apart by the host, in the table, the exports and the timeline."""
    names = ("WKS01/memory.raw", "WKS02/memory.raw")
    for image, name in zip(("aa", "bb"), names, strict=True):
        plant(tmp_path, image, ("nt.exe", 1, "nt!One"), source=f"/case/{name}")
    found = store.read(tmp_path)
    assert {each.image_names for each in stack.stack(found)} == {names}
    assert all(stack_command.line_of(each).endswith(", ".join(names)) for each in stack.stack(found))
    assert tuple(json.loads(line)["image_name"] for line in export.jsonl(found, "findings")) == names
    _, *lines = csv.reader(export.comma_separated(found, "drivers"))
    assert [(line[1], line[2]) for line in lines] == [(name, f"/case/{name}") for name in names]
    events = [json.loads(line) for line in export.timesketch(found)]
    assert all(f" on {event['image_name']}" in event["message"] for event in events)
    assert {event["image_name"] for event in events} == set(names)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "\\x09=1"),
        ("\r=1", "\\x0d=1"),
        ("\n=1", "'\n'=1"),
        ("\uff1d1+1", "'\uff1d1+1"),
        # Where the locale's separator is another one, the spreadsheet takes what follows it for a cell.
        ("a;=1+1", "a;'=1+1"),
        ("a,@SUM(A1)", "a,'@SUM(A1)"),
        ('a"=1+1', "a\"'=1+1"),
        ("a\n+1", "a\n'+1"),
        ("1+1=2, a-b; c", "1+1=2, a-b; c"),
    ],
)
def test_csv_is_no_formula(text: str, cell: str, tmp_path: Path) -> None:
    """An apostrophe stands before what a spreadsheet would run, an escape for what a terminal would; numbers stay."""
    plant(tmp_path, "aa", text=text)
    written = io.StringIO("".join(export.comma_separated(store.read(tmp_path), "findings")), newline="")
    header, line = csv.reader(written)
    cells = dict(zip(header, line, strict=True))
    assert cells["explanation"] == cell
    assert (cells["thread"], cells["tid"], cells["code"]) == (hex(THREAD), "8", "list-broken")
    assert cells["apc"] == ""


def test_timesketch_has_what_it_needs(results: Path) -> None:
    """Each line has message, datetime and timestamp_desc; findings stand at the machine's time, threads at theirs."""
    lines = [json.loads(line) for line in export.timesketch(store.read(results))]
    assert all({"message", "datetime", "timestamp_desc"} <= line.keys() for line in lines)
    times = {(line["timestamp_desc"], datetime.fromisoformat(line["datetime"]).timestamp()) for line in lines}
    assert times == {("Memory Image Time", 1767323045.25), ("Thread Created", 1767322800.5)}
    assert len(lines) == 6
    finding = next(line for line in lines if line.get("code"))
    assert finding["message"] == "[high] list-broken in System on aa.raw: broken"


def test_a_finding_has_its_own_severity(tmp_path: Path) -> None:
    """In the timeline severity is the finding's; the thread's highest is beside it, and alone where a thread began."""
    plant(tmp_path, "aa")
    (both,) = store.read(tmp_path).tables["findings"].to_pylist()
    severities = {"list-broken": "high", "order-violation": "medium", "suspended-but-not": "low"}
    rows = [FindingRow(**{**both, "code": code, "severity": severity}) for code, severity in severities.items()]
    threads = [ThreadRow(**row) for row in store.read(tmp_path).tables["threads"].to_pylist()]
    store.write(tmp_path, Records(store.images(tmp_path)[0], tuple(threads), (), tuple(rows)))
    events = [json.loads(line) for line in export.timesketch(store.read(tmp_path))]
    assert {event["code"]: event["severity"] for event in events if "code" in event} == severities
    assert {event["thread_severity"] for event in events} == {"high"}
    assert [event["timestamp_desc"] for event in events if "severity" not in event] == ["Thread Created"]


def test_timesketch_without_a_clock(tmp_path: Path) -> None:
    """An image that does not tell its time is put when it was scanned, and the line says so."""
    plant(tmp_path, "aa", system_time=None, scanned_at=1767330000.0)
    finding = next(json.loads(line) for line in export.timesketch(store.read(tmp_path)))
    assert finding["timestamp_desc"] == "Image Scanned"
    assert datetime.fromisoformat(finding["datetime"]).timestamp() == 1767330000.0


def test_export_as_a_user_calls_it(results: Path, tmp_path: Path) -> None:
    """Findings as JSON lines by default; -o writes a file; a timeline takes no table."""
    done = run("export", results)
    assert [json.loads(line)["code"] for line in done.stdout.splitlines()] == ["list-broken"] * 3
    done = run("export", results, "--format", "csv", "--table", "images", "-o", tmp_path / "x.csv")
    assert (done.returncode, done.stdout) == (0, "")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        assert [line["status"] for line in csv.DictReader(file)] == [SCANNED] * 3 + [FAILED]
    done = run("export", results, "--format", "timesketch", "--table", "apcs")
    assert done.returncode == 1


def test_symbols_of_a_folder(tmp_path: Path) -> None:
    """Each image's PDB, GUID and age are told, and for a symbol file that is missing the command that makes it."""
    known = bulk_images.write(tmp_path / "evidence.dmp", "healthy")
    bulk_images.write_broken(tmp_path / "broken")
    script = tmp_path / "fetch.sh"
    arguments = ("symbols", known, tmp_path / "broken" / "stranger.dmp", tmp_path / "broken" / "text.raw")
    with shared_cache():
        done = run(*arguments, "--script", script)
    assert done.returncode == 2, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{known}: ntkrnlmp.pdb A9C0DE0010019041000804640AA00005-1: symbol file there"
    # The bytes 00 01 02 ... as the GUID of an RSDS record: its first three fields are little-endian.
    guid = "03020100050407060809" + "0A0B0C0D0E0F"
    assert lines[1].endswith(f"ntkrnlmp.pdb {guid}-1: NO SYMBOL FILE")
    assert "no page tables" in lines[2]
    text = script.read_text(encoding="utf-8")
    assert f"-p ntkrnlmp.pdb -g {guid}1 -o symbols/windows/ntkrnlmp.pdb/{guid}-1.json.xz" in text
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0


def test_names_of_files_are_text() -> None:
    """A file's name cannot act on the terminal."""
    assert "\x1b" not in line_of(Symbols("a\x1b[2J", reason="why"))


def test_a_kind_that_is_none() -> None:
    """What cannot be stacked is an error in use."""
    with pytest.raises(ApcAuditError, match="nonesuch"):
        stack.tables_for(["nonesuch"])
