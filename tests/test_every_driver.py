"""--yara-all: every driver is scanned, and what hits is told of drivers in which no suspect thread starts, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit import signatures as signatures_module
from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.kernel import Kernel, read_kernel
from volatility3.plugins.windows.apcaudit.signatures import Signatures

from apcaudit.synthetic.damage import unmap_page
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Driver, Thread
from apcaudit.synthetic.scenes.common import FLTMGR, HAL
from tests.driver_objects import unlisted_driver
from tests.signed_drivers import MARKED, marked, only, write
from tests.views_image import audited
from tests.volatility import CACHE, alone, construct, rows

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])


@KERNELS
def test_every_driver(kernel: str, tmp_path: Path) -> None:
    """With --yara-all a driver that is hit has its threads listed, and is named where none starts in it."""
    found = marked(kernel, tmp_path)
    rules = write(
        tmp_path,
        "rules.yar",
        'rule marked { strings: $a = "MARK-ONE" condition: $a }\n'
        'rule manager { condition: driver iequals "fltMgr" and imports contains "KeWaitForMultipleObjects" }',
    )
    plugin = construct(
        tmp_path / "views.raw",
        "windows.apcaudit.ApcAudit",
        cache=CACHE,
        kernel=found.image.kernel,
        yara_file=rules,
        no_default_rules=True,
        yara_all=True,
        wide=True,
    )
    listed = {}

    def visit(node: object, _: object) -> None:
        values = dict(zip((column.name for column in grid.columns), node.values, strict=True))  # type: ignore[attr-defined]
        listed[values["TID"]] = values["Yara"]

    grid = plugin.run()
    grid.populate(visit, None)
    assert {tid: listed.get(tid) for tid in (8, 12, 16)} == {8: "marked@start", 12: "marked", 16: "marked@start"}
    signatures = Signatures(_kernel(plugin), only(file=rules, every_driver=True))
    assert not signatures.is_hit_at(0)
    assert any("manager in fltMgr" in note and "no listed thread starts" in note for note in signatures.notes)


def _kernel(plugin: Any) -> Kernel:
    return read_kernel(plugin.context, plugin.config["kernel"])


@KERNELS
def test_every_driver_at_the_starts_in_it(kernel: str, tmp_path: Path) -> None:
    """With --yara-all a rule that asks for the start sees that of every system thread, suspect or not."""
    threads = (Thread(8, start="Marked!First"), Thread(12, start="Marked!Second"))
    found = audited(kernel, tmp_path, threads, drivers=(HAL, FLTMGR, MARKED))
    rules = 'rule one { strings: $a = "MARK-ONE" condition: $a in (start_rva..start_rva + start_size) }'
    options = only(file=write(tmp_path, "rules.yar", rules), every_driver=True)
    audit = Audit(*found.source, rules=options)
    assert {each.thread.members.tid: each.yara for each in audit.run(Selection())} == {8: "one@start"}


def test_unlisted_images_of_driver_objects(shared: Path, tmp_path: Path) -> None:
    """With --yara-all an image that only a driver object tells of is scanned, and rules see that it is hidden."""
    kernel = shared / "symbols" / "windows" / "ntkrnlmp.pdb" / "5278AFF86C341677D7D7835C85B7B844-1.json.xz"
    image, symbols, loaded = unlisted_driver(
        kernel, tmp_path, start="nt!ExpWorkerThread", code={0x1400: b"MARK-HIDDEN"}
    )
    rules = 'rule unlisted { strings: $a = "MARK-HIDDEN" condition: $a and hidden and driver == "Ghost" }'
    plugin = construct(image, "windows.apcaudit.ApcAudit", cache=CACHE, symbols=(symbols,), kernel=loaded)
    options = only(file=write(tmp_path, "rules.yar", rules), every_driver=True)
    document = plugin.audit(plugin.context, plugin.config["kernel"], rules=options)
    assert [note for note in document.notes if "unlisted in Ghost" in note] != []


def test_hits_of_a_minidump_are_told(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a minidump, whose lists nobody expects to be whole, hits are told as loudly as of any image, the rest is not.

    The bytes are the call before the return address amdppm+313f, which the dump has.
    """
    minidump = shared / "samples" / "triage_x64.dmp"
    rule = "rule call { strings: $a = { E8 9D 01 00 00 } condition: $a at 0x313a }"
    kernel = shared / "symbols" / "windows" / "ntkrnlmp.pdb" / "5278AFF86C341677D7D7835C85B7B844-1.json.xz"
    symbols = alone(kernel, tmp_path)
    arguments = {"symbols": (symbols,), "yara_file": write(tmp_path, "rules.yar", rule), "yara_all": True}
    rows(minidump, cache=CACHE, no_default_rules=True, **arguments)
    told = [record.getMessage() for record in caplog.records if record.name.endswith("apcaudit")]
    # The crash comes first, as of any crash dump.
    assert [message.partition(" at ")[0] for message in told[1:]] == ["YARA: call in amdppm"]


def test_drivers_that_claim_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many bytes drivers claim in all, so many are scanned, and the rest is told."""
    monkeypatch.setattr(signatures_module, "EVERY_BOUND", 0x2000)
    found = marked("10-19041-x64", tmp_path)
    audit = Audit(*found.source, rules=only(string="MARK-ONE", every_driver=True))
    list(audit.run(Selection()))
    assert [note for note in audit.notes if "not scanned, since they claim too many bytes: " in note] != []


@KERNELS
def test_an_entry_whose_base_is_no_page(kernel: str, tmp_path: Path) -> None:
    """A base that the list makes up within a page is read from there on; what follows a page in memory is not it."""
    skew = 0x10
    driver = Driver("Marked.sys", size=0x9000, code={0x1410: b"MARK-ONE", 0x3000: b"MARK-GONE"})

    def skewed(image: Image) -> None:
        structure = "_LDR_DATA_TABLE_ENTRY"
        if image.memory.layout.has_type("_KLDR_DATA_TABLE_ENTRY"):
            structure = "_KLDR_DATA_TABLE_ENTRY"
        base = image.address_of["driver:Marked.sys"]
        unmap_page(image, base + 0x3000)
        image.memory.write(image.address_of["module:Marked.sys"], structure, "DllBase", base + skew)

    found = audited(kernel, tmp_path, (Thread(8),), drivers=(HAL, FLTMGR, driver), changes=(skewed,))
    rules = (
        f'rule skewed {{ strings: $a = "MARK-ONE" condition: $a at {0x1410 - skew} }}\n'
        'rule gone { strings: $a = "MARK-GONE" condition: $a }'
    )
    audit = Audit(*found.source, rules=only(file=write(tmp_path, "rules.yar", rules), every_driver=True))
    list(audit.run(Selection()))
    assert [note.partition(" at ")[0] for note in audit.notes if "YARA" in note] == ["YARA: skewed in Marked"]
