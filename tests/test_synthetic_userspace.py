"""Stock Volatility reads the user spaces that were planted: page tables, VADs, modules, code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apcaudit.synthetic import isf, situations
from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.libraries import IO_COMPLETION, TIMER
from apcaudit.synthetic.scene import Process, Scene
from apcaudit.synthetic.scenes import desktop
from apcaudit.synthetic.situations import owners
from apcaudit.synthetic.situations.situation import SERVICE
from apcaudit.synthetic.user import Region, UserSpace
from tests import volatility

LAYOUTS = volatility.ROOT.parent / "shared" / "layouts"
#: Every layout of VadRoot and of _MMVAD, with page table entries of each kind: XP's pointer, the table of 2003 to 8,
#: the tree since; and x86 without PAE.
KERNELS = (
    "xp-sp3-x86",
    "7-sp1-x86",
    "7-sp1-x64",
    "8.1-x64",
    "10-19041-x64",
    "11-26100-x64",
    LAYOUTS / "5.1.2600.5512-x86.json.xz",
    LAYOUTS / "5.2.3790.3959-x86.json.xz",
    LAYOUTS / "6.0.6002.18005-x64.json.xz",
)


@dataclass(frozen=True)
class Planted:
    """The machine with every situation of user APCs, and how stock Volatility is given it."""

    image: Image
    path: Path
    how: dict[str, Any]

    def rows(self, plugin: str) -> list[dict[str, Any]]:
        """Run a plugin; its rows of the processes that have a user space."""
        return [row for row in volatility.rows(self.path, plugin, **self.how) if row["PID"] in self.pids]

    def listed_vads(self) -> dict[tuple[int, int], tuple[object, ...]]:
        """The VADs that vadinfo lists, by PID and where they start."""
        columns = ("Offset", "End VPN", "Tag", "Protection", "CommitCharge", "PrivateMemory", "File")
        rows = self.rows("windows.vadinfo.VadInfo")
        return {(row["PID"], row["Start VPN"]): tuple(row[column] for column in columns) for row in rows}

    def planted_vads(self) -> dict[tuple[int, int], tuple[object, ...]]:
        """Those that were planted."""
        image, mask = self.image, self.image.memory.layout.pointer_mask
        return {
            (pid, vad.start): (
                image.address_of[f"vad:{pid}:{vad.start:#x}"] & mask,
                vad.end,
                "VadS" if vad.section is None else "Vad ",
                f"PAGE_{vad.protection}",
                vad.commit,
                int(vad.private),
                vad.file,
            )
            for pid in self.pids
            for vad in image.vads(pid)
        }

    @property
    def pids(self) -> dict[int, str]:
        """The processes that have a user space of their own, by PID."""
        return {each.pid: each.name for each in self.image.scene.processes if each.space is not None}


@pytest.fixture(scope="module", params=KERNELS, ids=lambda each: str(each).rpartition("/")[2].partition(".json")[0])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Build the machine once a kernel."""
    if isinstance(request.param, Path) and not request.param.is_file():
        pytest.skip(f"{request.param} is missing: the layouts of other builds")
    folder = tmp_path_factory.mktemp("users")
    kernel = load_kernel(request.param)
    symbols = (volatility.REPOSITORY_SYMBOLS,)
    if isinstance(request.param, Path):
        isf.write_derived(kernel, folder)
        symbols = (folder,)
    image = build(situations.of(kernel, situations.USER_SITUATIONS), kernel)
    image.write_dump(folder / "users.dmp")
    return Planted(image, folder / "users.dmp", {"cache": volatility.CACHE, "kernel": kernel, "symbols": symbols})


def test_vads(planted: Planted) -> None:
    """Every VAD planted is listed by vadinfo, with its process, address, range, protection and file; no other is."""
    assert planted.listed_vads() == planted.planted_vads()


@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "11-26100-x64"])
def test_vads_of_the_desktop(kernel: str, tmp_path: Path) -> None:
    """So it is on an ordinary machine, where most processes have no user space of their own."""
    loaded = load_kernel(kernel)
    image = build(desktop.of(loaded), loaded)
    image.write_dump(tmp_path / "desktop.dmp")
    planted = Planted(image, tmp_path / "desktop.dmp", {"cache": volatility.CACHE, "kernel": loaded})
    assert planted.listed_vads() == planted.planted_vads()


def test_modules(planted: Planted) -> None:
    """Every image of a process that has run is listed by dlllist, 32-bit ones too; a newborn process has no list."""
    found: dict[int, set[tuple[int, str]]] = {pid: set() for pid in planted.pids}
    for row in planted.rows("windows.dlllist.DllList"):
        found[row["PID"]].add((int(row["Base"]), row["Path"]))
    expected: dict[int, set[tuple[int, str]]] = {pid: set() for pid in planted.pids}
    for process in planted.image.scene.processes:
        if process.space is not None and process.space.has_run:
            files = {(vad.start, f"C:{vad.file}") for vad in planted.image.vads(process.pid) if vad.image}
            expected[process.pid] = files
    assert found == expected


def test_memory(planted: Planted) -> None:
    """Content is read through the process's own page tables, and through no other's."""
    plugin = volatility.construct(planted.path, "windows.pslist.PsList", **planted.how)
    listed = plugin.list_processes(plugin.context, plugin.config["kernel"])
    layers = {
        str(process.ImageFileName.cast("string", max_length=15)): plugin.context.layers[process.add_process_layer()]
        for process in listed
    }
    resolve = planted.image.resolve
    for owner, label, content in (
        (owners.EARLY, "memory:early", owners.SHELLCODE),
        (owners.PROTECTED, "memory:protected", owners.SHELLCODE),
        (owners.PAGED_OUT, "memory:in_transition", owners.SHELLCODE),
        (owners.MANAGED, "memory:stub3", owners.COMPILED),
        (owners.LOADED, "memory:foreign_path", "C:\\Users".encode("utf-16-le")),
    ):
        # Of page tables that cannot tell what may run, nobody has made use with VirtualProtect.
        if owner != owners.PROTECTED or planted.image.kernel.is_64bit or planted.image.kernel.is_pae:
            assert layers[owner].read(resolve(label), len(content)) == content
    assert not layers[owners.PAGED_OUT].is_valid(resolve("memory:paged_out"))
    assert not layers["System"].is_valid(resolve("memory:early"))
    # The same page of a DLL, written over in one process.
    hooked, clean = (layers[name].read(resolve("kernel32!SleepEx"), 5) for name in (owners.PATCHED, owners.LOADED))
    assert hooked == owners.HOOK != clean


def test_armed(planted: Planted) -> None:
    """What is armed hangs where Windows has it: timers and requests on their threads, reserve objects on handles."""
    plugin = volatility.construct(planted.path, "windows.pslist.PsList", **planted.how)
    module = plugin.context.modules[plugin.config["kernel"]]
    table, kernel = module.symbol_table_name, planted.image.kernel
    chosen = situations.tids(kernel, situations.USER_SITUATIONS)
    by_name = {each.name: tid for tid, each in chosen.items()}
    thread = module.object("_ETHREAD", offset=planted.image.address_of[by_name["armed-timer"]], absolute=True)
    (timer,) = thread.ActiveTimerListHead.to_list(f"{table}!_ETIMER", "ActiveTimerListEntry")
    mask = module.context.layers[module.layer_name].address_mask
    assert timer.TimerApc.NormalRoutine == planted.image.resolve(TIMER) & mask
    assert not timer.TimerApc.Inserted
    thread = module.object("_ETHREAD", offset=planted.image.address_of[by_name["pending-read-file-ex"]], absolute=True)
    (request,) = thread.IrpList.to_list(f"{table}!_IRP", "ThreadListEntry")
    assert request.Overlay.AsynchronousParameters.UserApcRoutine == planted.image.resolve(IO_COMPLETION)
    assert request.Tail.Overlay.Thread == thread.vol.offset


def test_reserve_objects(planted: Planted) -> None:
    """A reserve object is on the handles of the processes that were declared to hold it, and of no other."""
    if not planted.image.kernel.has("PspUserApcReserveKernelRoutine"):
        pytest.skip("reserve objects are there since 7")
    wanted = {pid: name for pid, name in planted.pids.items() if name in (owners.LOADED, SERVICE, owners.INJECTED)}
    found = volatility.rows(planted.path, "windows.handles.Handles", pid=list(wanted), **planted.how)
    assert {(row["Process"], row["Type"]) for row in found} == {(owners.LOADED, RESERVE), (SERVICE, RESERVE)}


@pytest.mark.parametrize(("kernel", "size"), [("xp-sp3-x86", 0x200000), ("10-19041-x64", 0x200000)])
def test_large_pages(kernel: str, size: int, tmp_path: Path) -> None:
    """Memory in large pages is mapped by an entry above the page tables, and read like any other."""
    loaded = load_kernel(kernel)
    region = Region("large", 2 * size, state="large", content={size + 0x1234: b"in the second"})
    process = Process("host.exe", 100, space=UserSpace((), (region,)))
    image = build(Scene("large", "large pages", kernel, (process,)), loaded)
    image.write_dump(tmp_path / "large.dmp")
    plugin = volatility.construct(
        tmp_path / "large.dmp", "windows.pslist.PsList", cache=volatility.CACHE, kernel=loaded
    )
    (host,) = plugin.list_processes(plugin.context, plugin.config["kernel"], lambda each: each.UniqueProcessId != 100)
    layer = plugin.context.layers[host.add_process_layer()]
    start = image.resolve("memory:large")
    assert layer.read(start + size + 0x1234, 13) == b"in the second"
    assert layer._translate(start)[1] == size


#: The object type of reserve objects of user APCs (Windows Internals, "Object types").
RESERVE = "UserApcReserve"
