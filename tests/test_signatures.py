"""YARA over driver images: what is scanned, what rules see, and whose a hit is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.findings import YaraHit
from volatility3.plugins.windows.apcaudit.signatures import RUN, Signatures
from volatility3.plugins.windows.apcaudit.signatures import rules as engines

from apcaudit.synthetic.build import build
from apcaudit.synthetic.damage import unmap_page
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Driver, Thread
from apcaudit.synthetic.scenes import seed
from apcaudit.synthetic.scenes.common import FLTMGR, HAL
from tests.signed_drivers import MARKED, SUSPECT, marked, only, signed, write
from tests.views_image import audited
from tests.volatility import CACHE, ROOT, rows

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])


@pytest.fixture(params=["yara", "yara_x"])
def either_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the audit find each engine in turn, as where the other one is not installed."""
    pytest.importorskip(request.param)
    if request.param == "yara":
        monkeypatch.setitem(sys.modules, "yara_x", None)


@KERNELS
@pytest.mark.usefixtures("either_engine")
def test_hits_and_the_start_routine(kernel: str, tmp_path: Path) -> None:
    """A hit in the function at the thread's start comes first, as rule@start; elsewhere in the driver as the rule."""
    found = marked(kernel, tmp_path)
    rules = "\n".join(
        f'rule {name} {{ strings: $a = "{mark}" condition: $a }}'
        for name, mark in (("a_data", "MARK-DATA"), ("b_first", "MARK-ONE"), ("c_second", "MARK-TWO"))
    )
    assert signed(found, rules, tmp_path, 8) == ["b_first@start", "a_data", "c_second"]
    assert signed(found, rules, tmp_path, 12) == ["c_second@start", "a_data", "b_first"]


@KERNELS
@pytest.mark.usefixtures("either_engine")
def test_what_rules_see(kernel: str, tmp_path: Path) -> None:
    """Imports are those of the import address table in memory, start_rva and start_size those of the routine."""
    found = marked(kernel, tmp_path)
    rules = (
        'rule imported { condition: imports == "fltMgr!FltSendMessage,nt!KeInsertQueueApc" }\n'
        "rule placed { condition: start_rva == 0x1400 and start_size == 0x400 }\n"
        'rule named { condition: driver == "Marked" and driver_path iendswith "\\\\Marked.sys" and not hidden }\n'
        "rule whole { condition: filesize == 0x9000 and uint16(0) == 0x5a4d and uint32(0x8000) == 0 }\n"
    )
    assert signed(found, rules, tmp_path, 8) == ["imported", "named", "placed", "whole"]
    assert signed(found, rules, tmp_path, 12) == ["imported", "named", "whole"]


@KERNELS
@pytest.mark.parametrize(
    ("target", "told"),
    [
        pytest.param("nt!KeBugCheck", None, id="to another function of its module"),
        pytest.param("", "1 of 2 imports lead to no loaded module", id="to no module"),
        pytest.param("fltMgr+0x1230", "1 of 2 imports lead to no function that a module exports", id="into a module"),
        pytest.param("Marked+0x1234", "1 of 2 imports lead to no function that a module exports", id="into the driver"),
    ],
)
def test_a_patched_import(kernel: str, target: str, told: str | None, tmp_path: Path) -> None:
    """What an import leads to counts: no function that is exported is not named, and it is said."""

    def patch(image: Image) -> None:
        base, width = image.address_of["driver:Marked.sys"], image.memory.pointer_size
        mask = image.memory.layout.pointer_mask
        wanted = (image.resolve("nt!KeInsertQueueApc") & mask).to_bytes(width, "little")
        data = image.read(base, MARKED.size - 0x1000)
        address = image.resolve(target) & mask if target else image.kernel.base - 0x5000
        image.write(base + data.index(wanted), address.to_bytes(8, "little")[:width])

    threads = (Thread(8, start="Marked!First", **SUSPECT),)
    found = audited(kernel, tmp_path, threads, drivers=(HAL, FLTMGR, MARKED), changes=(patch,))
    rules = (
        'rule left { condition: imports == "fltMgr!FltSendMessage" }\n'
        'rule other { condition: imports contains "nt!KeBugCheck" }'
    )
    assert signed(found, rules, tmp_path, 8) == ["other" if told is None else "left"]
    notes = [note for note in found.audit.notes if "imports lead to" in note]
    assert [note.startswith(f"Marked: {told}") for note in notes] == ([] if told is None else [True])


@KERNELS
def test_only_suspect_threads_by_default(kernel: str, tmp_path: Path) -> None:
    """Drivers of threads with findings of medium severity and above are scanned, those of others are not."""
    found = marked(kernel, tmp_path)
    assert {tid: found.of[tid].yara for tid in (8, 16, 20)} == {8: "", 16: None, 20: None}


def test_the_time_limit_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is not scanned in time has no hits and a note; the audit goes on."""
    monkeypatch.setattr(engines, "TIME_LIMIT", 1)
    endless = "rule endless { condition: for all i in (0..100000000000) : (uint8(i % 64) < 256) }"
    found = marked("10-19041-x64", tmp_path)
    options = only(file=write(tmp_path, "rules.yar", endless))
    audit = Audit(*found.source, rules=options)
    assert next(each.yara for each in audit.run(Selection(tids=frozenset({8})))) == ""
    assert [note for note in audit.notes if "Marked was not scanned to its end" in note] != []


@KERNELS
def test_pages_that_are_not_there(kernel: str, tmp_path: Path) -> None:
    """A unit keeps its offsets across pages that cannot be read, which are zeros, and across the runs it is read in."""
    code = {RUN - 6: b"ACROSS-A-RUN", 0x3FFA: b"CUT-OFF", 0x8000: b"BEHIND-THE-HOLE"}
    driver = Driver("Large.sys", size=2 * RUN, exports={"Main": 0x1400}, code=code)

    def page_out(image: Image) -> None:
        for page in (0x3000, 0x4000):
            unmap_page(image, image.address_of["driver:Large.sys"] + page)

    threads = (Thread(8, start="Large!Main", **SUSPECT),)
    found = audited(kernel, tmp_path, threads, drivers=(HAL, FLTMGR, driver), changes=(page_out,))
    rules = (
        f'rule across {{ strings: $a = "ACROSS-A-RUN" condition: $a at {RUN - 6} }}\n'
        'rule behind { strings: $a = "BEHIND-THE-HOLE" condition: $a at 0x8000 and uint32(0x4000) == 0 }\n'
        'rule cut { strings: $a = "CUT-OFF" condition: $a }\n'
        "rule size { condition: filesize == %d }" % (2 * RUN)
    )
    assert signed(found, rules, tmp_path, 8) == ["across", "behind", "size"]


@KERNELS
def test_memory_around_an_orphan_start(kernel: str, tmp_path: Path) -> None:
    """Where no image holds a start address or a routine, the memory around it is scanned by itself."""
    x86 = kernel == "xp-sp3-x86"
    page = 0xF6801000 if x86 else 0xFFFFF80040001000

    def write_code(image: Image) -> None:
        image.memory.space.map(page, 0x2000)
        image.write(page + 0x100, b"LOOSE-CODE")
        image.write(page + 0x1100, b"LOOSE-ROUTINE")

    threads = (
        Thread(8, start=page + 0xF8),
        Thread(12, kernel_apc_disable=-1, kernel_apcs=(Apc(page + 0x10F8, normal_routine=page + 0x1100),)),
        Thread(16, start=page + 0x400000),
    )
    found = audited(kernel, tmp_path, threads, changes=(write_code,))
    rules = (
        'rule code { strings: $a = "LOOSE-CODE" condition: $a and hidden and driver == "" }\n'
        'rule routine { strings: $a = "LOOSE-ROUTINE" condition: $a }'
    )
    assert signed(found, rules, tmp_path, 8) == ["code@start", "routine"]
    assert set(signed(found, rules, tmp_path, 12) or ()) >= {"code", "routine"}
    assert signed(found, rules, tmp_path, 16) is None


def test_a_few_rules_that_ask_for_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files whose rules cannot ask for the start are scanned once a driver, whatever others beside them ask for."""
    found = marked("10-19041-x64", tmp_path)
    write(tmp_path, "rules/thousands.yar", 'rule a { strings: $a = "MARK-ONE" condition: $a }')
    write(tmp_path, "rules/few.yar", 'rule b { strings: $a = "MARK-TWO" condition: $a and start_rva == 0x1800 }')
    signatures = Signatures(found.audit.kernel, only(file=str(tmp_path / "rules")))
    signatures.compile()
    parts = signatures._rules.parts  # type: ignore[union-attr]
    assert [part.wants_start for part in parts] == [False, True]
    scanned: list[bool] = []
    kind = type(parts[0])
    scan = kind.scan

    def counting(part: engines.Compiled, *arguments: object) -> object:
        scanned.append(part.wants_start)
        return scan(part, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "scan", counting)
    hits = {tid: [str(hit) for hit in signatures.scan_thread(found.of[tid].thread) or ()] for tid in (8, 12, 16)}
    assert hits == {8: ["a@start"], 12: ["b@start", "a"], 16: ["a@start"]}
    assert sorted(scanned) == [False, True, True]


def test_a_driver_is_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads start in it: once, or once a start where a rule asks for that."""
    found = marked("10-19041-x64", tmp_path)
    for rules, scans in (("rule a { condition: false }", 1), ("rule a { condition: start_rva == 1 }", 2)):
        signatures = Signatures(found.audit.kernel, only(file=write(tmp_path, "rules.yar", rules)))
        signatures.compile()
        counted: list[int] = []
        kind = type(signatures._rules.parts[0])  # type: ignore[union-attr]
        scan = kind.scan

        def counting(*arguments: object, scan: object = scan, counted: list[int] = counted) -> object:
            counted.append(1)
            return scan(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(kind, "scan", counting)
        for tid in (8, 12, 16, 8):
            signatures.scan_thread(found.of[tid].thread)
        monkeypatch.undo()
        assert len(counted) == scans


def test_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit does without YARA, and says that drivers were not scanned."""
    monkeypatch.setattr(engines, "import_module", _missing)
    from volatility3.plugins.windows.apcaudit.signatures import rules

    monkeypatch.setattr(rules, "_kept", [])
    found = marked("10-19041-x64", tmp_path)
    assert found.codes(8) == {"pending-empty": "medium"}
    assert found.of[8].yara is None
    assert any("no YARA engine can be imported" in note for note in found.audit.notes)


def _missing(name: str, package: str | None = None) -> object:
    raise ImportError(name)


def test_the_seed(tmp_path: Path) -> None:
    """The case that started the project: its thread's routine by name, and the shipped rule in it."""
    image = tmp_path / "seed.dmp"
    build(seed.scene(), load_kernel("xp-sp3-x86")).write_dump(image)
    (row,) = rows(image, cache=CACHE, wide=True)
    assert row["StartRoutine"] == "Bfilter!ScUnInitExcludePath+0x30"
    assert row["Yara"].split(",")[0] == "bfilter_message_sender@start"


def test_the_rule_of_the_guide(tmp_path: Path) -> None:
    """The rule that the guide shows is one, and hits the seed's thread where the guide says that it looks."""
    guide = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    rule = guide.partition("```yara\n")[2].partition("```")[0]
    image = tmp_path / "seed.dmp"
    build(seed.scene(), load_kernel("xp-sp3-x86")).write_dump(image)
    path = write(tmp_path, "guide.yar", rule)
    arguments = {"cache": CACHE, "yara_file": path, "no_default_rules": True, "wide": True}
    assert [row["Yara"] for row in rows(image, **arguments)] == ["sends_with_a_mutex@start"]


def test_a_hit_says_where() -> None:
    """A hit is written as the column shows it."""
    assert [str(YaraHit("r", "d", at_start, 1)) for at_start in (True, False)] == ["r@start", "r"]
