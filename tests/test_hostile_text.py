"""Text out of an image is data: hostile names in every place that a name comes from, in every output of vol."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, IoStackLocation, Irp, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL, NTFS
from tests import volatility

ROOT = Path(__file__).parents[1]
KERNEL = "10-19041-x64"

#: A formula, an escape sequence that clears the screen, line ends, a tab, quotes and separators.
ANSI = b'=\x1b[2J\r\n\t",;\x9b1m'
#: The same with a right-to-left override, a NUL, a lone surrogate, an invisible tag, a zero-width and a wide space.
WIDE = (
    "=cmd|' /C calc'!A0\x1b]0;x\x07\r\n\t\",\u202egnp.exe\0\u200b\u3000\U000e0041".encode("utf-16-le")
    + b"\x00\xd8"
    + "<script>\u2028".encode("utf-16-le")
)
#: What no output may hold of it.
ACTING = ("\x1b", "\r", "\x07", "\x9b", "\u202e", "\u200b", "\u2028", "\U000e0041", "\ud800", "\0")

_IRP = Irp(stack=(IoStackLocation("disk.sys", major=0xE),), file_name="secret.txt")


def _rename(image: Image, address: int, kind: str, path: str, at: int) -> None:
    """Give a UNICODE_STRING member 32 KiB of hostile text."""
    memory = image.memory
    text = (WIDE * (0x7FFE // len(WIDE) + 1))[:0x7FFE]
    memory.space.map(at, len(text))
    image.write(at, text)
    memory.write(address, kind, f"{path}.Length", len(text))
    memory.write(address, kind, f"{path}.MaximumLength", len(text))
    memory.write(address, kind, f"{path}.Buffer", at)


def _hostile(image: Image) -> None:
    named, memory = image.address_of, image.memory
    at = 0xFFFFAB8490000000
    entry = "_KLDR_DATA_TABLE_ENTRY" if memory.layout.has_type("_KLDR_DATA_TABLE_ENTRY") else "_LDR_DATA_TABLE_ENTRY"
    for module in ("module:fltMgr.sys", "module:disk.sys"):
        for path in ("BaseDllName", "FullDllName"):
            _rename(image, named[module], entry, path, at)
            at += 0x10000
    _rename(image, named["driver-object:disk.sys"], "_DRIVER_OBJECT", "DriverName", at)
    _rename(image, named["file:secret.txt"], "_FILE_OBJECT", "FileName", at + 0x10000)
    service = named["process:svchost.exe"]
    memory.write(service, "_EPROCESS", "ImageFileName", ANSI)
    # A list that does not close, so that the process is named in the log.
    memory.write_pointer(named[804] + memory.offset("_ETHREAD", "ThreadListEntry"), 0)


@dataclass(frozen=True, slots=True)
class Machine:
    """The image, the hash of it before it was audited, and the folder for vol's cache."""

    path: Path
    digest: str
    cache: Path


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Build a machine all of whose names are hostile."""
    apcs = (
        Apc("nt!IopCompleteRequest", irp=_IRP, label="irp"),
        Apc("disk+0x2000"),
        Apc("fltMgr!FltSendMessage", normal_routine="fltMgr!FltSendMessage"),
    )
    running = {"state": "Running", "wait_reason": "Executive", "kernel_apc_pending": True}
    processes = (
        Process(
            "System", 4, (Thread(0x400, attached_to="svchost.exe", kernel_apcs=apcs, start="disk+0x2100", **running),)
        ),
        Process(
            "svchost.exe", 800, (Thread(804, user_apcs=(Apc("disk+0x2000", normal_routine=0x401000),)), Thread(808))
        ),
    )
    scene = Scene("hostile", "names", KERNEL, processes, (HAL, FLTMGR, NTFS, DISK), events=(_hostile,))
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / "hostile.dmp"
    build(scene, load_kernel(KERNEL)).write_dump(path)
    (folder / "cache").mkdir()
    volatility.put_index(folder / "cache")
    path.chmod(0o444)
    return Machine(path, hashlib.sha256(path.read_bytes()).hexdigest(), folder / "cache")


def vol(machine: Machine, renderer: str, *options: str) -> tuple[str, str]:
    """Run vol on the machine; give what it wrote to stdout and to stderr."""
    arguments = ("--offline", "-r", renderer, "--cache-path", machine.cache)
    places = ("-p", ROOT / "vol_plugins", "-s", ROOT / "symbols", "-f", machine.path)
    done = volatility.vol(*arguments, *places, "windows.apcaudit", *options, cwd=machine.cache)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def harmless(text: str) -> None:
    """Check that text holds nothing that acts."""
    assert [each for each in ACTING if each in text] == []


def test_terminal(machine: Machine) -> None:
    """No control, escape or bidirectional character reaches the terminal, and no name is longer than its bound."""
    out, _ = vol(machine, "quick", "--wide")
    harmless(out)
    lines = [line for line in out.splitlines() if line.startswith("0x")]
    assert lines
    # Each line has every column: no tab and no line end came out of a name.
    assert len({line.count("\t") for line in lines}) == 1
    assert "=\\x1b[2J\\x0d\\x0a\\x09" in out


def test_csv(machine: Machine) -> None:
    """A CSV reader gets the rows back; formulas are left to vol, whose writer of CSV it is (SECURITY.md)."""
    out, _ = vol(machine, "csv", "--wide")
    harmless(out)
    table = list(csv.reader(io.StringIO(out[out.index("TreeDepth") :]), escapechar="\\"))
    assert len({len(row) for row in table if row}) == 1


def test_json_lines(machine: Machine) -> None:
    """Each line is one JSON object, and its strings hold nothing that acts once they are decoded."""
    out, _ = vol(machine, "jsonl", "--wide")
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert {row["PID"] for row in rows} == {4, 800}
    # What only a spreadsheet would act on is as it is in memory.
    assert {row["Process"][:9] for row in rows} == {"System", "=\\x1b[2J\\"}
    for row in rows:
        for value in row.values():
            if isinstance(value, str):
                harmless(value)
                assert "\n" not in value
                assert "\t" not in value


def test_log(machine: Machine) -> None:
    """A name that is told in a warning cannot act on the terminal either."""
    _, log = vol(machine, "quick")
    told = [line for line in log.splitlines() if "does not close" in line]
    assert told
    harmless("".join(told))
    assert "=\\x1b[2J" in told[0]


def test_evidence_is_only_read(machine: Machine) -> None:
    """An audit with --scan changes no byte of the image and leaves no file beside it or in the working directory."""
    before = {path.name for path in machine.path.parent.iterdir()}
    vol(machine, "quick", "--scan", "--all")
    assert hashlib.sha256(machine.path.read_bytes()).hexdigest() == machine.digest
    assert {path.name for path in machine.path.parent.iterdir()} == before
    left = {path.name for path in machine.cache.iterdir()}
    assert left <= {"data.cache", "identifier.cache", "apcaudit_kernel_symbols"} | {
        name for name in left if name.startswith(("data_", "identifier")) or name.endswith(".cache")
    }
