"""The audit on what nobody here made: real symbol files, another builder's image, a genuine minidump.

All of it lies beside the repository, in ../shared; where that is missing, these tests say so.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.origin.producers import PRODUCERS
from volatility3.plugins.windows.apcaudit.origin.producers import SYMBOL_FILES as SYMBOL_FILE_NAMES

from apcaudit.synthetic import isf
from apcaudit.synthetic.kernels import Kernel, load_kernel
from apcaudit.synthetic.scenes import seed
from tests import bulk_images, command, volatility
from tests.desktop_audit import DesktopAudit, audit_desktop
from tests.situation_audit import SituationAudit, audit_situations, by_tid, highest
from tests.test_bad_input import vol

SHARED = volatility.ROOT.parent / "shared"
SYMBOL_FILES = sorted(SHARED.glob("symbols/windows/*/*.json.xz"))
LAYOUT_FILES = sorted(SHARED.glob("layouts/*.json.xz"))
SAMPLE = SHARED / "samples" / "threads-19041.raw.xz"
TRUTH = SHARED / "samples" / "threads-19041.truth.json"
MINIDUMP = SHARED / "samples" / "triage_x64.dmp"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED.name}/ is not beside the repository")


@pytest.fixture(scope="module", params=SYMBOL_FILES + LAYOUT_FILES, ids=lambda path: path.name.partition(".json")[0])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kernel, tuple[Path, ...]]:
    """A kernel of a real file, and the folder for vol: the real symbol files, or one derived from types alone."""
    kernel = load_kernel(request.param)
    if request.param in SYMBOL_FILES:
        return kernel, (SHARED / "symbols",)
    folder = tmp_path_factory.mktemp("symbols")
    isf.write_derived(kernel, folder)
    return kernel, (folder,)


@needs_shared
def test_types_alone_get_an_invented_guid(real: tuple[Kernel, tuple[Path, ...]]) -> None:
    """A kernel of which only types are known has a GUID that is ours, and so no real kernel's."""
    kernel, symbols = real
    assert kernel.pdb.guid.startswith("A9C0DEFF") is (symbols != (SHARED / "symbols",))


@pytest.fixture(scope="module")
def audited(
    real: tuple[Kernel, tuple[Path, ...]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[SituationAudit, DesktopAudit]:
    """The machine with every situation and the ordinary one, audited with the same symbols, which vol reads once."""
    (kernel, symbols), folder = real, tmp_path_factory.mktemp("images")
    # What the scan adds to the lists is no matter of the layout: test_situations does without it on our kernels.
    situations = audit_situations(kernel, folder, symbols, scan_only=kernel.own)
    # With a scan, which gives the listed threads too; the crowd is in test_desktop.
    return situations, audit_desktop(kernel, folder, symbols, crowd=False, scans=(True,), beside=situations.plugin)


@needs_shared
def test_situations_on_real_layouts(audited: tuple[SituationAudit, DesktopAudit]) -> None:
    """On every real kernel's layout, XP SP3 to 11 24H2, each situation has the findings planted and no others."""
    assert audited[0].differences() == {}
    assert audited[0].others() == {}


@needs_shared
def test_desktop_on_real_layouts(audited: tuple[SituationAudit, DesktopAudit]) -> None:
    """On every real kernel's layout an ordinary machine has no finding at medium or above."""
    assert audited[1].raised() == {}
    assert audited[1].without_reason() == []


@pytest.fixture(scope="module")
def build_19041(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the symbol file of the kernel that the image and the minidump are of."""
    (path,) = (path for path in SYMBOL_FILES if path.name.startswith(GENUINE["19041"]))
    return volatility.alone(path, tmp_path_factory.mktemp("19041"))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the image that another builder made."""
    path = tmp_path_factory.mktemp("sample") / "threads.raw"
    path.write_bytes(lzma.decompress(SAMPLE.read_bytes()))
    return path


@needs_shared
@pytest.mark.parametrize("scan", [False, True], ids=["list", "scan"])
def test_sample_gives_its_truth(sample: Path, build_19041: Path, scan: bool) -> None:
    """Each thread has exactly the truth's findings at medium or above; some need --scan."""
    rows = volatility.rows(sample, cache=volatility.CACHE, symbols=(build_19041,), wide=True, all=True, scan=scan)
    found = by_tid(rows)
    truth = json.loads(TRUTH.read_text())["threads"]
    expected = {each["tid"]: set(each["expected_findings"]) for each in truth if scan or not each["needs_scan"]}
    serious = {tid: codes if highest(codes) not in ("info", "low") else {} for tid, codes in found.items()}
    assert {tid: set(serious.get(tid, {})) for tid in expected} == expected
    assert {tid: codes for tid, codes in serious.items() if codes and tid not in expected} == {}
    queued = {each["tid"]: each["queued_apcs"] for each in truth if each["tid"] in expected}
    assert {tid: sum(row["TID"] == tid and row["Apc"] is not None for row in rows) for tid in queued} == queued


@needs_shared
def test_minidump_shows_the_crashing_thread(build_19041: Path) -> None:
    """The genuine minidump's crashing thread is System's 264, its APC lists empty, and nothing is found on it."""
    rows = volatility.rows(MINIDUMP, cache=volatility.CACHE, symbols=(build_19041,), wide=True, all=True)
    crashing = [row for row in rows if row["TID"] == 264]
    assert len(crashing) == 1
    row = crashing[0]
    assert (row["PID"], row["Process"], row["State"].partition(":")[0]) == (4, "System", "Running")
    assert (row["ApcStateIndex"], row["KernelApcPending"], row["KernelApcInProgress"]) == (0, False, False)
    assert (row["Apc"], row["Findings"]) == (None, "")
    assert row["StartRoutine"].startswith("nt!")
    assert "dump" in row["Views"].split("+")
    assert {row["Findings"] for row in rows} == {""}


SEEDS = {
    # The seed's KAPC is not in the first file; the second has the memory around it.
    "seed-xp-minidump": None,
    "seed-xp-minidump-with-kapc": "nt!IopCompleteRequest",
}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the seed's crash as XP minidumps, which another writer made."""
    folder = tmp_path_factory.mktemp("seeds")
    for name in SEEDS:
        packed = SHARED / "samples" / f"{name}.dmp.xz"
        if not packed.exists():
            pytest.skip(f"{packed.name} is missing")
        (folder / f"{name}.dmp").write_bytes(lzma.decompress(packed.read_bytes()))
    return folder


@needs_shared
@pytest.mark.parametrize("name", SEEDS)
def test_seed_minidump_in_vol(name: str, seeds: Path) -> None:
    """The founding crash as an XP minidump is critical with the KAPC's address, whether or not the file has it."""
    done = vol(seeds / f"{name}.dmp", volatility.REPOSITORY_SYMBOLS)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("0x")]
    assert row[0] == f"{seed.THREAD:#x}"
    assert f"{seed.KAPC:#x}" in row
    assert (SEEDS[name] or "-") in row
    assert {"critical", "detach-bugcheck", "BAVSvc.exe (1264)"} <= set(row)
    assert "any more" not in row[-1]
    assert ("which is not in this dump" in row[-1]) is (SEEDS[name] is None)


@needs_shared
def test_seed_minidumps_in_a_scan(seeds: Path, tmp_path: Path) -> None:
    """`apcaudit scan` finds the same in both, and keeps the KAPC's address."""
    bulk_images.need_extra()
    from apcaudit.bulk import store

    with bulk_images.own_cache(tmp_path / "cache"):
        done = command.run("scan", seeds, "-o", tmp_path / "results", "--offline", "--workers", 1, seconds=300)
    assert done.returncode == 0, done.stderr
    database = store.connect(tmp_path / "results")
    query = "SELECT thread, apc, kernel_routine, severity FROM apcs ORDER BY kernel_routine NULLS FIRST"
    assert database.execute(query).fetchall() == [
        (seed.THREAD, seed.KAPC, routine, "critical") for routine in SEEDS.values()
    ]


#: The symbol files by the names that the producers' rows give them, with the beginnings of their GUIDs.
GENUINE = dict(
    zip(
        SYMBOL_FILE_NAMES,
        ("30B5FB", "FC47DB", "3844DB", "22597D", "517E12", "8B1104", "35A038", "5278AF", "879AD9", "32C1A6"),
        strict=True,
    )
)


@needs_shared
@pytest.mark.parametrize("name", SYMBOL_FILE_NAMES)
def test_producers_on_genuine_symbols(name: str) -> None:
    """A row names a routine that the symbol files it was checked against have, and that the others lack."""
    (path,) = (path for path in SYMBOL_FILES if path.name.startswith(GENUINE[name]))
    symbols = json.loads(lzma.decompress(path.read_bytes()))["symbols"]
    order = SYMBOL_FILE_NAMES.index
    claimed = {
        row.routine
        for row in PRODUCERS
        if row.checked is not None and order(row.checked[0]) <= order(name) <= order(row.checked[1])
    }
    # Since 8 KiSuspendThread is a function of another kind.
    assert claimed == {row.routine for row in PRODUCERS if row.routine in symbols} - (
        {"KiSuspendThread"} if order(name) >= order("8.1") else set()
    )
