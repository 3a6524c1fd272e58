"""The benchmark: that it runs, finds what was planted and reports on every target. No test asserts a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import driver_content, found, images, native, rule_set, search, table, vol
from benchmarks.__main__ import MEASURES
from benchmarks.processes import ROOT, BenchmarkError, Command, Processes
from benchmarks.verdict import Verdict

#: Lines of the table of targets that each measure gives.
LINES = {
    "list": 2,
    "desktop": 1,
    "native": 1,
    "thread": 3,
    "memory": 1,
    "scan": 1,
    "search": 1,
    "yara": 3,
    "startup": 2,
}

SMALL, MAIN, BIG = 10, 20, 20
LARGE_MIB = 8
PART = 1000
"""The drivers are as small as they get."""

LEFT_OUT = ("yara", "desktop")
"""What takes longer than all other measures: the engine's has a test of its own, the desktop's is that of `list`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the benchmark works, and leaves vol's copy and its cache."""
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> tuple[str, dict[str, Any]]:
    """Tables and JSON of one round on images as small as they can be."""
    sizes = [str(size) for size in (SMALL, MAIN, BIG)]
    measures = [name for name in MEASURES if name not in LEFT_OUT]
    arguments = ["--rounds", "1", "--sizes", *sizes, "--large", str(LARGE_MIB), "--json", str(folder / "out.json")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments, "--work", str(folder / "work"), "--only", *measures],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "out.json").read_text(encoding="utf-8"))


def test_every_target_has_its_lines(outcome: tuple[str, dict[str, Any]]) -> None:
    """Each measure gives its lines of the table of targets, in the tables and in the JSON."""
    text, document = outcome
    assert set(LINES) == set(MEASURES)
    assert len(document["targets"]) == sum(count for name, count in LINES.items() if name not in LEFT_OUT)
    for target in document["targets"]:
        assert target["status"] in ("met", "missed", "not measured")
        assert target["what"] in text
        assert target["measured"] in text


def test_processes_are_measured(outcome: tuple[str, dict[str, Any]]) -> None:
    """Each process has taken time and memory, and the peers ran beside ours."""
    _, document = outcome
    names = {each["process"] for each in document["processes"]}
    assert {"windows.apcaudit", "windows.threads", "windows.modules"} <= names
    for each in document["processes"]:
        for run in each["runs"]:
            assert run["seconds"] > 0
            assert run["peak"] > 1 << 20


def test_scan_finds_what_thrdscan_finds(outcome: tuple[str, dict[str, Any]]) -> None:
    """The scans are compared thread by thread: the crowd of the image, and none of it missed."""
    _, document = outcome
    (target,) = (each for each in document["targets"] if "windows.thrdscan" in each["target"])
    assert f"{MAIN} threads found by windows.thrdscan, 0 of them missed" in target["measured"]


def test_machine_is_named(outcome: tuple[str, dict[str, Any]]) -> None:
    """A table without its machine means nothing."""
    text, document = outcome
    for name in ("CPU", "cores", "memory", "Python", "volatility3"):
        assert f"{name}: {document['machine'][name]}" in text


def test_memprocfs_lists_the_same_threads(tmp_path: Path) -> None:
    """The native peer finds every thread of an image of its least size."""
    try:
        import memprocfs  # noqa: F401 - that it is there does not mean that it can be loaded
    except (ImportError, OSError) as error:
        pytest.skip(f"MemProcFS is not here ({error})")
    processes = Processes(ROOT)
    image = images.Images(tmp_path, "10-19041-x64", processes, images.builder()).many(native.LEAST)
    assert processes.run(native.command(image)).report["threads"] == native.LEAST


def test_listings_are_compared_by_thread(tmp_path: Path) -> None:
    """A thread counts as found by the scan when Views says so; rows of the idle process do not count."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("Vol 3\n\nPID\tTID\tViews\n\n4\t8\tlist+scan\n4\t12\tlist\n8\t20\tscan\n0\t0\tscan\n")
    theirs.write_text("Vol 3\n\nOffset\tPID\tTID\n\n0x1\t4\t8\n0x2\t4\t12\n")
    assert found.compare(ours, theirs) == {"peer": 2, "missed": 1, "others": 1}


@pytest.mark.parametrize("way", search.WAYS)
@pytest.mark.parametrize("offset", [0, search.CHUNK - 4, search.CHUNK - 3, search.CHUNK - 1, search.CHUNK])
def test_search_counts_each_occurrence_once(tmp_path: Path, way: str, offset: int) -> None:
    """A byte string across the border of two reads is found, and none is counted twice."""
    path = tmp_path / "file"
    data = bytearray(search.CHUNK + 100)
    data[offset : offset + 4] = b"Thre"
    data[-4:] = b"KAPC"
    path.write_bytes(data)
    assert search.search(way, path)["hits"] == 2


def test_failure_of_a_process_is_an_error(tmp_path: Path) -> None:
    """The time of a process that failed is not reported, what it said is."""
    failing = Command("failing", (sys.executable, "-c", "import sys; sys.exit('no image')"))
    with pytest.raises(BenchmarkError, match="failing: exit code 1: no image"):
        Processes(tmp_path).run(failing)


def test_turns_are_taken(tmp_path: Path) -> None:
    """Commands run A B A B, and one with a bound on its rounds stays out after them."""
    log = tmp_path / "log"

    def writing(letter: str, rounds: int | None = None) -> tuple[Command, str]:
        code = f"open({str(log)!r}, 'a').write({letter!r})"
        return Command(letter, (sys.executable, "-c", code), rounds), "no image"

    series = Processes(tmp_path).interleaved([writing("A"), writing("B", 1), writing("C")], 2)
    assert log.read_text(encoding="ascii") == "ABCAC"
    assert [len(each.runs) for each in series] == [2, 1, 2]


def test_stock_copy_lacks_our_package(tmp_path: Path) -> None:
    """The copy of vol has its own plugins and neither our package nor our symbol files, installed or not."""
    package = vol.copy_stock(tmp_path / "stock") / "volatility3"
    assert (package / "framework" / "plugins" / "windows" / "threads.py").is_file()
    assert not (package / "plugins" / "windows" / "apcaudit").exists()
    ours = {path.name for path in (ROOT / "symbols").rglob("*.json.xz")}
    assert ours
    assert not ours & {path.name for path in (package / "symbols").rglob("*")}


@pytest.mark.parametrize(("met", "status"), [(True, "met"), (False, "missed"), (None, "not measured")])
def test_status_in_words(met: bool | None, status: str) -> None:
    """What could not be compared is not called missed."""
    line = table.of_targets([Verdict("what", "target", "measured", met)]).splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["what", "target", "measured", status]


def test_the_engine_and_the_audit_hit_the_same(
    folder: Path, outcome: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    """The engine alone is timed on all drivers of the image, each of which a rule hits; the audit compiles once."""
    pytest.importorskip("yara")
    rules = tmp_path / "rules.yar"
    rule_set.write(rules, 20)
    # With what the benchmark has left there: to index all symbol files takes seconds.
    work = folder / "work"
    processes = Processes(work / "stock")
    drivers = images.Images(tmp_path, "10-19041-x64", processes, images.builder()).drivers(PART)
    command = vol.Vol(work / "cache").inside
    engine = processes.run(command("engine", "engine", drivers, "--rules", str(rules))).report
    audit = processes.run(command("audit", "yara", drivers, "--rules", str(rules))).report
    sizes = driver_content.sizes(PART)
    assert engine["bytes"] > sum(sizes)
    assert engine["hits"] == audit["hits"] == len(sizes) == len(driver_content.SIZES)
    assert audit["compilations"] == 1


def test_rules_of_realistic_size() -> None:
    """The rule file has thousands of rules, the same ones each time, with strings of every kind."""
    assert rule_set.RULES >= 5_000
    count = rule_set.RULES // 5
    first, second = (_written(count) for _ in range(2))
    assert first == second
    assert first.count("\nrule ") + 1 == count
    for kind in (r'= "', r"= \{ ", r"= /", " wide", " nocase", " of \\(\\$s\\*\\)"):
        assert len(re.findall(kind, first)) > 100, kind


def _written(count: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.yar"
        rule_set.write(path, count)
        return path.read_text(encoding="ascii")
