"""`apcaudit scan` on one machine: what is found is what was planted, and nothing ends the scan of the others."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apcaudit.bulk import export, store, worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.outcome import Failed, Scanned, Settings
from apcaudit.bulk.readers import cache_folder
from apcaudit.synthetic import situations
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Process, Scene, Thread
from apcaudit.synthetic.scenes import seed
from tests import bulk_images
from tests.bulk_images import gone, need_extra, put_index, wait_for_reader
from tests.command import run
from tests.volatility import alone

need_extra()


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[Path]:
    """The cache that tests share."""
    with bulk_images.shared_cache() as folder:
        yield folder


def test_the_rows_are_what_was_planted(tmp_path: Path) -> None:
    """The seed's thread, KAPC, routine, module and finding are in the tables, keyed by the image's SHA-256."""
    settings = Settings(tmp_path / "results", offline=True)
    outcome = worker.scan(Evidence(bulk_images.write(tmp_path / "seed.dmp", "seed")), settings)
    assert isinstance(outcome, Scanned)
    codes = ["detach-bugcheck", "flt-send-loop", "flt-send-under-fast-mutex"]
    assert (outcome.severity, outcome.findings) == ("critical", len(codes))
    database = store.connect(settings.results)
    query = "SELECT image, thread, apc, kernel_routine, kernel_module, findings FROM apcs"
    assert database.execute(query).fetchall() == [
        (outcome.image, seed.THREAD, seed.KAPC, "nt!IopCompleteRequest", "ntoskrnl.exe", ",".join(codes))
    ]
    query = "SELECT thread, tid, start_address, start_module, start_rva FROM threads"
    (thread, _, start, module, rva), *_ = database.execute(query).fetchall()
    base = database.execute("SELECT base FROM drivers WHERE name = 'Bfilter.sys'").fetchall()[0][0]
    assert (thread, start, module, rva) == (seed.THREAD, seed.START_ADDRESS, "Bfilter.sys", seed.START_ADDRESS - base)
    row = store.find(settings.results, outcome.image)
    assert row is not None
    assert (row.kernel_pdb, row.bits, row.bugcheck) == ("ntkrnlpa.pdb", 32, 6)


def test_every_situation_is_in_the_tables(tmp_path: Path) -> None:
    """Each thread to which something was done has its codes in the table of findings, and no other thread has any."""
    kernel = load_kernel("10-19041-x64")
    settings = Settings(tmp_path / "results", offline=True)
    worker.scan(Evidence(bulk_images.write(tmp_path / "all.dmp", "situations")), settings)
    found: dict[int, set[str]] = {}
    for tid, code in store.connect(settings.results).execute("SELECT tid, code FROM findings").fetchall():
        found.setdefault(tid, set()).add(code)
    planted = {tid: set(each.expected) for tid, each in situations.tids(kernel).items() if not each.scan}
    assert {tid: codes for tid, codes in found.items() if tid in planted} == {
        tid: codes for tid, codes in planted.items() if codes
    }


@pytest.mark.parametrize("name", ["-agent.exe", "=agent.exe", "+agent.exe", "@agent.exe"])
def test_a_name_is_what_it_is_in_memory(name: str, tmp_path: Path) -> None:
    """A name that begins like a formula is itself in Parquet and JSON; only CSV has an apostrophe before it."""
    process = Process(
        name, 800, (Thread(804, start=0x401000, system=False, kernel_apcs=(Apc("nt!IopCompleteRequest"),)),)
    )
    scene = Scene("named", "a name", "10-19041-x64", (Process("System", 4, (Thread(8),), parent=0), process))
    image = tmp_path / "named.dmp"
    build(scene, load_kernel(scene.kernel)).write_dump(image)
    settings = Settings(tmp_path / "results", offline=True)
    assert isinstance(worker.scan(Evidence(image), settings), Scanned)
    names = store.connect(settings.results).execute("SELECT process FROM threads WHERE pid = 800").fetchall()
    assert names == [(name,)]
    lines = [json.loads(line) for line in export.jsonl(store.read(settings.results), "threads")]
    assert [line["process"] for line in lines if line["pid"] == 800] == [name]
    rows = csv.DictReader(
        io.StringIO("".join(export.comma_separated(store.read(settings.results), "threads")), newline="")
    )
    assert [row["process"] for row in rows if row["pid"] == "800"] == [f"'{name}"]


def test_genuine_images(tmp_path: Path, shared: Path) -> None:
    """A genuine minidump and a genuine packed image are scanned; the stop code is that of the dump's header."""
    (symbols,) = shared.glob("symbols/windows/*/5278AFF8*.json.xz")
    settings = Settings(tmp_path / "results", (alone(symbols, tmp_path),), offline=True)
    put_index(cache_folder(settings.symbols))
    dump = shared / "samples" / "triage_x64.dmp"
    outcomes = [worker.scan(Evidence(path), settings) for path in (dump, shared / "samples" / "threads-19041.raw.xz")]
    assert all(isinstance(outcome, Scanned) for outcome in outcomes)
    row = store.find(settings.results, outcomes[0].image)
    assert row is not None
    # BugCheckCode of DUMP_HEADER64 is at 0x38 (WDK, wdbgexts.h).
    assert row.bugcheck == int.from_bytes(dump.read_bytes()[0x38:0x3C], "little") & 0xFFFF
    assert (row.partial, row.bits, row.kernel_pdb) == (True, 64, "ntkrnlmp.pdb")


def test_the_same_image_is_scanned_once(tmp_path: Path) -> None:
    """An image is its bytes: packed or not, moved or copied, it is scanned once; other bytes are another image."""
    first = bulk_images.write(tmp_path / "a.dmp", "healthy")
    settings = Settings(tmp_path / "results", offline=True)
    packed = tmp_path / "b.dmp.gz"
    packed.write_bytes(__import__("gzip").compress(first.read_bytes()))
    other = tmp_path / "c.dmp"
    other.write_bytes(bulk_images.distinct(first.read_bytes(), 1))
    reused = [worker.scan(Evidence(path), settings).reused for path in (first, first, packed, other)]
    assert reused == [False, True, True, False]
    first.write_bytes(bulk_images.distinct(first.read_bytes(), 2))
    assert not worker.scan(Evidence(first), settings).reused
    assert len(store.images(settings.results)) == 3


def test_more_is_asked(tmp_path: Path) -> None:
    """Results without the search of memory do for a scan without it, not for one with it."""
    image = Evidence(bulk_images.write(tmp_path / "a.dmp", "healthy"))
    results = tmp_path / "results"
    asked = (False, False, True, True)
    reused = [worker.scan(image, Settings(results, offline=True, scan=scan)).reused for scan in asked]
    assert reused == [False, True, False, True]


def test_own_rules(tmp_path: Path) -> None:
    """Rules of the user's own hit drivers; other rules are another scan; rules that do not compile are an error."""
    image = bulk_images.write(tmp_path / "seed.dmp", "seed")
    results, rules = tmp_path / "results", tmp_path / "own.yar"
    arguments = ("scan", image, "-o", results, "--offline", "--workers", 1, "--yara-file", rules)
    rules.write_text("rule Own { condition: uint16(0) == 0x5A4D }")
    assert run(*arguments).returncode == 0
    (yara,) = store.connect(results).execute("SELECT yara FROM threads").fetchall()[0]
    assert "Own" in yara.split(",")
    assert "scanned earlier" in run(*arguments).stderr
    # What only the audit knows of a driver, and files that it takes of a folder, are no errors before it begins.
    rules.write_text('include "more/part.yara"\nrule Own { condition: driver == "Bfilter" and start_rva > 0 and part }')
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "part.yara").write_text('rule part { condition: imports contains "FltSendMessage" }')
    other = run(*arguments)
    assert other.returncode == 0, other.stderr
    assert "scanned earlier" not in other.stderr
    (yara,) = store.connect(results).execute("SELECT yara FROM threads").fetchall()[0]
    assert {"Own", "part"} <= set(yara.split(","))
    assert run(*arguments[:-1], tmp_path / "more").returncode == 0
    rules.write_text("rule Own {")
    done = run(*arguments)
    assert done.returncode == 1
    assert "YARA rules" in done.stderr
    rules.write_text('include "/etc/hostname"\nrule a { condition: true }')
    done = run(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot include '/etc/hostname' in line 1: it is not below" in done.stderr


def test_failures_are_kept_or_tried_again(tmp_path: Path) -> None:
    """What failed has failed until it is to be tried again."""
    path = tmp_path / "a.raw"
    path.write_bytes(b"nothing" * 1000)
    settings = Settings(tmp_path / "results", offline=True)
    retried = Settings(tmp_path / "results", offline=True, retry=True)
    outcomes = [worker.scan(Evidence(path), each) for each in (settings, settings, retried)]
    assert [outcome.reused for outcome in outcomes] == [False, True, False]
    assert all(isinstance(outcome, Failed) for outcome in outcomes)


def test_unreadable_evidence_is_a_row_until_it_is_read(tmp_path: Path) -> None:
    """A file without bytes to hash is a row of its own, which goes when the file can be read."""
    path = tmp_path / "a.dmp"
    settings = Settings(tmp_path / "results", offline=True)
    assert isinstance(worker.scan(Evidence(path), settings), Failed)
    assert [row.image[:5] for row in store.images(settings.results)] == ["path-"]
    bulk_images.write(path, "healthy")
    assert isinstance(worker.scan(Evidence(path), settings), Scanned)
    assert [row.status for row in store.images(settings.results)] == ["scanned"]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"timeout": 0.01}, "longer than --timeout"), ({"memory": 1 << 20}, "more memory than the limit of 1 MiB")],
)
def test_limits(limits: dict[str, float], reason: str, tmp_path: Path) -> None:
    """An image that takes more than its share of time or memory fails, and the next one is scanned."""
    path = bulk_images.write(tmp_path / "a.dmp", "healthy")
    failed = worker.scan(Evidence(path), Settings(tmp_path / "results", offline=True, **limits))  # type: ignore[arg-type]
    assert isinstance(failed, Failed)
    assert reason in failed.reason
    again = worker.scan(Evidence(path), Settings(tmp_path / "results", offline=True, retry=True))
    assert isinstance(again, Scanned)


def test_a_killed_child_is_a_row(tmp_path: Path, cache: Path) -> None:
    """A child that is killed while it reads an image is that image's failure; the other image is scanned."""
    slow = bulk_images.write_raw(tmp_path / "slow.raw", "seed")
    quick = bulk_images.write(tmp_path / "zz.dmp", "healthy")
    results = tmp_path / "results"
    running = bulk_images.start("scan", slow, quick, "-o", results, "--offline", "--workers", 1, cache=cache)
    victim = wait_for_reader(running.pid, after=0.3)
    os.kill(victim, signal.SIGKILL)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 2, stderr
    rows = {Path(row.source).name: row for row in store.images(results)}
    assert rows["slow.raw"].reason == "its process was killed by signal SIGKILL"
    assert rows["zz.dmp"].status == "scanned"


def test_killed_and_started_again(tmp_path: Path, cache: Path) -> None:
    """A scan that was killed leaves what it had finished; started again it does the rest, nothing lost or doubled."""
    data = bulk_images.write(tmp_path / "0.dmp", "seed").read_bytes()
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    for number in range(4):
        (evidence / f"{number}.dmp").write_bytes(bulk_images.distinct(data, number))
    results = tmp_path / "results"
    arguments = ("scan", evidence, "-o", results, "--offline", "--workers", 1)
    running = bulk_images.start(*arguments, cache=cache)
    limit = time.monotonic() + 60
    while len(store.images(results)) < 1 and time.monotonic() < limit:
        time.sleep(0.02)
    below = bulk_images.descendants(running.pid)
    running.kill()
    running.communicate()
    finished = {row.image: row.scanned_at for row in store.images(results)}
    assert 1 <= len(finished) < 4
    assert gone(below)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    rows = store.images(results)
    assert [Path(row.source).name for row in rows] == [f"{number}.dmp" for number in range(4)]
    assert {row.image: row.scanned_at for row in rows if row.image in finished} == finished
    counted = "SELECT count(*), count(DISTINCT image) FROM apcs"
    assert store.connect(results).execute(counted).fetchall() == [(4, 4)]
