"""The examples in the guide: rows of the plugin on synthetic machines, written between each page's markers.

    python -m docs.examples

A marker names a situation (`<!-- example: detach-running -->`, up to `<!-- end -->`), the scene `seed`, or
`seed-evidence`, which is that scene with the evidence behind its Origin. Each block shows the first row that has the
page's finding, without the columns that say nothing about it.
"""

from __future__ import annotations

import re
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import volatility3.plugins
from volatility3.framework.interfaces.renderers import BaseAbsentValue
from volatility3.framework.renderers import UnreadableValue, format_hints

from apcaudit import show
from apcaudit.synthetic import situations
from apcaudit.synthetic.assembly import Slot
from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import Kernel, load_kernel
from apcaudit.synthetic.scene import Driver, Process, Scene, Thread
from apcaudit.synthetic.scenes import SCENES
from apcaudit.synthetic.situations import owners
from apcaudit.synthetic.situations.situation import (
    BYSTANDER,
    RUNNING,
    SERVICE,
    SPECIAL,
    TIED,
    Situation,
)
from tests.volatility import construct, rows

DOCS = Path(__file__).resolve().parent
PLUGINS = str(DOCS.parent / "vol_plugins")
#: The kernels of the examples: each situation is shown on the first that can have it.
KERNELS = ("10-19041-x64", "7-sp1-x64", "11-26100-x64")
#: The examples of the seed's scene, and whether the explanation gives the evidence behind the origin.
SEED = {"seed": False, "seed-evidence": True}
WIDTH = 100
README = DOCS.parent / "README.md"
README_WIDTH = 110

_EXAMPLE = re.compile(r"(<!-- example: ([a-z0-9-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

#: A driver of ours whose thread sends to a service, over and over, as it should not.
SENDER = Driver(
    "avsend.sys",
    exports={"AvSendThread": 0x1000},
    imports={
        "nt": ("KeEnterCriticalRegion", "KeLeaveCriticalRegion", "ExAcquireFastMutex", "ExReleaseFastMutex"),
        "fltMgr.sys": ("FltSendMessage",),
    },
    code={
        0x1000: (
            b"\x48\x83\xec\x28",  # sub rsp, 28h
            *(b"\xff\x15", Slot("KeEnterCriticalRegion")),
            *(b"\xff\x15", Slot("ExAcquireFastMutex")),
            *(b"\xff\x15", Slot("FltSendMessage")),
            *(b"\xff\x15", Slot("ExReleaseFastMutex")),
            *(b"\xff\x15", Slot("KeLeaveCriticalRegion")),
            b"\xeb\xe0",  # jmp behind the sub
        )
    },
)

#: What no situation shows: a queue longer than the audit follows, a thread of a process that is on no list, and what
#: the code of a thread does.
OWN = (
    Situation(
        "hidden-process",
        "a thread of a process that was taken off PsActiveProcessHead",
        {"start": 0x7FF01000},
        {"hidden-process": "high"},
        owner="ghost.exe",
    ),
    Situation(
        "list-truncated",
        "an APC list that does not end",
        {**RUNNING, "kernel_apcs": (SPECIAL,) * 4097},
        {"list-truncated": "medium"},
    ),
    Situation(
        "sends-with-apcs-disabled",
        "attached inside of FltSendMessage, which its start routine calls in a loop with APCs disabled in two ways",
        {**RUNNING, "attached_to": SERVICE, "kernel_apcs": (SPECIAL,), "start": "avsend!AvSendThread"},
        {
            "detach-bugcheck": "high",
            "flt-send-under-fast-mutex": "medium",
            "flt-send-loop": "low",
            "apc-disabled-across-wait": "low",
        },
    ),
)
SITUATIONS = {each.name: each for each in (*situations.SITUATIONS, *OWN)}

_HEAD = ("Thread", "Process", "TID", "State")
_TAIL = ("Severity", "Findings", "Explanation")
_ATTACH = ("Attached", "ApcStateIndex")
_DELIVERY = ("KernelApcPending", "KernelApcDisable", "SpecialApcDisable", "WaitIrql")
_START = ("StartAddress", "StartRoutine")
_APC = ("Queue", "Apc", "Kind", "KernelRoutine")
_QUEUE = ("KernelApcPending", *_APC)
_ROUTINES = (*_APC, "NormalRoutine", "RundownRoutine")

_TARGET = (*_APC, "NormalRoutine", "Target", "Origin")

#: The columns that matter, by situation or by finding; an APC's four where nothing is said.
FIELDS: dict[str, tuple[str, ...]] = {
    "seed": (*_ATTACH, "KernelApcInProgress", "KernelApcPending", "WaitIrql", "StartRoutine", *_APC, "Origin"),
    "seed-evidence": (*_APC, "Origin"),
    "detach-bugcheck": (*_ATTACH, "KernelApcInProgress", "KernelApcPending", "StartRoutine", *_APC),
    "undelivered": (*_ATTACH, *_DELIVERY, *_APC),
    "stuck-deliverable": (*_DELIVERY, *_APC),
    "pending-empty": ("ApcStateIndex", *_DELIVERY, "Queue"),
    "pending-lost": (*_DELIVERY, *_APC),
    "exit-bugcheck": ("KernelApcDisable", "SpecialApcDisable", *_APC),
    "lost-apc": ("ApcStateIndex", "KernelApcPending", "Queue"),
    "embedded-apc-altered": ("StartAddress", "Queue"),
    "apc-disabled-in-user-wait": ("KernelApcDisable", "SpecialApcDisable", "Queue"),
    "suspended-but-not": ("KernelApcInProgress", "Queue"),
    "start-in-data": _START,
    "suspended-in-place": (*_QUEUE, "NormalRoutine", "Origin"),
    "flt-send-loop": (*_ATTACH, *_START),
    "apc-disabled-across-wait": (*_ATTACH, *_START),
    "state-mismatch": _ATTACH,
    "not-queueable": _START,
    "orphan-start": _START,
    "unloaded-start": _START,
    "module-conflict": _START,
    "hidden-thread": ("Views", *_START),
    "hidden-process": ("Views", *_START),
    "list-broken": _QUEUE,
    "list-cycle": _QUEUE,
    "list-truncated": _QUEUE,
    "routine-unbacked": (*_ROUTINES, "Origin"),
    "routine-unloaded": (*_ROUTINES, "Origin"),
    "routine-user-address": _ROUTINES,
    "routine-not-code": _ROUTINES,
    "kernel-normal-in-user-apc": _ROUTINES,
    "user-apc-early": _TARGET,
    "user-apc-gadget": (*_TARGET, "NormalContext"),
    "user-apc-loader": (*_TARGET, "NormalContext"),
    "user-apc-nowhere": _TARGET,
    "user-apc-patched-image": _TARGET,
    "user-apc-private-code": _TARGET,
    "user-apc-wow64": _TARGET,
    "special-user-apc": _TARGET,
    "environment-mismatch": (*_ATTACH, *_APC),
    "off-list-apc": ("Views", *_ROUTINES, "Origin"),
}


def pages() -> list[Path]:
    """Return every page of the guide."""
    return sorted(DOCS.rglob("*.md"))


def names(text: str) -> list[str]:
    """Return the situations whose example a page shows."""
    return [match[2] for match in _EXAMPLE.finditer(text)]


def updated(page: Path, rows: dict[str, list[dict[str, Any]]]) -> str:
    """Return a page's text with its examples as the plugin prints them now.

    Args:
        page: its file name is the finding's code; a page of another name shows the thread's first row.
        rows: of each situation, as `audited` gives them.
    """

    def example(match: re.Match[str]) -> str:
        if not rows.get(match[2]):
            raise SystemExit(f"{page.name}: the audit has no row of the situation {match[2]}")
        return f"{match[1]}{block(page.stem, match[2], rows[match[2]])}{match[4]}"

    return _EXAMPLE.sub(example, page.read_text(encoding="utf-8"))


def block(code: str, name: str, rows: list[dict[str, Any]]) -> str:
    """Return one example: the columns that matter of the first row that has the finding."""
    having = [row for row in rows if code in row["Findings"].split(",")]
    row = having[0] if having else rows[0]
    fields = FIELDS.get(name) or FIELDS.get(code, _APC)
    width = max(map(len, (*_HEAD, *fields, *_TAIL))) + 2
    lines: list[str] = []
    for field in (*_HEAD, *fields, *_TAIL):
        lines += textwrap.wrap(
            shown(row[field]),
            WIDTH,
            initial_indent=f"{field + ':':{width}}",
            subsequent_indent=" " * width,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(["```text", *lines, "```", ""])


def shown(value: Any) -> str:
    """Show a value as vol's table does."""
    if isinstance(value, BaseAbsentValue):
        return "-" if isinstance(value, UnreadableValue) else "N/A"
    return f"{value:#x}" if isinstance(value, format_hints.Hex) else str(value)


def audited(wanted: Iterable[str], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Build the machines that have these situations and audit them: the rows of each situation's thread."""
    chosen = set(wanted)
    found = {name: seed_rows(folder / name, wide=SEED[name]) for name in chosen & set(SEED)}
    for kernel, shown_on in on_kernels(chosen - set(SEED)):
        tids = {situations.FIRST_TID + 4 * at: SITUATIONS[name] for at, name in enumerate(in_order(shown_on))}
        for row in rows_of(build(scene(tids, kernel), kernel), folder / kernel.name, wide=False):
            if row["TID"] in tids:
                found.setdefault(tids[row["TID"]].name, []).append(row)
    return found


def on_kernels(chosen: set[str]) -> Iterator[tuple[Kernel, set[str]]]:
    """Yield the kernels that are needed, each with the situations that are shown on it."""
    left = set(chosen)
    for name in KERNELS:
        kernel = load_kernel(name)
        possible = {each for each in left if SITUATIONS[each].fits(kernel)}
        if possible:
            yield kernel, possible
        left -= possible


def in_order(chosen: set[str]) -> list[str]:
    """Order the situations that share a machine: ours last, so that they move no other's addresses."""
    own = {each.name for each in OWN}
    return sorted(chosen, key=lambda name: (name in own, name))


def scene(tids: dict[int, Situation], kernel: Kernel) -> Scene:
    """Declare the machine that has these situations by TID, otherwise that of the test suite."""
    machine = situations.of(kernel)
    former = machine.unloaded[0].start

    def threads(owner: str) -> tuple[Thread, ...]:
        return tuple(each.thread(tid, former) for tid, each in tids.items() if each.owner == owner)

    listed = (
        Process("System", 4, (Thread(tid=BYSTANDER), Thread(tid=TIED, **RUNNING), *threads("System"))),
        *(owners.process(name, kernel, threads(name)) for name in owners.wanted(tids.values())),
    )
    hidden = Process("ghost.exe", 3600, threads("ghost.exe"), in_process_list=False)
    events = tuple(each.event(tid) for tid, each in tids.items() if each.after is not None)
    processes = (*listed, hidden) if hidden.threads else listed
    # Last, so that it moves no other driver.
    return replace(machine, processes=processes, drivers=(*machine.drivers, SENDER), events=events)


def seed_rows(folder: Path, *, wide: bool) -> list[dict[str, Any]]:
    """Audit the seed's crash and return the rows of the thread that crashed."""
    case = SCENES["seed"]()
    rows = rows_of(build(case, load_kernel(case.kernel)), folder, wide=wide)
    return [row for row in rows if row["TID"] == case.crashing_thread]


def rows_of(image: Image, folder: Path, *, wide: bool) -> Iterator[dict[str, Any]]:
    """Audit an image with --scan; `wide` is whether the explanation gives the evidence behind the origin."""
    _use_checkout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "image.dmp"
    image.write_dump(path)
    plugin = construct(path, "windows.apcaudit.ApcAudit", cache=folder / "cache", kernel=image.kernel)
    audit, threads = plugin.stream(plugin.context, plugin.config["kernel"], scan=True)
    columns = import_module("volatility3.plugins.windows.apcaudit.output.columns")
    for thread in threads:
        for row in columns.rows_of(thread, audit.facts, wide=wide):
            yield {column.name: column.value(row) for column in columns.COLUMNS}


def readme_updated(text: str, folder: Path) -> str:
    """Return the README's text with the seed's card and row as the program prints them now."""
    (row,) = seed_table(folder)
    card = "\n".join(show.cards([row], README_WIDTH))
    table = "\n\n".join(["\t".join(row), "\t".join(map(shown, row.values()))])
    text = re.sub(r"```\nCRITICAL.*?\n```", lambda _: f"```\n{card}\n```", text, flags=re.DOTALL)
    return re.sub(
        r"(Volatility 3 Framework [0-9.]+\n\n).*?\n```", lambda match: f"{match[1]}{table}\n```", text, flags=re.DOTALL
    )


def _use_checkout() -> None:
    """Let vol find the checkout's plugin, whether a copy is installed or not."""
    if PLUGINS not in volatility3.plugins.__path__:
        volatility3.plugins.__path__.insert(0, PLUGINS)


def seed_table(folder: Path) -> list[dict[str, Any]]:
    """Return the rows that vol prints of the seed's crash dump, by the columns that it shows without --wide."""
    _use_checkout()
    case = SCENES["seed"]()
    folder.mkdir(parents=True, exist_ok=True)
    build(case, load_kernel(case.kernel)).write_dump(folder / "seed.dmp")
    return rows(folder / "seed.dmp", cache=folder / "cache")


def main() -> int:
    """Write the examples of every page and of the README anew and name those that changed."""
    with tempfile.TemporaryDirectory() as folder:
        readme = README.read_text(encoding="utf-8")
        text = readme_updated(readme, Path(folder))
        if text != readme:
            README.write_text(text, encoding="utf-8")
            print(README.name)
    with tempfile.TemporaryDirectory() as folder:
        rows = audited((name for page in pages() for name in names(page.read_text(encoding="utf-8"))), Path(folder))
    # All of them before any is written: an error leaves no half of the guide changed.
    texts = {page: updated(page, rows) for page in pages()}
    for page, text in texts.items():
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(page.relative_to(DOCS.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
