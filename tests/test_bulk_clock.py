"""Images whose clock no calendar holds: their findings are in every export, at the time of the scan, and it is said."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.windows import SHARED_USER_DATA

from apcaudit.bulk import export, store, worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.outcome import Scanned, Settings
from apcaudit.bulk.records import Records
from apcaudit.cli import main
from apcaudit.reports import summary
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import SCENES
from tests import bulk_images
from tests.bulk_images import need_extra
from tests.report_results import suspect, write

need_extra()

SCANNED_AT, SCANNED_TEXT = 1767330000.0, "2026-01-02T05:00:00.000000+00:00"

#: What an image says of its clock in seconds since 1970, and whether that is a time.
CLOCKS = {
    "2026": (1767323045.25, True),
    "1970": (0.0, True),
    "the end of 9999": (253402300799.0, True),
    "none": (None, False),
    # 9999-12-31 24:00, and the last FILETIME: 2**63 - 1 of 100 ns since 1601 (Windows SDK, minwinbase.h).
    "10000": (253402300800.0, False),
    "30828": (((1 << 63) - 1 - 116444736000000000) / 10_000_000, False),
    "before 1970": (-0.5, False),
    "1601": (-11644473600.0, False),
    "no number": (float("nan"), False),
    "infinite": (float("inf"), False),
}


def planted(folder: Path, clock: float | None) -> Path:
    """Write the results of an image with one finding, and such a clock."""
    made = suspect(1)
    image = dataclasses.replace(made.image, system_time=clock, scanned_at=SCANNED_AT)
    return write(folder / "results", dataclasses.replace(made, image=image))


@pytest.mark.parametrize(("clock", "known"), CLOCKS.values(), ids=CLOCKS)
def test_a_finding_is_in_every_export(
    clock: float | None, known: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the clock says, the finding has its line in all formats; the timeline says where the time is from."""
    results = planted(tmp_path, clock)
    for form in ("jsonl", "csv"):
        assert main(["export", str(results), "--format", form]) == 0
        assert capsys.readouterr().out.count("why undelivered") == 1
    assert main(["export", str(results), "--format", "timesketch"]) == 0
    out, err = capsys.readouterr()
    (line,) = [json.loads(line) for line in out.splitlines()]
    assert line["message"] == "[medium] undelivered in System on host-0001.dmp: why undelivered"
    if known:
        assert (line["timestamp_desc"], "time_note" in line, err) == ("Memory Image Time", False, "")
    else:
        assert (line["timestamp_desc"], line["datetime"]) == ("Image Scanned", SCANNED_TEXT)
        assert line["time_note"].endswith(": this is when it was scanned")
        note = "images without a clock from 1970 to 9999: 1; their findings stand at the time of the scan\n"
        assert err == note


@pytest.mark.parametrize(("clock", "known"), CLOCKS.values(), ids=CLOCKS)
def test_the_image_itself(clock: float | None, known: bool, tmp_path: Path) -> None:
    """The table of images keeps the number as it is; JSON has a null for what is none, a report says it in words."""
    results = store.read(planted(tmp_path, clock))
    (line,) = [json.loads(line, parse_constant=pytest.fail) for line in export.jsonl(results, "images")]
    finite = clock is not None and abs(clock) < float("inf")
    assert line["system_time"] == (clock if finite else None)
    (row,) = csv.DictReader(io.StringIO("".join(export.comma_separated(results, "images"))))
    assert row["system_time"] == ("" if clock is None else str(clock))
    shown = summary.moment(clock)
    assert shown == ("" if clock is None else "not from 1970 to 9999") or known


def test_times_of_threads(tmp_path: Path) -> None:
    """A time of a thread that no calendar holds has no line: what is left out is counted, and its findings stay."""
    made = suspect(1)
    thread = dataclasses.replace(made.threads[0], created=1e12, exited=1767323045.25)
    image = dataclasses.replace(made.image, system_time=1767323045.25)
    results = store.read(write(tmp_path / "results", dataclasses.replace(made, image=image, threads=(thread,))))
    described = [json.loads(line)["timestamp_desc"] for line in export.timesketch(results)]
    assert described == ["Memory Image Time", "Thread Exited"]
    assert list(export.timeline_notes(results)) == [
        "times of threads that are not from 1970 to 9999: 1; they have no line"
    ]


def test_an_image_without_findings_is_not_counted(tmp_path: Path) -> None:
    """The note counts images of which the timeline has a line."""
    made = suspect(1)
    image = dataclasses.replace(made.image, findings=0)
    results = store.read(write(tmp_path / "results", Records(image)))
    assert list(export.timeline_notes(results)) == []


@pytest.fixture(autouse=True, scope="module")
def cache() -> Iterator[Path]:
    """The cache that tests share."""
    with bulk_images.shared_cache() as folder:
        yield folder


# The last 100 ns of 9999 are 2650467743999999999 as a FILETIME; a negative one is before 1601.
@pytest.mark.parametrize("clock", [2650467744000000000, (1 << 63) - 1, -(1 << 62)])
def test_an_image_of_such_a_machine(clock: int, tmp_path: Path) -> None:
    """From the bytes of KUSER_SHARED_DATA to the timeline: the scan keeps what the clock says, and no finding goes."""
    scene = SCENES["seed"]()
    image = build(scene, load_kernel(scene.kernel))
    for part, value in (("LowPart", clock & 0xFFFFFFFF), ("High1Time", clock >> 32), ("High2Time", clock >> 32)):
        image.memory.write(SHARED_USER_DATA[4], "_KUSER_SHARED_DATA", f"SystemTime.{part}", value)
    image.write_dump(tmp_path / "seed.dmp")
    settings = Settings(tmp_path / "results", offline=True)
    outcome = worker.scan(Evidence(tmp_path / "seed.dmp"), settings)
    assert isinstance(outcome, Scanned)
    results = store.read(settings.results)
    (row,) = results.images
    assert row.system_time == pytest.approx((clock - 116444736000000000) / 1e7)
    found = [json.loads(line) for line in export.timesketch(results)]
    times = {(each["timestamp_desc"], datetime.fromisoformat(each["datetime"])) for each in found if "code" in each}
    assert times == {("Image Scanned", datetime.fromtimestamp(row.scanned_at, timezone.utc))}
    assert sorted(each["code"] for each in found if "code" in each) == [
        "detach-bugcheck",
        "flt-send-loop",
        "flt-send-under-fast-mutex",
    ]
