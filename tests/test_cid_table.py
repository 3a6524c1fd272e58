"""PspCidTable: both encodings of entries, one to three levels, and nothing in it trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.formats.layout import Member
from volatility3.plugins.windows.apcaudit.threads.kernel_views import EntryDecoder, read_cid_table

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Thread
from tests.views_image import Change, audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "10-19041-x86"])

# Layout of an entry, its bytes, and the object's address: the first as in the PDBs of XP, 7 x64, 10 x64 and 10 x86.
ENTRIES = [
    pytest.param(Member(0, 4), 8, 4, "09304e8a 00000000", 0x8A4E3008, id="xp-x86"),
    pytest.param(Member(0, 8), 16, 8, "61204b0380faffff 0000000000000000", 0xFFFFFA80034B2060, id="7-x64"),
    pytest.param(
        Member(0, 8, shift=20, bits=44), 16, 8, "0100809000008aff 0000000000000000", 0xFFFFFF8A00009080, id="10-x64"
    ),
    pytest.param(Member(0, 4, shift=3, bits=29), 8, 4, "41b05288 00000000", 0x8852B040, id="10-x86"),
]


@pytest.mark.parametrize(("member", "size", "pointer", "entry", "address"), ENTRIES)
def test_entry(member: Member, size: int, pointer: int, entry: str, address: int) -> None:
    """An entry's lock, attributes and reference count are no part of the address."""
    page = (bytes(5 * size) + bytes.fromhex(entry)).ljust(4096, b"\0")
    assert EntryDecoder(member, size, pointer)(page) == [0] * 5 + [address] + [0] * (4096 // size - 6)


@KERNELS
@pytest.mark.parametrize(("last", "levels"), [(0x1C, 0), (0x4000, 1)])
def test_levels(kernel: str, last: int, levels: int, tmp_path: Path) -> None:
    """Each ID leads to the object that was entered under it, however many levels the table has."""
    found = audited(kernel, tmp_path, (Thread(8), Thread(last)))
    table = read_cid_table(found.audit.kernel)
    system = found.image.address_of["process:4"]
    assert dict(table.objects.items()) == {4: system, 8: found.image.address_of[8], last: found.image.address_of[last]}
    assert table.evidence
    assert found.views(last) == "cid+list"


@pytest.mark.parametrize("kernel", ["7-sp1-x86", "10-19041-x64"])
def test_three_levels(kernel: str, tmp_path: Path) -> None:
    """A table of three levels is read to its last page."""
    last = 4 * (4096 // (8 if "x86" in kernel else 16)) * (4096 // (4 if "x86" in kernel else 8)) + 8
    found = audited(kernel, tmp_path, (Thread(8), Thread(last)))
    assert found.views(last) == "cid+list"


def _overwrite(tid: int, value: int) -> Change:
    def change(image: Image) -> None:
        memory = image.memory
        table = memory.read_pointer(image.kernel.address("PspCidTable"))
        code = memory.read(table, "_HANDLE_TABLE", "TableCode")
        size = memory.size("_HANDLE_TABLE_ENTRY")
        image.write((code & ~7) + tid // 4 * size, value.to_bytes(8, "little"))

    return change


@KERNELS
@pytest.mark.parametrize("value", [0xFFFFFFFFFFFFFFFF, 0x4141414141414141, 0x1000, 1], ids=hex)
def test_garbage_entries_find_nobody(kernel: str, value: int, tmp_path: Path) -> None:
    """An entry that leads to no thread adds none, and breaks nothing."""
    found = audited(kernel, tmp_path, (Thread(8), Thread(12)), changes=(_overwrite(16, value),))
    assert {tid for tid in found.of if tid} == {8, 12}
    assert found.codes(8) == found.codes(12) == {}


@KERNELS
def test_undecodable_table_is_no_evidence(kernel: str, tmp_path: Path) -> None:
    """Where System does not stand under its own ID, the decoding is in doubt, and nobody is missing from the table."""
    found = audited(kernel, tmp_path, (Thread(8, in_cid_table=False),), changes=(_overwrite(4, 0),))
    assert found.codes(8) == {}


@KERNELS
def test_a_table_without_threads_is_no_evidence(kernel: str, tmp_path: Path) -> None:
    """Where the table has System but none of its threads, it was never filled with threads: nobody is hidden."""
    threads = (Thread(8, in_cid_table=False), Thread(12, in_cid_table=False))
    found = audited(kernel, tmp_path, threads)
    assert found.codes(8) == found.codes(12) == {}


@KERNELS
def test_a_thread_taken_out_of_the_table(kernel: str, tmp_path: Path) -> None:
    """Where the table has System and another thread of it, a thread that it lacks was taken out."""
    found = audited(kernel, tmp_path, (Thread(8), Thread(12, in_cid_table=False)))
    assert found.codes(8) == {}
    assert found.codes(12) == {"hidden-thread": "high"}
