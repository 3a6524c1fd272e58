"""A minidump's separate copies of thread, process and KPRCB: where they are placed, and what is said where they lie."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache

import pytest
from volatility3.framework import contexts
from volatility3.framework.layers import physical
from volatility3.plugins.windows.apcaudit.vol.automagic import MinidumpStacker

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Bugcheck, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import HAL
from tests.minidump_builder import FIELDS, MinidumpScene, UnloadedEntry, write_minidump
from tests.minidump_of_image import Opened, audit_minidump, minidump_scene, only_symbols_of, symbol_files

KERNELS = pytest.mark.parametrize("name", ["xp-sp3-x86", "7-sp1-x86", "10-19041-x64"])


@cache
def machine(name: str) -> Image:
    """Build a machine that stopped on thread 8 of System, in which another thread waits."""
    running = Thread(8, state="Running", running_on=0, stack=("nt!KeBugCheck+0x14",))
    processes = (
        Process("System", 4, (running, Thread(12)), parent=0),
        Process("svchost.exe", 1000, (Thread(1004, start=0x1000, system=False),)),
    )
    return build(
        Scene("copies", "a crash", name, processes, (HAL,), bugcheck=Bugcheck(0x6), crashing_thread=8),
        load_kernel(name),
    )


def opened(name: str, **changes: object) -> Opened:
    """Audit the machine's minidump with other parts than it has."""
    image = machine(name)
    return audit_minidump(write_minidump(replace(minidump_scene(image, 8), **changes)), image.kernel)  # type: ignore[arg-type]


def prcb_naming(image: Image, scene: MinidumpScene, thread: int) -> bytes:
    """Replay a write to KPRCB.CurrentThread."""
    at, size = image.memory.offset("_KPRCB", "CurrentThread"), image.memory.pointer_size
    return scene.prcb[:at] + thread.to_bytes(size, "little") + scene.prcb[at + size :]


@KERNELS
def test_all_copies_agree(name: str) -> None:
    """In an undamaged minidump thread and process lie where they did, and nothing is told of them."""
    found = opened(name)
    image = machine(name)
    assert found.layer.defects == ()
    assert found.layer.dumped_threads == (image.address_of["thread:8"],)
    assert found.of[8].thread.address == image.address_of["thread:8"]
    assert found.of[8].thread.owner is not None
    assert (found.of[8].thread.owner.address, found.of[8].thread.owner.name) == (
        image.address_of["process:System"],
        "System",
    )


@KERNELS
def test_a_thread_without_a_kprcb(name: str) -> None:
    """Without the KPRCB that names it, a thread is placed by its own pointers."""
    found = opened(name, prcb=b"")
    assert found.of[8].thread.address == machine(name).address_of["thread:8"]
    assert found.layer.prcb_address is None
    assert any("_ETHREAD is placed" in each and "its own pointers say" in each for each in found.layer.inferred)


@KERNELS
@pytest.mark.parametrize("of_other", [False, True], ids=["the KPRCB lies", "the copy is another thread's"])
def test_a_thread_that_its_kprcb_does_not_name(name: str, of_other: bool) -> None:
    """Where the KPRCB names another thread, the copy lies where its own pointers lead, and the difference is told."""
    image = machine(name)
    scene = minidump_scene(image, 8)
    held, named = (12, 8) if of_other else (8, 12)
    thread = image.read(image.address_of[f"thread:{held}"], image.memory.size("_ETHREAD"))
    found = opened(name, prcb=prcb_naming(image, scene, image.address_of[f"thread:{named}"]), thread=thread)
    assert found.of[held].thread.address == image.address_of[f"thread:{held}"]
    assert named not in found.of
    (defect,) = found.layer.defects
    assert defect == (
        f"the minidump contradicts itself: its KPRCB names the thread {image.address_of[f'thread:{named}']:#x}, but the"
        f" thread that it holds lay at {image.address_of[f'thread:{held}']:#x} by its own pointers, and is shown there"
    )
    assert defect in found.audit.notes


@KERNELS
def test_bytes_that_are_no_thread(name: str) -> None:
    """A copy without a pointer to itself is not placed, so that no member is invented; that it is missing is told."""
    image = machine(name)
    found = opened(name, thread=b"\0" * image.memory.size("_ETHREAD"))
    assert 8 not in found.of
    (defect,) = found.layer.defects
    assert defect.startswith(
        f"the minidump lacks the crashed thread {image.address_of['thread:8']:#x}, which the KPRCB"
    )


@KERNELS
def test_a_process_that_the_thread_does_not_name(name: str) -> None:
    """A process that was not the thread's lies where its own pointers lead, and never lends the thread its name.

    The process with PID 4 is System in every Windows, whatever the dump holds (Windows Internals, "System process").
    """
    image = machine(name)
    other = image.address_of["process:svchost.exe"]
    found = opened(name, process=image.read(other, image.memory.size("_EPROCESS")))
    assert found.of[8].thread.owner is not None
    assert (found.of[8].thread.owner.pid, found.of[8].thread.owner.name) == (4, "System")
    (defect,) = found.layer.defects
    assert (
        f"the process {image.address_of['process:System']:#x}, but the process that it holds lay at {other:#x}"
        in defect
    )


def messages(data: bytes, name: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of a minidump that is opened, but for the one of every minidump: what is made up for it."""
    context = contexts.Context()
    context.add_layer(physical.BufferDataLayer(context, "file", "file", data))
    with symbol_files(only_symbols_of(load_kernel(name))), caplog.at_level(logging.WARNING):
        MinidumpStacker.stack(context, "file")
    said = [record.getMessage() for record in caplog.records]
    return [each for each in said if not each.startswith("Made up from the minidump's headers")]


@KERNELS
def test_a_file_cut_before_its_drivers_is_cut(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """What ends before the kernel's addresses and the drivers is cut: no symbol file is asked for."""
    whole = write_minidump(minidump_scene(machine(name), 8))
    wide = name.endswith("x64")
    field = next(offset for each, offset, _ in FIELDS[wide] if each == "CallStackOffset")
    end = int.from_bytes(whole[(0x2000 if wide else 0x1000) + field :][:4], "little")
    said = messages(whole[:end], name, caplog)
    assert said[0].startswith(
        f"the minidump is cut: it has {end:,} of the {len(whole):,} bytes that its header promises"
    )
    assert "the list of drivers" in said[0]
    assert "kernel cannot be identified" in said[1]
    assert "no symbols" not in " ".join(said)
    assert len(said) == 2


@KERNELS
def test_every_defect_is_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A defect that costs the thread's row is told where the file is opened, whatever plugin runs."""
    said = messages(write_minidump(replace(minidump_scene(machine(name), 8), triage={"ThreadOffset": 0})), name, caplog)
    assert said == [
        "the minidump lacks the crashed thread: ThreadOffset is 0x0, though MiniDumpFields says that there is one"
    ]


@pytest.mark.parametrize("name", ["xp-sp3-x86", "10-19041-x64"])
def test_every_damage_is_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """However the file is cut, and whichever field of its header is wrong, opening it warns and never raises."""
    image = machine(name)
    scene = minidump_scene(image, 8, memory={image.kernel.address("KiBugCheckData"): 8})
    hal = image.address_of["driver:hal.dll"]
    whole = write_minidump(replace(scene, unloaded=(UnloadedEntry("old.sys", hal + 0x100000, hal + 0x101000),)))
    wide = name.endswith("x64")
    header = 0x2000 if wide else 0x1000
    damaged = {f"cut at {size}": whole[:size] for size in range(header, len(whole), (len(whole) - header) // 20)}
    for field, offset, size in FIELDS[wide]:
        at = header + offset
        for value in (bytes(size), b"\xff" * size):
            damaged[f"{field} {value.hex()}"] = whole[:at] + value + whole[at + size :]
    silent = []
    for what, data in damaged.items():
        caplog.clear()
        if not messages(data, name, caplog) and data != whole:
            silent.append(what)
    assert silent == ["TriageOptions 00000000"]


@KERNELS
def test_a_kernel_without_its_name(name: str) -> None:
    """Where the names of drivers are missing, the driver at the kernel's base is the kernel all the same."""
    scene = minidump_scene(machine(name), 8)
    nameless = tuple(replace(each, name="") for each in scene.drivers)
    found = opened(name, drivers=nameless)
    assert found.of[8].start is not None
    assert str(found.of[8].start) == "nt!ExpWorkerThread"
