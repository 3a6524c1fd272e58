"""A kernel whose PDB lacks structures: whose it is given, whether they fit the image, and what is said of it."""

from __future__ import annotations

import copy
import json
import logging
import lzma
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import volatility3.symbols
from volatility3.framework.exceptions import UnsatisfiedException
from volatility3.plugins.windows.apcaudit import ApcAudit
from volatility3.plugins.windows.apcaudit.formats.layout import Member
from volatility3.plugins.windows.apcaudit.formats.symbol_file import IsfTypes, merge_types, missing_types, size_conflict
from volatility3.plugins.windows.apcaudit.output.document import Document

from apcaudit.synthetic import intermediate
from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.intermediate import Pdb
from apcaudit.synthetic.isf import relative_path
from apcaudit.synthetic.kernels import OWN, TYPES_ONLY, Kernel, load_kernel
from apcaudit.synthetic.scene import Apc, Process, Scene, Thread
from tests.volatility import REPOSITORY_SYMBOLS, construct

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

SHIPPING = OWN | TYPES_ONLY
THREADS = ("_ETHREAD", "_KTHREAD")

# What Microsoft's PDBs of XP lack: every type (volatility3 issue 242).
EVERYTHING = "everything"

Lacking = Collection[str] | str


@dataclass(frozen=True, slots=True)
class Case:
    """A built image whose kernel's symbol file lacks types, ready to be audited."""

    image: Image
    path: Path
    symbols: tuple[Path, ...]
    cache: Path

    def plugin(self, name: str = "windows.apcaudit.ApcAudit") -> Any:
        """Make a plugin over the image."""
        return construct(self.path, name, cache=self.cache, symbols=self.symbols)

    def audit(self) -> Document:
        """Audit the image."""
        plugin = self.plugin()
        return ApcAudit.audit(plugin.context, plugin.config["kernel"])


def stripped(kernel: Kernel, lacking: Lacking) -> dict[str, Any]:
    """Return a kernel's symbol file without some types."""
    document = intermediate.to_document(kernel.layout, kernel.addresses, kernel.pdb, (*kernel.version, 0), "test")
    types = document["user_types"]
    document["user_types"] = {} if lacking == EVERYTHING else {k: v for k, v in types.items() if k not in lacking}
    if lacking == EVERYTHING:
        document["enums"] = {}
    # What pdbconv writes has no version of the kernel file.
    del document["metadata"]["windows"]["pe"]
    return document


def case(
    name: str,
    folder: Path,
    lacking: Lacking,
    *,
    build_number: int | None = None,
    change: Callable[[Image], None] = lambda _: None,
) -> Case:
    """Build a machine with a stuck thread for a kernel of ours, under another GUID and with a poorer symbol file."""
    own = load_kernel(name)
    version = own.version if build_number is None else (*own.version[:2], build_number)
    # A GUID of its own: not one that ships.
    kernel = replace(own, pdb=Pdb(own.pdb.name, "A9C0DEEE" + own.pdb.guid[8:], 1), version=version)
    stuck = Thread(
        8, attached_to="svchost.exe", wait_irql=1, kernel_apc_pending=True, kernel_apcs=(Apc(label="stuck"),)
    )
    service = Process("svchost.exe", 1000, (Thread(1004, start=0x1000, system=False),))
    system = Process("System", 4, (stuck, *(Thread(tid) for tid in range(12, 48, 4))), parent=0)
    image = build(Scene("fallback", "", name, (system, service)), kernel)
    change(image)
    path = folder / "fallback.dmp"
    image.write_dump(path)
    symbols = folder / "symbols"
    file = symbols / relative_path(kernel)
    file.parent.mkdir(parents=True)
    file.write_bytes(lzma.compress(json.dumps(stripped(kernel, lacking)).encode(), preset=0))
    return Case(image, path, (symbols, REPOSITORY_SYMBOLS), folder / "cache")


def borrowed_from(document: Document) -> str:
    assert document.image.borrowed_types is not None
    return document.image.borrowed_types


@pytest.mark.parametrize("lacking", [THREADS, EVERYTHING], ids=["threads", "everything"])
@pytest.mark.parametrize("name", SHIPPING)
def test_the_same_build(name: str, lacking: Lacking, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the types of its own build a kernel that lacks them is audited as any other, and it says whose they are."""
    found = case(name, tmp_path, lacking)
    with caplog.at_level(logging.WARNING):
        document = found.audit()
    (audited,) = document.threads
    assert audited.thread.address == found.image.address_of[8]
    assert [apc.address for queue in audited.thread.queues for apc in queue.apcs] == [
        found.image.address_of["apc:stuck"]
    ]
    assert "detach-bugcheck" in {finding.code for finding in audited.findings}
    assert borrowed_from(document).startswith(f"Windows {'.'.join(map(str, SHIPPING[name].version))}")
    warning = next(record.message for record in caplog.records if "are taken from" in record.message)
    assert "lacks _ETHREAD, _KTHREAD" in warning
    assert SHIPPING[name].pdb.guid in warning
    assert "10 of 10 threads of System agree" in warning
    assert document.image.symbols.startswith(f"{found.image.kernel.pdb.name}/{found.image.kernel.pdb.guid}-1")


@pytest.mark.parametrize(
    ("name", "build_number", "expected"),
    [
        # The nearest by number whose layout is also the image's.
        ("10-19041-x64", 18362, 19041),
        ("7-sp1-x64", 7600, 7601),
        ("11-26100-x64", 25398, 26100),
        ("10-14393-x64", 14393, 14393),
        ("10-17134-x64", 17763, 17134),
        # The nearest by number is another: the image decides.
        ("7-sp1-x64", 9600, 7601),
        ("8.1-x64", 7601, 9600),
        ("10-19041-x64", 9600, 19041),
        ("xp-sp3-x86", 7601, 2600),
        ("10-19041-x86", 2600, 19041),
    ],
)
def test_the_nearest_that_fits(name: str, build_number: int, expected: int, tmp_path: Path) -> None:
    """The build number orders the candidates; what threads of System contradict is not taken."""
    document = case(name, tmp_path, THREADS, build_number=build_number).audit()
    assert f".{expected} " in borrowed_from(document)


def test_none_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types that the image contradicts are not used; the message says what is missing and what to do."""

    def no_threads(image: Image) -> None:
        for tid in range(8, 48, 4):
            image.memory.write(image.address_of[tid], "_ETHREAD", "Tcb.Header.Type", 0)

    found = case("10-19041-x64", tmp_path, THREADS, change=no_threads)
    # The message is made when vol prints it, with the symbol folders as they are then.
    monkeypatch.setattr(volatility3.symbols, "__path__", [*map(str, found.symbols), *volatility3.symbols.__path__])
    with pytest.raises(UnsatisfiedException) as refused:
        construct(found.path, "windows.apcaudit.ApcAudit", cache=found.cache, symbols=found.symbols)
    (requirement,) = refused.value.unsatisfied.values()
    text = requirement.description
    assert "lacks _ETHREAD, _KTHREAD" in text
    assert "none of the 7 that ship fits the image (build 19041)" in text
    assert "0 of 10 threads of System agree" in text
    assert "put a symbol file that has these types in its place" in text


def test_a_few_smeared_threads_do_not_matter(tmp_path: Path) -> None:
    """One thread in eight may contradict the types, as the image of a running machine has them."""

    def smear(image: Image) -> None:
        image.memory.write(image.address_of[20], "_ETHREAD", "Tcb.Header.Type", 0)

    assert ".19041 " in borrowed_from(case("10-19041-x64", tmp_path, THREADS, change=smear).audit())


@pytest.mark.skipif(resource is None, reason="this system has no limit of a file's size")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A completed file that cannot be written is told, and of what was written of it nothing stays."""
    found = case("10-19041-x64", tmp_path, THREADS)
    monkeypatch.setattr(volatility3.symbols, "__path__", [*map(str, found.symbols), *volatility3.symbols.__path__])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Vol's index is far smaller than the completed file, so it is written.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, before[1]))
    try:
        with pytest.raises(UnsatisfiedException) as refused:
            construct(found.path, "windows.apcaudit.ApcAudit", cache=found.cache, symbols=found.symbols)
        (requirement,) = refused.value.unsatisfied.values()
        text = requirement.description
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"cannot be written into {found.cache}" in text
    assert "File too large" in text
    assert [path for path in found.cache.rglob("*.json") if "apcaudit_types" in str(path)] == []


def test_other_plugins_run_too(tmp_path: Path) -> None:
    """Vol refuses the symbol file for every plugin; completed, it serves them all."""
    plugin = case("xp-sp3-x86", tmp_path, EVERYTHING).plugin("windows.pslist.PsList")
    names: list[str] = []
    plugin.run().populate(lambda node, _: names.append(str(node.values[2])), None)
    assert "svchost.exe" in names


def test_a_complete_file_is_left_alone(tmp_path: Path) -> None:
    """A kernel whose symbol file has all structures borrows nothing."""
    document = case("10-19041-x64", tmp_path, ()).audit()
    assert document.image.borrowed_types is None


DOCUMENT: dict[str, Any] = {
    "metadata": {"producer": {"name": "pdbconv"}},
    "base_types": {"pointer": {"size": 8, "signed": False}, "char": {"size": 1, "signed": True}},
    "enums": {},
    "symbols": {"A": {"address": 1}},
    "user_types": {
        "_LIST_ENTRY": {
            "kind": "struct",
            "size": 16,
            "fields": {
                name: {"offset": at, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "_LIST_ENTRY"}}}
                for name, at in (("Flink", 0), ("Blink", 8))
            },
        },
        "__unnamed_1": {
            "kind": "union",
            "size": 1,
            "fields": {"Signed": {"offset": 0, "type": {"kind": "base", "name": "char"}}},
        },
        "_THING": {
            "kind": "struct",
            "size": 40,
            "fields": {
                "Links": {
                    "offset": 0,
                    "type": {"kind": "array", "count": 2, "subtype": {"kind": "struct", "name": "_LIST_ENTRY"}},
                },
                "u1": {"offset": 32, "type": {"kind": "union", "name": "__unnamed_1"}},
                "Bits": {
                    "offset": 33,
                    "type": {
                        "kind": "bitfield",
                        "bit_position": 2,
                        "bit_length": 3,
                        "type": {"kind": "base", "name": "char"},
                    },
                },
            },
        },
    },
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Links[1].Blink", (24, 8, False, 0, None)),
        ("Links[2].Blink", None),
        ("Signed", (32, 1, True, 0, None)),
        ("Bits", (33, 1, False, 2, 3)),
        ("Nothing", None),
        ("Signed.Nothing", None),
    ],
)
def test_members_of_a_document(path: str, expected: tuple[Any, ...] | None) -> None:
    """A member is found by its path, through arrays and anonymous unions, with its bits."""
    assert IsfTypes(DOCUMENT).member("_THING", path) == (None if expected is None else Member(*expected))


def test_anonymous_types_are_kept_apart() -> None:
    """What one file calls __unnamed_1 is not what another calls so."""
    own = copy.deepcopy(DOCUMENT)
    del own["user_types"]["_THING"]
    own["user_types"]["__unnamed_1"] = {"kind": "union", "size": 4, "fields": {}}
    assert missing_types(own, DOCUMENT) == ["_THING"]
    both = merge_types(own, DOCUMENT, "donor")
    assert IsfTypes(both).member("_THING", "Signed") == IsfTypes(DOCUMENT).member("_THING", "Signed")
    assert both["user_types"]["__unnamed_1"]["size"] == 4
    assert both["metadata"]["producer"]["name"] == "apcaudit, types from donor"
    assert own["metadata"]["producer"]["name"] == "pdbconv"


def test_embedded_structures_must_agree() -> None:
    """A structure that embeds one which has another size in this kernel is laid out otherwise in it."""
    own = copy.deepcopy(DOCUMENT)
    del own["user_types"]["_THING"]
    assert size_conflict(own, DOCUMENT) is None
    own["user_types"]["_LIST_ENTRY"]["size"] = 8
    assert size_conflict(own, DOCUMENT) == "_LIST_ENTRY has 0x8 bytes, not 0x10"
