"""A default run on a crash dump shows the crash first; a run that finds nothing says so."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from volatility3.framework import exceptions, interfaces

from apcaudit.synthetic.scene import Bugcheck, Process, Thread
from tests import bulk_images, volatility
from tests.minidump_builder import write_minidump
from tests.minidump_machine import Machine
from tests.views_image import Audits, audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "11-26100-x64"])

RUNNING = Thread(8, state="Running", running_on=1)
SERVICE = Process("svchost.exe", 1000, (Thread(1004, start=0x1000, system=False),))


#: TID 8, 12 and 1004, and an idle thread for each of two processors.
THREADS = 5


def stopped(kernel: str, folder: Path) -> Audits:
    """Audit a machine of two processors with nothing queued that a bugcheck about no APC stopped on thread 8."""
    return audited(
        kernel,
        folder,
        (RUNNING, Thread(12)),
        others=(SERVICE,),
        processors=2,
        bugcheck=Bugcheck(0xEF, (0x10, 0, 0x20, 0)),
        crashing_thread=8,
    )


def run(image: Path, caplog: pytest.LogCaptureFixture, **options: Any) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run the plugin; return what it had warned of when the table began, and the rows, by vol's TreeGrid."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "volatility3"):
        grid = volatility.construct(
            image, "windows.apcaudit.ApcAudit", cache=volatility.CACHE, kernel=options.pop("kernel"), **options
        ).run()
        before = [record.message for record in caplog.records]
        found: list[tuple[Any, ...]] = []

        def visit(node: interfaces.renderers.TreeNode, _: Any) -> None:
            found.append(tuple(node.values))

        grid.populate(visit, None)
    return before, found


@KERNELS
def test_the_crash_is_on_top(kernel: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Before the table one line has bugcheck, parameters, build and processor; the thread has a row without finding."""
    image = stopped(kernel, tmp_path).image
    before, rows = run(tmp_path / "views.raw", caplog, kernel=image.kernel)
    (line,) = [each for each in before if each.startswith("The machine stopped: ")]
    assert "bugcheck 0xef (CRITICAL_PROCESS_DIED), parameters 0x10, 0x0, 0x20, 0x0; " in line
    assert f"Windows {'.'.join(map(str, image.kernel.version))} {'x86' if kernel.endswith('x86') else 'x64'}" in line
    assert line.endswith("processor 1 (2 processors)")
    assert [int(row[2]) for row in rows] == [8]
    explanation = str(rows[0][-1])
    assert explanation.startswith("crash: bugcheck 0xef (CRITICAL_PROCESS_DIED) stopped the machine on this thread (")
    assert explanation.endswith(f" stopped: {line.removeprefix('The machine stopped: ')}.")


@KERNELS
def test_the_triage_view_shows_it_too(kernel: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`--min-severity` leaves the crashed thread's row; `--pid` and `--tid` choose, and then it may be left out."""
    image = stopped(kernel, tmp_path).image
    path = tmp_path / "views.raw"
    _, rows = run(path, caplog, kernel=image.kernel, min_severity="critical")
    assert [int(row[2]) for row in rows] == [8]
    _, rows = run(path, caplog, kernel=image.kernel, tid=[12])
    assert rows == []
    (line,) = [record.message for record in caplog.records if record.message.startswith("Nothing was found")]
    assert line.endswith(f"of {THREADS} threads none that --pid or --tid names has an APC queued or a finding")


@KERNELS
def test_the_document_has_it(kernel: str, tmp_path: Path) -> None:
    """The document's facts have the same line, for programs."""
    facts = stopped(kernel, tmp_path).audit.image
    assert facts.crash is not None
    assert facts.crash.startswith("bugcheck 0xef (CRITICAL_PROCESS_DIED), parameters 0x10, 0x0, 0x20, 0x0; ")
    assert facts.processors == 2


@KERNELS
def test_a_crash_on_an_unknown_thread(kernel: str, tmp_path: Path) -> None:
    """Where it is not known which of the processors' threads stopped the machine, the line says so."""
    both = (Thread(8, state="Running", running_on=0), Thread(16, state="Running", running_on=1), Thread(12))
    bugcheck = Bugcheck(0xEF, (0x10, 0, 0x20, 0))
    facts = audited(kernel, tmp_path, both, others=(SERVICE,), processors=2, bugcheck=bugcheck).audit.facts
    assert facts.crashing_thread is None
    assert (facts.crash or "").endswith(", 2 processors; the thread that stopped it is not known")


@KERNELS
@pytest.mark.parametrize(
    ("severity", "expected"),
    [
        ("info", f"Nothing was found: none of {THREADS} threads has an APC queued or a finding"),
        ("medium", f"Nothing was found: none of {THREADS} threads has a finding at medium or above"),
    ],
)
def test_nothing_found_is_said(
    kernel: str, severity: str, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An image of a healthy machine has an empty table and one line that says how many threads were looked at."""
    image = audited(kernel, tmp_path, (RUNNING, Thread(12)), others=(SERVICE,), processors=2).image
    before, rows = run(tmp_path / "views.raw", caplog, kernel=image.kernel, min_severity=severity)
    assert (before, rows) == ([], [])
    assert [record.message for record in caplog.records] == [expected]


def test_formats_stay_whole(tmp_path: Path) -> None:
    """The line is on stderr: what vol prints as JSON, JSON lines or CSV is data alone."""
    dump = bulk_images.write(tmp_path / "seed.dmp", "seed")
    arguments = ("-q", "--offline", "--cache-path", volatility.CACHE, "-p", volatility.ROOT / "vol_plugins")
    command = (sys.executable, "-c", volatility.VOL, *map(str, arguments), "-s", str(volatility.REPOSITORY_SYMBOLS))
    done = subprocess.run(
        (*command, "-r", "json", "-f", str(dump), "windows.apcaudit"), capture_output=True, text=True, check=True
    )
    (row,) = json.loads(done.stdout)
    assert row["TID"] == 340
    assert "The machine stopped: bugcheck 0x6 (INVALID_PROCESS_DETACH_ATTEMPT), no parameters; " in done.stderr


def test_a_minidump_without_symbols_shows_its_crash(tmp_path: Path) -> None:
    """Where no symbol file fits, the error has what the header tells of the crash."""
    dump = tmp_path / "mini.dmp"
    dump.write_bytes(write_minidump(Machine(True).scene()))
    with pytest.raises(exceptions.UnsatisfiedException) as raised:
        volatility.construct(dump, "windows.apcaudit.ApcAudit", cache=volatility.CACHE)
    (requirement,) = raised.value.unsatisfied.values()
    assert "mini.dmp is a kernel minidump whose kernel could not be identified" in requirement.description
    assert "The machine stopped: bugcheck 0x6 (INVALID_PROCESS_DETACH_ATTEMPT), no parameters; 2021-" in (
        requirement.description
    )
