"""VMware's memory files are read together with the state beside them, packed or not."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from apcaudit.bulk import worker
from apcaudit.bulk.evidence import Evidence, find
from apcaudit.bulk.outcome import Scanned, Settings
from tests import bulk_images
from tests.bulk_images import need_extra

need_extra()

PAGE = 0x1000


def state(regions: list[tuple[int, int, int]]) -> bytes:
    """Make a machine's state that says where its memory's regions lie: first page, page in the file, pages.

    The format is as vol reads it (layers/vmware.py): a header, one group, and its tags.
    """

    def tag(name: str, value: int, *indices: int) -> bytes:
        # The flags: bytes of the value, and in the two high bits how many indices there are.
        head = bytes([4 | len(indices) << 6, len(name)]) + name.encode()
        return head + b"".join(struct.pack("<I", number) for number in (*indices, value))

    tags = tag("regionsCount", len(regions))
    for index, (page, place, pages) in enumerate(regions):
        tags += tag("regionPPN", page, index) + tag("regionPageNum", place, index) + tag("regionSize", pages, index)
    header = struct.pack("<4sII64sQQ", b"\xd0\xbe\xd2\xbe", 8, 1, b"memory", 92, len(tags) + 2)
    return header + tags + bytes(2)


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[None]:
    """The cache that tests share."""
    with bulk_images.shared_cache():
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The memory and the state of a machine whose file holds the upper half of memory first."""
    raw = bulk_images.write_raw(tmp_path_factory.mktemp("raw") / "raw", "healthy", "10-19041-x64").read_bytes()
    pages = len(raw) // PAGE
    half = pages // 2
    memory = raw[half * PAGE : pages * PAGE] + raw[: half * PAGE]
    return memory, state([(0, pages - half, half), (half, 0, pages - half)])


def plain(folder: Path, memory: bytes, machine: bytes) -> Path:
    (folder / "vm.vmsn").write_bytes(machine)
    (folder / "vm.vmem").write_bytes(memory)
    return folder / "vm.vmem"


def zipped(folder: Path, memory: bytes, machine: bytes) -> Path:
    with zipfile.ZipFile(folder / "vm.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vm/vm.vmss", machine)
        archive.writestr("vm/vm.vmem", memory)
    return folder / "vm.zip"


def squeezed(folder: Path, memory: bytes, machine: bytes) -> Path:
    (folder / "vm.vmss.xz").write_bytes(lzma.compress(machine))
    (folder / "vm.vmem.gz").write_bytes(gzip.compress(memory, 1))
    return folder / "vm.vmem.gz"


def half_squeezed(folder: Path, memory: bytes, machine: bytes) -> Path:
    (folder / "vm.vmss").write_bytes(machine)
    (folder / "vm.vmem.xz").write_bytes(lzma.compress(memory, preset=0))
    return folder / "vm.vmem.xz"


def oddly_named(folder: Path, memory: bytes, machine: bytes) -> Path:
    """Names that are no UTF-8: vol makes no URL of them."""
    image = folder / os.fsdecode(b"v\xfc.vmem")
    try:
        image.write_bytes(memory)
    except OSError:
        pytest.skip("this file system takes no such name")
    image.with_suffix(".vmss").write_bytes(machine)
    image.with_suffix(".vmss.gz").write_bytes(gzip.compress(b"an older state"))
    return image


@pytest.mark.parametrize("write", [plain, zipped, squeezed, half_squeezed, oddly_named])
def test_memory_with_its_state(write: object, pair: tuple[bytes, bytes], tmp_path: Path) -> None:
    """A folder with a pair has one image, which is read as its state says: without that nothing would be found."""
    assert callable(write)
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    path = write(evidence, *pair)
    found = find([str(evidence)])
    assert found == [Evidence(path, "vm/vm.vmem" if path.suffix == ".zip" else None)]
    outcome = worker.scan(found[0], Settings(tmp_path / "results", offline=True))
    assert isinstance(outcome, Scanned), outcome
    assert outcome.findings == 0


def test_a_state_alone_is_taken(tmp_path: Path) -> None:
    """A state without its memory, as a snapshot that holds both in one file, is an image."""
    for name in ("one.vmss", "two.vmsn.gz", "three.vmem", "four.vmss"):
        (tmp_path / name).write_bytes(b"state")
    assert [each.path.name for each in find([str(tmp_path)])] == ["four.vmss", "one.vmss", "three.vmem", "two.vmsn.gz"]
