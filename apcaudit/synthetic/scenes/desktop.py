"""An ordinary machine of somebody at work: what its queues hold, and nothing that an audit should raise.

Names of processes are those of Windows; how many of each there are, their PIDs and threads are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from apcaudit.synthetic import libraries
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import Kernel, load_kernel
from apcaudit.synthetic.scene import Apc, Driver, IoStackLocation, Irp, Process, Scene, Thread, UnloadedDriver
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL, NTFS
from apcaudit.synthetic.situations import FORMER_RANGE, UNWIND, owners
from apcaudit.synthetic.situations.legitimate import LOW, ORDINARY
from apcaudit.synthetic.situations.legitimate_user_apcs import LOW_USER_APCS, ORDINARY_USER_APCS
from apcaudit.synthetic.situations.situation import (
    IN_PLACE_SINCE,
    NORMAL,
    PROGRAM,
    SERVICE,
    SUSPENDING,
    WOW64,
    Situation,
)
from apcaudit.synthetic.user import UserSpace

#: (image name, how many processes, threads in each): services and the shell.
_SERVICES = (
    ("smss.exe", 1, 2),
    ("wininit.exe", 1, 3),
    ("winlogon.exe", 1, 5),
    ("services.exe", 1, 8),
    ("lsass.exe", 1, 12),
    ("svchost.exe", 62, 11),
    ("spoolsv.exe", 1, 9),
    ("SearchIndexer.exe", 1, 14),
    ("dwm.exe", 1, 16),
    ("explorer.exe", 1, 60),
    ("RuntimeBroker.exe", 8, 5),
    ("msedge.exe", 9, 18),
)
#: Applications in the background, frozen as a whole.
_FROZEN = (("SystemSettings.exe", 1, 22), ("Calculator.exe", 1, 19), ("YourPhone.exe", 1, 24), ("Widgets.exe", 4, 17))
#: Processes that run no image of a file.
_MINIMAL = (("Registry", 4), ("MemCompression", 18))

#: How often each situation is there: once, but those that a machine has by the dozen.
_OFTEN = {
    "suspended-in-place": 24,
    "resumed-in-place": 12,
    "user-apc": 40,
    "timer-apc": 15,
    "teb-update": 30,
    "wow64-apc": 6,
    "read-file-ex": 6,
    "wow64-queue-user-apc": 4,
}

#: The process that the implant has chosen.
_IMPLANTED = "lsass.exe"

_FIRST_PID = 0x200
_SYSTEM_THREADS = 150


@dataclass(slots=True)
class _Machine:
    """Processes under construction; IDs count in steps of four, processes' and threads' together.

    `in_place` is whether the kernel suspends a thread in its wait, `crowd` whether there are many of a kind.
    """

    in_place: bool
    crowd: bool
    next_id: int = _FIRST_PID
    threads: dict[str, list[Thread]] = field(default_factory=dict)
    processes: list[tuple[str, int, str]] = field(default_factory=list)
    events: list[Callable[[Image], None]] = field(default_factory=list)

    def number(self, crowd: int) -> range:
        """Count those of a kind of which a machine has so many."""
        return range(crowd if self.crowd else min(crowd, 2))

    def new_id(self) -> int:
        self.next_id += 4
        return self.next_id

    def add_process(self, name: str, label: str | None = None) -> str:
        label = label or f"{name}:{len(self.processes)}"
        self.processes.append((name, self.new_id(), label))
        self.threads[label] = []
        return label

    def add(self, label: str, **members: object) -> None:
        self.threads[label].append(Thread(self.new_id(), **members))  # type: ignore[arg-type]


def scene(kernel: str = "10-19041-x64", implant: bool = False) -> Scene:
    """Declare the scene for a kernel by name or symbol file; with an implant, one APC of a driver that hides."""
    return replace(of(load_kernel(kernel), implant=implant), kernel=kernel)


def of(kernel: Kernel, *, implant: bool = False, crowd: bool = True) -> Scene:
    """Declare the machine as far as the kernel can have it; without its crowd there are two of a kind at most."""
    former = FORMER_RANGE[kernel.layout.pointer_size]
    machine = _Machine(all(kernel.layout.has("_ETHREAD", path) for path in IN_PLACE_SINCE), crowd)
    everything = (*ORDINARY, *LOW, *ORDINARY_USER_APCS, *LOW_USER_APCS)
    chosen = tuple(situation for situation in everything if situation.fits(kernel))
    _add_processes(machine)
    for name in owners.wanted(chosen):
        if name not in machine.threads:
            machine.add_process(name, name)
    _add_system_threads(machine)
    for situation in chosen:
        _add_situation(machine, situation, former[0])
    if implant:
        # User APC of a driver that took itself off the list of modules.
        machine.add(
            f"{_IMPLANTED}:4",
            **PROGRAM,
            alertable=True,
            user_apcs=(Apc("Ghost+0x1200", normal_routine="lsass+0x1200", mode="user", label="implant"),),
        )
    return Scene(
        name="desktop",
        description="an ordinary machine: 1,650 threads in 120 processes, nothing wrong",
        kernel=kernel.name,
        processes=tuple(_declared(machine, kernel)),
        drivers=(
            HAL,
            FLTMGR,
            NTFS,
            DISK,
            Driver("Bfilter.sys", exports={"ScUnInitExcludePath": 0x1000}),
            Driver(
                "avhook.sys",
                exports={"AvApcKernelRoutine": 0x1100, "AvApcNormalRoutine": 0x1200},
                unwind={(0x1100, 0x1180): UNWIND, (0x1200, 0x1280): UNWIND},
            ),
            Driver("Ghost.sys", exports={}, listed=False, driver_object=False),
        ),
        unloaded=(UnloadedDriver("former.sys", *former),),
        processors=8,
        events=tuple(machine.events),
    )


def _add_processes(machine: _Machine) -> None:
    for name, count in _MINIMAL:
        label = machine.add_process(name, name)
        for _ in range(count):
            machine.add(label, start="nt!ExpWorkerThread", system=True)
    for name, count, threads in _SERVICES:
        for number in machine.number(count):
            label = machine.add_process(name, f"{name}:{number}" if count > 1 else f"{name}:4")
            for each in range(threads):
                _add_program_thread(machine, label, each)
    for session in range(2):
        label = machine.add_process("csrss.exe", f"csrss.exe:{session}")
        for each in range(12):
            # It enters the address space of the process that it serves.
            attached = {"attached_to": SERVICE} if each < 2 else {}
            machine.add(label, **{**PROGRAM, "wait_reason": "WrLpcReceive", "wait_mode": "kernel", **attached})
    for name, count, threads in _FROZEN:
        for number in machine.number(count):
            label = machine.add_process(name, f"{name}:frozen{number}")
            for each in range(threads):
                _add_frozen_thread(machine, label, each)
    for name in (SERVICE, WOW64):
        label = machine.add_process(name, name)
        for each in range(14):
            _add_program_thread(machine, label, each)
    for number in machine.number(18):
        label = machine.add_process(f"tool{number}.exe")
        for each in range(6):
            _add_program_thread(machine, label, each)


def _add_program_thread(machine: _Machine, label: str, number: int) -> None:
    """Add a thread of a program: most wait for messages or work, some hold a lock or read a file."""
    if number % 5 == 1:
        machine.add(label, **{**PROGRAM, "wait_reason": "WrQueue"})
    elif number % 11 == 7:
        # In the file system, within a critical region.
        machine.add(label, **{**PROGRAM, "wait_reason": "Executive", "wait_mode": "kernel", "kernel_apc_disable": -1})
    elif number % 13 == 9:
        machine.add(label, **PROGRAM, alertable=True)
    else:
        machine.add(label, **PROGRAM)


def _add_frozen_thread(machine: _Machine, label: str, number: int) -> None:
    """Add a thread of a frozen application: frozen in its wait, or as one that was running in its suspending APC."""
    if not number or not machine.in_place:
        machine.add(label, **{**PROGRAM, "wait_reason": "Suspended", "kernel_apc_in_progress": True, "freeze_count": 1})
        return
    machine.add(label, **PROGRAM, wait_state=4, freeze_count=1, kernel_apc_pending=True, kernel_apcs=(SUSPENDING,))


def _add_system_threads(machine: _Machine) -> None:
    machine.threads["System"] = []
    add = machine.add
    starts = ("nt!Phase1Initialization", "nt!KeBalanceSetManager", "nt!MiModifiedPageWriter", "nt!KeSwapProcessOrStack")
    for start in starts:
        add("System", start=start, wait_reason="WrFreePage", stale_saved_state=True)
    # Two of those that are attached come last.
    for number in range(_SYSTEM_THREADS if machine.crowd else 19):
        attached = {"attached_to": "MemCompression"} if number % 15 == 3 else {}
        add("System", start="nt!ExpWorkerThread", stale_saved_state=not attached and number % 3 == 0, **attached)
    # Drivers' threads: one in a fast mutex, one with a request of its own completed while it holds a resource.
    add("System", start="fltMgr!FltSendMessage+0x90", wait_reason="Executive", wait_irql=1)
    add(
        "System",
        start="avhook!AvApcKernelRoutine",
        wait_reason="Executive",
        kernel_apc_disable=-2,
        kernel_apcs=(NORMAL,),
    )
    add(
        "System",
        start="nt!ExpWorkerThread",
        state="Ready",
        kernel_apc_pending=True,
        kernel_apcs=(Apc(irp=Irp((IoStackLocation("disk.sys", major=4), IoStackLocation("Ntfs.sys", major=4)))),),
    )


def _add_situation(machine: _Machine, situation: Situation, former: int) -> None:
    for _ in machine.number(_OFTEN.get(situation.name, 1)):
        thread = situation.thread(machine.new_id(), former)
        machine.threads[situation.owner].append(thread)
        if situation.after is not None:
            machine.events.append(situation.event(thread.tid))


def _declared(machine: _Machine, kernel: Kernel) -> Iterator[Process]:
    """Declare the processes; a user space of their own have those whose user APCs lead there."""
    yield Process("System", 4, tuple(machine.threads["System"]), parent=0)
    for name, pid, label in machine.processes:
        threads = tuple(machine.threads[label])
        if name in owners.OWNERS:
            yield replace(owners.process(name, kernel, threads), pid=pid)
        elif name == _IMPLANTED:
            yield Process(name, pid, threads, space=UserSpace(libraries.system(kernel)))
        else:
            yield Process(name, pid, threads)
