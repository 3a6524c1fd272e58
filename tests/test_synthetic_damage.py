"""Damage replays what it says, and leaves the rest of the queue as it was."""

from __future__ import annotations

import pytest

from apcaudit.synthetic import damage
from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.machine import SceneError
from apcaudit.synthetic.pages import NotMappedError
from apcaudit.synthetic.scene import Apc, Driver, Process, Scene, StackWrite, Thread


@pytest.fixture(params=["xp-sp3-x86", "11-26100-x64"])
def image(request: pytest.FixtureRequest) -> Image:
    """Two queued KAPCs on thread 8, one on thread 12."""
    apcs = (Apc(label="first"), Apc(label="second"))
    threads = (Thread(8, kernel_apcs=apcs), Thread(12, kernel_apcs=(Apc(label="other"),)), Thread(16))
    scene = Scene("damage", "", request.param, (Process("System", 4, threads, parent=0),))
    return build(scene, load_kernel(request.param))


def _entry(image: Image, label: str) -> int:
    return image.address_of[f"apc:{label}"] + image.memory.offset("_KAPC", "ApcListEntry")


def _flink(image: Image, address: int) -> int:
    return image.memory.read_pointer(address)


def _blink(image: Image, address: int) -> int:
    return image.memory.read_pointer(address + image.memory.pointer_size)


def _same(image: Image, one: int, other: int) -> bool:
    mask = image.memory.layout.pointer_mask
    return one & mask == other & mask


def test_cycle_leaves_the_head_out(image: Image) -> None:
    """The last entry leads to the first; the head is not reached again."""
    damage.make_cycle(image, 8)
    assert _same(image, _flink(image, _entry(image, "second")), _entry(image, "first"))
    assert _same(image, _flink(image, damage.head(image, 8)), _entry(image, "first"))


def test_broken_back_link(image: Image) -> None:
    """Only the first entry's Blink is lost."""
    damage.break_back_link(image, 8)
    assert _blink(image, _entry(image, "first")) == 0
    assert len(damage.links(image, 8)) == 2


def test_link_to_nowhere(image: Image) -> None:
    """The last entry's link cannot be read through."""
    target = damage.point_flink_to_unmapped(image, 8)
    assert _same(image, _flink(image, _entry(image, "second")), target)
    with pytest.raises(NotMappedError):
        image.read(target, 1)


def test_misaligned_link(image: Image) -> None:
    """The head's Flink is odd."""
    damage.misalign_link(image, 8)
    assert _flink(image, damage.head(image, 8)) & 1


def test_cross_link(image: Image) -> None:
    """The first thread's KAPC is the last of the other thread's list."""
    damage.cross_link(image, 8, 12)
    assert _same(image, _blink(image, damage.head(image, 12)), _entry(image, "first"))


def test_self_link_leaves_the_kapc_inserted(image: Image) -> None:
    """The list looks empty while the KAPC says Inserted."""
    damage.unlink_by_self_link(image, 8)
    assert damage.links(image, 8) == []
    assert image.memory.read(image.address_of["apc:first"], "_KAPC", "Inserted") == 1


def test_hidden_thread_keeps_its_own_links(image: Image) -> None:
    """The process's ring goes past the thread, whose own links still lead into it."""
    hidden = image.address_of[12]
    damage.hide_thread(image, hidden)
    ring = image.address_of["process:4"] + image.memory.offset("_EPROCESS", "ThreadListHead")
    entry = image.memory.offset("_ETHREAD", "ThreadListEntry")
    mask = image.memory.layout.pointer_mask
    assert [each & mask for each in image.memory.entries(ring & mask)] == [
        (image.address_of[tid] + entry) & mask for tid in (8, 16)
    ]
    assert _flink(image, hidden + entry) != hidden + entry


def test_unmapped_page_is_gone_from_the_page_tables(image: Image) -> None:
    """A page taken out is not translated any more; its neighbours are."""
    address = image.address_of["apc:first"]
    before = sum(data.count(b"\0" * 8) for data in image.memory.space.tables().values())
    damage.unmap_page(image, address)
    after = sum(data.count(b"\0" * 8) for data in image.memory.space.tables().values())
    assert not image.memory.space.is_mapped(address)
    assert after > before


@pytest.mark.parametrize(
    ("thread", "message"),
    [
        (Thread(8, start="nt!NoSuchFunction"), "no symbol NoSuchFunction"),
        (Thread(8, start="Absent!Function"), "no driver Absent"),
        (Thread(8, start="Some!Function"), "exports no Function"),
        (Thread(8, attached_to="absent.exe"), "no process absent.exe"),
        (Thread(8, state="Sleeping"), "no state Sleeping"),
        (Thread(8, running_on=3), "processor"),
        (Thread(8, frames=(StackWrite("not an address!", ()),)), "not an address"),
    ],
)
def test_scene_errors_name_what_is_missing(thread: Thread, message: str) -> None:
    """A scene that names what it does not declare is refused with that name."""
    scene = Scene("wrong", "", "10-19041-x64", (Process("System", 4, (thread,), parent=0),), (Driver("Some.sys"),))
    with pytest.raises(SceneError, match=message):
        build(scene, load_kernel("10-19041-x64"))
