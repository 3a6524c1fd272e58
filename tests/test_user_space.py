"""User space as the audit reads it: every VAD and page planted, and what damage to them makes of a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.audit import Audit
from volatility3.plugins.windows.apcaudit.targets import Lies, Place
from volatility3.plugins.windows.apcaudit.user import NAMED_BOUND
from volatility3.plugins.windows.apcaudit.user.spaces import UserSpaces
from volatility3.plugins.windows.apcaudit.user.vads import DEPTH_BOUND

from apcaudit.synthetic import libraries, situations
from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import OWN, Kernel, load_kernel
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.scene import Apc, Process, Thread
from apcaudit.synthetic.situations import owners
from apcaudit.synthetic.user import Region, UserSpace
from apcaudit.synthetic.userspace.page_tables import NO_EXECUTE, UserPages
from tests.views_image import Audits, audited
from tests.volatility import CACHE, construct

LETTERS = {"READONLY": "r", "READWRITE": "rw", "EXECUTE_READ": "rx", "EXECUTE_READWRITE": "rwx", "WRITECOPY": "rc"}


@dataclass(frozen=True, slots=True)
class Read:
    """A machine with the user spaces of all situations, as planted and as read."""

    image: Image
    spaces: UserSpaces

    def place(self, owner: str, address: int | str) -> Place:
        """What the audit says of an address in a process."""
        return self.spaces.of(self.image.address_of[f"process:{owner}"]).place(self.image.resolve(address))


@pytest.fixture(scope="module", params=OWN)
def read(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Build the machine once a kernel."""
    kernel = load_kernel(request.param)
    image = build(situations.of(kernel, situations.USER_SITUATIONS), kernel)
    path = tmp_path_factory.mktemp(kernel.name) / "users.dmp"
    image.write_dump(path)
    plugin = construct(path, "windows.apcaudit.ApcAudit", cache=CACHE, kernel=kernel)
    return Read(image, Audit(plugin.context, plugin.config["kernel"]).user_stage().spaces)


def test_every_vad(read: Read) -> None:
    """The first and the last byte of every VAD lie in it, of the kind and file planted; the page around it does not."""
    wrong = []
    for process in read.image.scene.processes:
        if process.space is None:
            continue
        space = read.spaces.of(read.image.address_of[f"process:{process.pid}"])
        vads = read.image.vads(process.pid)
        taken = {page for vad in vads for page in range(vad.start, vad.end, PAGE)}
        for vad in vads:
            lies = Lies.IMAGE if vad.image else Lies.PRIVATE if vad.private else Lies.MAPPED
            for address in (vad.start, vad.end):
                place = space.place(address)
                if (place.lies, place.start, place.end, place.path) != (lies, vad.start, vad.end, vad.file):
                    wrong.append((process.name, hex(address), place))
            wrong += [
                (process.name, hex(beside), space.place(beside))
                for beside in (vad.start - 1, vad.end + 1)
                if beside & -PAGE not in taken and space.place(beside).lies is not Lies.NOWHERE
            ]
    assert wrong == []


@pytest.mark.parametrize(
    ("owner", "address", "text", "page"),
    [
        (owners.INJECTED, "memory:injected", "private rwx", "valid"),
        (owners.INJECTED, "memory:not_executable", "private rw", "valid"),
        (owners.PROTECTED, "memory:protected", "private rx", "valid"),
        (owners.PROTECTED, "memory:disarmed", "private rw", "valid"),
        (owners.PAGED_OUT, "memory:paged_out", "private rwx", "paged out"),
        (owners.PAGED_OUT, "memory:in_transition", "private rwx", "in transition"),
        (owners.LOADED, "ntdll!LdrLoadDll", "ntdll!LdrLoadDll", "valid"),
        (owners.LOADED, "ntdll!LdrLoadDll+0x5", "ntdll!LdrLoadDll+0x5", "valid"),
        (owners.LOADED, "loaded+0x1234", "loaded+0x1234", "valid"),
    ],
)
def test_places(read: Read, owner: str, address: str, text: str, page: str) -> None:
    """A place is named by its protection, or by module and export; where its page is comes from the page's entry."""
    place = read.place(owner, address)
    if not read.image.kernel.is_pae and not read.image.kernel.is_64bit:
        pytest.skip("without PAE no page forbids execution")
    assert (place.text, place.page) == (text, page)


def test_a_page_of_ones_own(read: Read) -> None:
    """A page that was written over is the process's own; the same page elsewhere is the file's."""
    assert read.place(owners.PATCHED, "kernel32!SleepEx").own_page is True
    assert read.place(owners.LOADED, "kernel32!SleepEx").own_page is False


# One process a case: all of them lie in one machine, and each thread has one APC to the same kind of place.
Damage = Callable[[Image, int], None]


@dataclass(frozen=True, slots=True)
class Case:
    """What is done to a process, and what is then known of `memory:LABEL`, or of `target`."""

    damage: Damage
    codes: dict[str, str] = field(default_factory=dict)
    why: str | None = None
    text: str | None = None
    region: dict[str, Any] = field(default_factory=dict)
    target: str | None = None


PRIVATE = {"user-apc-private-code": "high"}


def nodes(image: Image, pid: int) -> list[int]:
    """The VADs' nodes of a process, in the order of their addresses."""
    return [image.address_of[f"vad:{pid}:{vad.start:#x}"] for vad in image.vads(pid)]


def children(image: Image, node: int) -> dict[str, int]:
    """The node's two children, by the paths that this kernel has."""
    old = image.memory.has("_MMVAD_SHORT", "LeftChild")
    paths = ("LeftChild", "RightChild") if old else ("VadNode.Left", "VadNode.Right")
    return {path: image.memory.read(node, "_MMVAD_SHORT", path) for path in paths}


def root_of(image: Image, pid: int) -> int:
    """The node that no other leads to."""
    known = nodes(image, pid)
    below = {child for node in known for child in children(image, node).values()}
    return next(node for node in known if node not in below)


def link(image: Image, node: int, value: int) -> None:
    """Let both of a node's children be one address."""
    for path in children(image, node):
        image.memory.write(node, "_MMVAD_SHORT", path, value)


def cyclic(image: Image, pid: int) -> None:
    root = root_of(image, pid)
    link(image, root, root)


def unreadable(image: Image, pid: int) -> None:
    link(image, root_of(image, pid), image.kernel.base - 0x400000)


def lying(image: Image, pid: int) -> None:
    for node in nodes(image, pid):
        first = image.memory.read(node, "_MMVAD_SHORT", "StartingVpn")
        image.memory.write(node, "_MMVAD_SHORT", "EndingVpn", first - 1)


def deep(image: Image, pid: int) -> None:
    """Hang the VADs on a chain of nodes of one page each, ever higher below the address."""
    memory = image.memory
    size = memory.size("_MMVAD_SHORT")
    chain = [image.pool.allocate(size, b"VadS") for _ in range(DEPTH_BOUND + 1)]
    right = list(children(image, nodes(image, pid)[0]))[1]
    for number, node in enumerate(chain):
        for path in ("StartingVpn", "EndingVpn"):
            memory.write(node, "_MMVAD_SHORT", path, 0x100 + number)
        if number:
            memory.write(chain[number - 1], "_MMVAD_SHORT", right, node)
    set_root(image, pid, chain[0])


def set_root(image: Image, pid: int, node: int) -> None:
    process = image.address_of[f"process:{pid}"]
    path = next(
        path
        for path in ("VadRoot.Root", "VadRoot.BalancedRoot.RightChild", "VadRoot")
        if image.memory.has("_EPROCESS", path)
    )
    image.memory.write(process, "_EPROCESS", path, node)


def no_tables(image: Image, pid: int) -> None:
    process = image.address_of[f"process:{pid}"]
    image.memory.write(process, "_EPROCESS", "Pcb.DirectoryTableBase", 0)


def tables_beyond(image: Image, pid: int) -> None:
    process = image.address_of[f"process:{pid}"]
    image.memory.write(process, "_EPROCESS", "Pcb.DirectoryTableBase", 0x7FFFF000)


def pages(image: Image, pid: int) -> tuple[UserPages, int]:
    """The page tables of a process, and the address that its APC would run."""
    space = image.user(pid).space
    assert isinstance(space, UserPages)
    return space, image.address_of[f"memory:r{pid}"]


def paged_out_table(image: Image, pid: int) -> None:
    space, address = pages(image, pid)
    space.set_table_entry(address, len(space.mode.shifts) - 2, space.entries.software("READWRITE", 0x1234))


def table_in_transition(image: Image, pid: int) -> None:
    space, address = pages(image, pid)
    level = len(space.mode.shifts) - 2
    space.set_table_entry(address, level, space.entries.transition(space._leaf_table(address), "READWRITE"))


def no_execute(level: int) -> Damage:
    """Forbid execution in an entry above the page's own: of the top table with KVA shadowing, or below."""

    def change(image: Image, pid: int) -> None:
        space, address = pages(image, pid)
        table = space.root
        for above in range(level):
            table = space._read_entry(table, space._index(address, above)) & 0xFFFFFFFFFF000
        entry = space._read_entry(table, space._index(address, level))
        space.set_table_entry(address, level, entry | NO_EXECUTE)

    return change


def large(protection: str) -> Damage:
    """Map the region by one large page."""

    def change(image: Image, pid: int) -> None:
        space, address = pages(image, pid)
        space.map_large(address, protection)

    return change


def out_of_the_working_set(image: Image, pid: int) -> None:
    """Trim every page of ntdll: half of the entries name prototype PTEs, the others are cleared."""
    space, _ = pages(image, pid)
    base = image.address_of["image:ntdll"]
    vad = next(vad for vad in image.vads(pid) if vad.start == base)
    assert vad.section is not None
    for number, page in enumerate(range(vad.start, vad.end, PAGE)):
        at = vad.section.first_prototype + number * space.entries.size
        space.set_entry(page, space.entries.prototype(at, "EXECUTE_READ") if number % 2 else 0)


def cut_exports(image: Image, pid: int) -> None:
    """Take one name out of ntdll's exports in this process, in pages of its own."""
    space, _ = pages(image, pid)
    base = image.address_of["image:ntdll"]
    vad = next(vad for vad in image.vads(pid) if vad.start == base)
    for page in range(base, vad.end, PAGE):
        content = space.read(page, PAGE)
        frame = space.take_frames(1)
        space.write_frames(frame, content.replace(b"NtContinue\0", b"\xff" * 11))
        space.map_frame(page, frame, "EXECUTE_READ")


CASES = {
    "as it was": Case(lambda *_: None, PRIVATE, text="private rwx"),
    "a cyclic tree": Case(cyclic, why="contradicts itself"),
    "an unreadable node": Case(unreadable, why="cannot be read"),
    "nodes that end before they begin": Case(lying, why="contradicts itself"),
    "a deep tree": Case(deep, why=f"more than {DEPTH_BOUND} levels"),
    "no tree": Case(lambda image, pid: set_root(image, pid, 0), why="VadRoot is null"),
    "no page tables": Case(no_tables, why="DirectoryTableBase is 0"),
    "page tables beyond the image": Case(tables_beyond, text="private ?", why="page tables cannot be read"),
    "a page table that is paged out": Case(paged_out_table, text="private ?", why="page tables cannot be read"),
    "a page table in transition": Case(table_in_transition, PRIVATE, text="private rwx"),
    "trimmed to prototype PTEs": Case(
        out_of_the_working_set,
        {"user-apc-gadget": "high"},
        text="ntdll!NtContinue",
        target="ntdll!NtContinue",
    ),
    "exports that this process has changed": Case(
        cut_exports,
        {"user-apc-patched-image": "medium"},
        why="exports of an image that it maps cannot be read",
        text="ntdll!NtAllocate",
        target="ntdll!NtContinue",
    ),
    "exports that the file has": Case(
        lambda *_: None, {"user-apc-gadget": "high"}, text="ntdll!NtContinue", target="ntdll!NtContinue"
    ),
    "never touched": Case(lambda *_: None, PRIVATE, text="private rwx", region={"state": "demand-zero"}),
}
WITH_NO_EXECUTE = {
    "forbidden by the page directory": Case(
        no_execute(1), {"user-apc-nowhere": "medium"}, text="private rw", region={"pages": 1}
    ),
    "a large page": Case(large("EXECUTE_READWRITE"), PRIVATE, text="private rwx", region={"base": 0x40000000}),
    "a large page of data": Case(
        large("READWRITE"), {"user-apc-nowhere": "medium"}, text="private rw", region={"base": 0x40000000}
    ),
}
ONLY_X64 = {
    # The kernel's own tables with KVA shadowing: this is no evidence.
    "forbidden by the top table": Case(no_execute(0), PRIVATE, text="private rwx"),
}


def cases(kernel: Kernel) -> dict[str, Case]:
    """The cases that a kernel can have."""
    chosen = dict(CASES)
    if kernel.is_64bit:
        chosen |= WITH_NO_EXECUTE | ONLY_X64
    return chosen


KERNELS = ("xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "11-26100-x64")


@pytest.fixture(scope="module", params=KERNELS)
def damaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Audits:
    """One machine with a process for each case, all damaged."""
    kernel = load_kernel(request.param)
    processes, changes = [], []
    for number, case in enumerate(cases(kernel).values()):
        pid = 0x1000 + 0x10 * number
        region = Region(f"r{pid}", **{"content": {0: b"\x90"}, **case.region})
        if case.region.get("state") == "demand-zero":
            region = Region(f"r{pid}", state="demand-zero")
        apc = Apc("nt!IopDeallocateApc", normal_routine=case.target or f"memory:r{pid}", pool_tag=b"PsAp")
        thread = Thread(pid + 4, start="ntdll+0x1100", wait_reason="DelayExecution", alertable=True, user_apcs=(apc,))
        space = UserSpace((libraries.ntdll(kernel), libraries.kernel32(kernel)), (region,))
        processes.append(Process(f"p{pid:x}.exe", pid, (thread,), space=space))
        changes.append(lambda image, damage=case.damage, pid=pid: damage(image, pid))
    folder = tmp_path_factory.mktemp(kernel.name)
    return audited(request.param, folder, (), others=tuple(processes), changes=tuple(changes))


@pytest.mark.parametrize("name", [*CASES, *WITH_NO_EXECUTE, *ONLY_X64])
def test_damage(damaged: Audits, name: str) -> None:
    """Damage makes a target unknown, which is said, and never makes up a finding; what can be read still counts."""
    chosen = cases(damaged.image.kernel)
    if name not in chosen:
        pytest.skip("this processor, or this way of addressing, does not have it")
    case, pid = chosen[name], 0x1000 + 0x10 * list(chosen).index(name)
    target = damaged.target(pid + 4)
    assert target is not None
    assert damaged.codes(pid + 4) == case.codes
    assert target.place.text.startswith(case.text or "unknown")
    notes = [note for note in damaged.audit.notes if f"p{pid:x}.exe" in note]
    if case.why is None:
        assert (target.place.why, notes) == (None, [])
    else:
        assert case.why in (target.place.why or "")
        named = [each for each in chosen if chosen[each].why is not None].index(name) < NAMED_BOUND
        assert [case.why in note for note in notes] == [True] * named
        assert named or any("more processes would run is not known" in note for note in damaged.audit.notes)
