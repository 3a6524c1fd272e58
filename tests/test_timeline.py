"""Times of the reported threads, as vol's timeliner asks for them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import volatility3.symbols
from volatility3.plugins.windows.apcaudit.findings import Audited, AuditedApc, Finding, Severity
from volatility3.plugins.windows.apcaudit.model import Facts, QueueName
from volatility3.plugins.windows.apcaudit.output.document import created, exited, moment, timeline

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Process, Scene, Thread
from tests import volatility
from tests.situations_pure import APC_SIZE, TERMINATED, WINDOWS_10, thread

#: 2021-03-04 05:06:07.89 UTC in FILETIME ticks, by the definition of FILETIME.
TIME = 132_593_079_678_900_000
MOMENT = datetime(2021, 3, 4, 5, 6, 7, 890_000, tzinfo=timezone.utc)
XP = Facts(APC_SIZE, create_time_shift=3)


def test_filetime() -> None:
    """FILETIME counts ticks of 100 ns since 1601; what no calendar holds is no time."""
    assert moment(TIME) == MOMENT
    assert moment(None) is None
    assert moment(1 << 63) is None


@pytest.mark.parametrize(
    ("members", "facts", "times"),
    [
        ({"create_time": TIME, "exit_time": 0}, WINDOWS_10, (TIME, None)),
        # XP keeps NestedFaultCount and ApcNeeded in the lowest three bits.
        ({"create_time": TIME << 3 | 5, "exit_time": 0}, XP, (TIME, None)),
        ({"create_time": 0, "exit_time": 0}, WINDOWS_10, (None, None)),
        ({"create_time": None, "exit_time": None}, WINDOWS_10, (None, None)),
        # A live thread's ExitTime is the reply chain it is on.
        ({"create_time": TIME, "exit_time": 0xFFFF8A0000004538}, WINDOWS_10, (TIME, None)),
        ({**TERMINATED, "create_time": TIME, "exit_time": TIME + 1}, WINDOWS_10, (TIME, TIME + 1)),
    ],
)
def test_times(members: dict[str, int | None], facts: Facts, times: tuple[int | None, int | None]) -> None:
    """A thread's times are what _ETHREAD says, where what it says is a time."""
    subject = thread().members._replace(**members)
    assert (created(subject, facts), exited(subject)) == times


def test_entries() -> None:
    """An entry names the thread, its process and the codes, the APCs' too."""
    base = thread()
    members = base.members._replace(**TERMINATED)._replace(create_time=TIME, exit_time=TIME + 10_000_000)
    subject = replace(base, members=members)
    finding = Finding("exit-bugcheck", Severity.HIGH, "...")
    of_apc = Finding("bad-object", Severity.HIGH, "...")
    entries = list(
        timeline(Audited(subject, (finding,), {(QueueName.KERNEL, 1, False): AuditedApc((of_apc,))}), WINDOWS_10)
    )
    text = f"APC audit: thread 260 of System (4), _ETHREAD {base.address:#x}: bad-object, exit-bugcheck"
    assert entries == [(text, "created", MOMENT), (text, "exited", MOMENT + timedelta(seconds=1))]


@pytest.fixture(scope="module", params=["xp-sp3-x86", "7-sp1-x64", "10-19041-x86", "11-26100-x64"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine with an attached thread that has an APC queued, created at a known time, and an ordinary one."""
    shift = 3 if request.param.startswith("xp") else 0
    stuck = Thread(
        8,
        attached_to="svchost.exe",
        kernel_apc_pending=True,
        wait_irql=1,
        kernel_apcs=(Apc(),),
        members={"CreateTime": (TIME << shift).to_bytes(8, "little")},
    )
    service = Process("svchost.exe", 1000, (Thread(1004, start=0x1000, system=False),))
    scene = Scene("times", "", request.param, (Process("System", 4, (stuck, Thread(12)), parent=0), service))
    path = tmp_path_factory.mktemp(request.param) / "times.dmp"
    build(scene, load_kernel(request.param)).write_dump(path)
    return path


def test_timeliner_interface(image: Path) -> None:
    """Vol's timeliner finds the plugin by its interface and gets times of the reported threads alone."""
    plugin = volatility.construct(image, "windows.apcaudit.ApcAudit", cache=volatility.CACHE)
    from volatility3.plugins import timeliner

    assert isinstance(plugin, timeliner.TimeLinerInterface)
    ((text, kind, time),) = plugin.generate_timeline()
    assert "thread 8 of System (4)" in text
    assert "detach-bugcheck" in text
    assert (kind, time) == (timeliner.TimeLinerType.CREATED, MOMENT)


def test_timeliner_itself(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeliner.Timeliner` has the audit's entries in its table."""
    # The timeliner makes its plugins when it runs, and they look for symbols then.
    folders = [str(volatility.REPOSITORY_SYMBOLS), *volatility3.symbols.__path__]
    monkeypatch.setattr(volatility3.symbols, "__path__", folders)
    cache = image.parent.parent / "timeline-cache"
    found = volatility.rows(image, "timeliner.Timeliner", cache=cache, symbols=(), plugin_filter=["ApcAudit"])
    assert [(row["Plugin"], row["Created Date"]) for row in found] == [("ApcAudit", MOMENT)]
