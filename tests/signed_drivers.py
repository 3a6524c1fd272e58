"""A driver with marks for YARA rules to find, threads that start in it, and rules over it."""

from __future__ import annotations

from pathlib import Path

from volatility3.plugins.windows.apcaudit.signatures import Signatures
from volatility3.plugins.windows.apcaudit.signatures.options import RuleOptions

from apcaudit.synthetic.scene import Driver, Thread
from apcaudit.synthetic.scenes.common import FLTMGR, HAL
from tests.views_image import Audits, audited

#: Two routines with a mark of their own, in one driver; the mark of the first spans no page, that of .data another.
MARKED = Driver(
    "Marked.sys",
    size=0x9000,
    exports={"First": 0x1400, "Second": 0x1800},
    imports={"nt": ("KeInsertQueueApc",), "fltMgr.sys": ("FltSendMessage",)},
    code={0x1410: b"MARK-ONE", 0x1810: b"MARK-TWO", 0x6F00: b"MARK-DATA"},
)
SUSPECT = {"kernel_apc_pending": True}


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def only(**options: object) -> RuleOptions:
    """Options without the rules that ship."""
    return RuleOptions(defaults=False, **options)  # type: ignore[arg-type]


def signed(found: Audits, rules: str, folder: Path, tid: int, *, every: bool = False) -> list[str] | None:
    """Scan what a thread of an audited image depends on by one rule file: the hits as the column shows them."""
    options = only(file=write(folder, "rules.yar", rules), every_driver=every)
    hits = Signatures(found.audit.kernel, options).scan_thread(found.of[tid].thread)
    return None if hits is None else [str(hit) for hit in hits]


def marked(kernel: str, folder: Path) -> Audits:
    threads = (
        Thread(8, start="Marked!First", **SUSPECT),
        Thread(12, start="Marked!Second", **SUSPECT),
        Thread(16, start="Marked!First"),
        Thread(20, start=0x401000, system=False, **SUSPECT),
    )
    return audited(kernel, folder, threads, drivers=(HAL, FLTMGR, MARKED))
