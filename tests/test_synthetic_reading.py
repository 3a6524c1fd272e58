"""Stock Volatility reads synthetic machines back: what was declared is what its own plugins and objects give."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from volatility3.framework.configuration import requirements
from volatility3.framework.objects import utility
from volatility3.framework.symbols.windows import extensions  # noqa: F401 - before poolscanner: a circle otherwise
from volatility3.plugins.windows import driverscan, kpcrs, modules, pslist, thrdscan, threads, unloadedmodules

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import OWN, load_kernel
from apcaudit.synthetic.scene import Process, Scene, Thread
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL
from tests.stock_reading import UNLOADED, Read, scene
from tests.volatility import CACHE, REPOSITORY_SYMBOLS, configuration, construct

Opened = tuple[Read, Path, dict[str, Any]]
"""A scene read back, its file, and what vol found in that, by the names of its configuration."""


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Opened]:
    """Build and open a kernel's scene once, as a dump or as raw memory."""
    folder = tmp_path_factory.mktemp("reading")

    @functools.cache
    def opened(kernel: str, form: str = "dump") -> Opened:
        path = folder / f"{kernel}.{form}"
        image = build(scene(kernel), load_kernel(kernel))
        (image.write_dump if form == "dump" else image.write_raw)(path)
        plugin = construct(path, "windows.pslist.PsList", cache=CACHE)
        found = {key: value for key, value in plugin.build_configuration().items() if key.startswith("kernel.")}
        return Read(image, plugin.context, plugin.config["kernel"]), path, found

    return opened


@pytest.fixture(params=sorted(OWN))
def read(request: pytest.FixtureRequest, opener: Callable[..., Opened]) -> Read:
    """Each of our kernels."""
    return opener(request.param)[0]


@pytest.mark.parametrize("kernel", ["7-sp1-x64", "10-19041-x64", "11-26100-x64", "xp-sp3-x86"])
def test_raw_image_is_recognised(kernel: str, opener: Callable[..., Opened]) -> None:
    """Raw memory is found to be Windows by its page tables alone, and gives the same processes as a dump."""
    raw, *_ = opener(kernel, "raw")
    names = [
        utility.array_to_string(each.ImageFileName)
        for each in pslist.PsList.list_processes(raw.context, raw.module_name)
    ]
    assert names == ["System", "svc.exe"]


def test_processes(read: Read) -> None:
    """The process list gives the declared processes with PID, parent and address."""
    found = [
        (utility.array_to_string(each.ImageFileName), int(each.UniqueProcessId), each.vol.offset)
        for each in pslist.PsList.list_processes(read.context, read.module_name)
    ]
    assert found == [("System", 4, read.address("process:System")), ("svc.exe", 100, read.address("process:svc.exe"))]


def test_threads(read: Read) -> None:
    """The processes' rings give the declared threads in order, without the unlisted one."""
    found = [
        (each.vol.offset, int(each.Cid.UniqueThread))
        for each in threads.Threads.list_process_threads(read.context, read.module_name)
    ]
    assert found == [(read.address(tid), tid) for tid in (8, 12, 20, 104, 108, 6000)]


def test_thread_objects_are_in_the_pool(read: Read) -> None:
    """A pool scan finds every thread object with its header and type, the unlisted one too."""
    layer = read.context.layers[read.module.layer_name]
    scanned = list(thrdscan.ThrdScan.scan_threads(read.context, read.module_name))
    physical = {
        tid: read.address(tid) if scanned[0].vol.layer_name == layer.name else layer.translate(read.address(tid))[0]
        for tid in (8, 12, 16, 20, 104, 108, 6000)
    }
    found = {int(each.Cid.UniqueThread): each.vol.offset for each in scanned}
    assert {tid: found.get(tid) for tid in physical} == physical


def test_modules(read: Read) -> None:
    """PsLoadedModuleList gives the kernel first and the listed drivers with base and size."""
    found = [
        (each.BaseDllName.get_string(), int(each.DllBase), int(each.SizeOfImage))
        for each in modules.Modules.list_modules(read.context, read.module_name)
    ]
    kernel = read.image.kernel
    assert found == [
        ("ntoskrnl.exe", read.symbol("nt"), kernel.image_size),
        ("hal.dll", read.address("driver:hal.dll"), HAL.size),
        ("fltMgr.sys", read.address("driver:fltMgr.sys"), FLTMGR.size),
        ("disk.sys", read.address("driver:disk.sys"), DISK.size),
    ]


def test_drivers(read: Read) -> None:
    """Driver objects are found in the pool, with their names and their devices' names."""
    found = {
        each.get_driver_name(): (int(each.DriverStart), int(each.DriverSize))
        for each in driverscan.DriverScan.scan_drivers(read.context, read.module_name)
        if driverscan.DriverScan.get_names_for_driver(each)[0]
    }
    assert found == {
        "\\Driver\\fltMgr": (read.address("driver:fltMgr.sys"), FLTMGR.size),
        "\\Driver\\disk": (read.address("driver:disk.sys"), DISK.size),
    }
    driver = read.object("_DRIVER_OBJECT", "driver-object:disk.sys")
    # Volatility's walk ends by yielding the null device.
    assert [each.get_device_name() for each in driver.get_devices() if each.vol.offset] == ["Harddisk0\\DR0"]


def test_unloaded_drivers(read: Read) -> None:
    """MmUnloadedDrivers gives the former driver's name and range."""
    plugin = unloadedmodules.UnloadedModules
    table = plugin.create_unloadedmodules_table(read.context, read.module.symbol_table_name, "test")
    found = [row[:3] for row in plugin.list_unloadedmodules(read.context, read.module_name, table)]
    start, end = UNLOADED[read.image.kernel.layout.pointer_size]
    mask = read.context.layers[read.module.layer_name].address_mask
    assert [(str(name), first, last) for name, first, last in found] == [("gone.sys", start & mask, end & mask)]


def test_processors(read: Read) -> None:
    """Each processor's control block names the thread that runs on it and its idle thread."""
    prcbs = [read.object("_KPRCB", f"kprcb:{number}") for number in range(2)]
    assert int(prcbs[1].CurrentThread) == read.address(108)
    assert prcbs[0].CurrentThread == prcbs[0].IdleThread != prcbs[1].IdleThread
    if read.image.kernel.is_64bit:
        listed = list(kpcrs.KPCRs.list_kpcrs(read.context, read.module_name))
        assert [kpcr.vol.offset for kpcr, _ in listed] == [read.address(f"kpcr:{number}") for number in range(2)]


def test_apc_states_of_an_attached_thread(read: Read) -> None:
    """Attached: index 1, ApcState in the other process, SavedApcState in the owner; both pointers cross over."""
    tcb = read.thread(8).Tcb
    assert tcb.ApcStateIndex == 1
    assert tcb.ApcState.Process == read.address("process:svc.exe")
    assert tcb.SavedApcState.Process == read.address("process:System")
    assert tcb.ApcState.KernelApcPending == 1
    assert tcb.WaitIrql == 1
    if tcb.has_member("ApcStatePointer"):
        assert tcb.ApcStatePointer[0] == tcb.SavedApcState.vol.offset
        assert tcb.ApcStatePointer[1] == tcb.ApcState.vol.offset


def test_apc_states_of_an_ordinary_thread(read: Read) -> None:
    """Not attached: index 0, ApcState in the owner, no saved process, though stale links may remain there."""
    tcb = read.thread(12).Tcb
    assert tcb.ApcStateIndex == 0
    assert tcb.ApcState.Process == read.address("process:System")
    assert tcb.SavedApcState.Process == 0
    assert tcb.SavedApcState.ApcListHead[0].Flink != 0
    # XP's counter is unsigned.
    assert int(tcb.KernelApcDisable) in (-3, 0xFFFFFFFD)
    assert read.thread(104).Tcb.Alertable == 1


def test_kernel_apc_queue(read: Read) -> None:
    """A queue's entries come in the declared order, with their routines, mode, environment and back-pointer."""
    tcb = read.thread(8).Tcb
    head = tcb.ApcState.ApcListHead[0]
    offset = read.module.get_type("_KAPC").relative_child_offset("ApcListEntry")
    first = read.module.object("_KAPC", offset=head.Flink - offset, absolute=True)
    second = read.module.object("_KAPC", offset=first.ApcListEntry.Flink - offset, absolute=True)
    assert [each.vol.offset for each in (first, second)] == [read.address("apc:completion"), read.address("apc:normal")]
    assert (second.ApcListEntry.Flink, head.Blink) == (head.vol.offset, second.ApcListEntry.vol.offset)
    assert first.KernelRoutine == read.symbol("nt!IopCompleteRequest")
    assert second.NormalRoutine == read.symbol("fltMgr!FltSendMessage+0x10")
    assert second.NormalContext == 0x77
    for apc in (first, second):
        assert (apc.Type, apc.Size) == (0x12, read.module.get_type("_KAPC").size)
        assert (apc.Thread, apc.ApcStateIndex, apc.ApcMode, apc.Inserted) == (read.address(8), 1, 0, 1)


def test_irp_around_a_kapc(read: Read) -> None:
    """A completed IRP holds its KAPC as Tail.Apc; its stack locations lead to devices, drivers and their names."""
    irp = read.object("_IRP", "irp:completion")
    assert irp.Tail.Apc.vol.offset == read.address("apc:completion")
    assert (irp.Type, irp.StackCount, irp.CurrentLocation) == (6, 2, 4)
    size = read.module.get_type("_IRP").size
    step = read.module.get_type("_IO_STACK_LOCATION").size
    assert irp.Size == size + 2 * step
    locations = [
        read.module.object("_IO_STACK_LOCATION", offset=irp.vol.offset + size + step * each, absolute=True)
        for each in range(2)
    ]
    assert [int(each.MajorFunction) for each in locations] == [3, 0xE]
    names = [each.DeviceObject.DriverObject.DriverName.get_string() for each in locations]
    assert names == ["\\Driver\\disk", "\\Driver\\fltMgr"]
    assert irp.Tail.Apc.SystemArgument1 == read.address("file:\\log.txt")
    assert irp.UserEvent == read.thread(8).Tcb.StackBase - 0x80
    entry = read.thread(8).IrpList.Flink
    assert entry == irp.ThreadListEntry.vol.offset


def test_embedded_kapc_at_rest(read: Read) -> None:
    """Every thread's own KAPC is initialised and not inserted, unless the scene queues it."""
    member = "SchedulerApc" if read.thread(12).Tcb.has_member("SchedulerApc") else "SuspendApc"
    apc = read.thread(12).Tcb.member(member)
    routine = "nt!KiSchedulerApcNop" if member == "SchedulerApc" else "nt!KiSuspendNop"
    assert (apc.Type, apc.Thread, apc.Inserted) == (0x12, read.address(12), 0)
    assert apc.KernelRoutine == read.symbol(routine)
    queued = read.thread(20).Tcb.member(member)
    assert (queued.Inserted, queued.ApcListEntry.Flink) == (1, read.thread(20).Tcb.ApcState.ApcListHead[0].vol.offset)


def test_cid_table(read: Read) -> None:
    """PspCidTable leads from IDs to objects in the version's own encoding; an unlisted thread is there too."""
    assert {tid: _cid_lookup(read, tid) for tid in (4, 8, 16, 100, 104)} == {
        4: read.address("process:4"),
        8: read.address(8),
        16: read.address(16),
        100: read.address("process:100"),
        104: read.address(104),
    }


def _cid_lookup(read: Read, identifier: int) -> int:
    pointer = read.module.object("pointer", offset=read.module.get_symbol("PspCidTable").address)
    table = read.module.object("_HANDLE_TABLE", offset=pointer, absolute=True)
    assert table.TableCode & 3 == 0
    entry_type = read.module.get_type("_HANDLE_TABLE_ENTRY")
    entry = read.module.object(
        "_HANDLE_TABLE_ENTRY", offset=table.TableCode + identifier // 4 * entry_type.size, absolute=True
    )
    if entry_type.has_member("ObjectPointerBits"):
        shift = 4 if read.image.kernel.is_64bit else 3
        return int(entry.ObjectPointerBits) << shift & read.context.layers[read.module.layer_name].address_mask
    assert int(entry.Object) & 1
    return int(entry.Object) & ~1


def test_bugcheck_data(read: Read) -> None:
    """nt!KiBugCheckData holds the code and its four parameters."""
    data = read.module.object(
        "array",
        offset=read.module.get_symbol("KiBugCheckData").address,
        subtype=read.module.get_type("pointer"),
        count=5,
    )
    assert [int(each) for each in data] == [0x6, 1, 2, 3, read.symbol("nt!KeBugCheck")]


def test_many_threads_need_a_cid_table_with_levels() -> None:
    """IDs beyond one page of entries are reached through a second level."""
    threads_of_system = tuple(Thread(tid, stack_pages=0) for tid in (8, 0x1000, 0x8004))
    scene = Scene("levels", "", "10-19041-x64", (Process("System", 4, threads_of_system, parent=0),))
    image = build(scene, load_kernel("10-19041-x64"))
    memory = image.memory
    table = memory.read_pointer(image.kernel.address("PspCidTable"))
    code = memory.read(table, "_HANDLE_TABLE", "TableCode") & memory.layout.pointer_mask
    assert code & 3 == 1
    leaf = memory.read_pointer((code & ~3) + 0x8004 // 4 // 256 * 8)
    entry = leaf + 0x8004 // 4 % 256 * 16
    bits = memory.read(entry, "_HANDLE_TABLE_ENTRY", "ObjectPointerBits")
    assert bits << 4 | 0xFFFF000000000000 == image.address_of[0x8004]


@pytest.mark.parametrize("name", sorted(OWN))
def test_what_the_other_tests_tell_vol_is_what_it_finds(name: str, opener: Callable[..., Opened]) -> None:
    """Where a dump's kernel lies, which most tests tell vol, is where vol itself finds it."""
    read, dump, configured = opener(name)
    found = dict(configured)
    location = requirements.URIRequirement.location_from_file(str(dump))
    told = configuration(read.image.kernel, dump, location, [REPOSITORY_SYMBOLS])
    # Where apcaudit is installed, vol has the same symbol file twice, and takes either.
    symbols = "kernel.symbol_table_name.isf_url"
    assert Path(told.pop(symbols)).parts[-3:] == Path(found.pop(symbols)).parts[-3:]
    # Whether it looked for swap files too is no matter of where the kernel lies.
    assert {key: told[key] for key in told if "swap_layers" not in key} == {
        key: found[key] for key in found if "swap_layers" not in key
    }
