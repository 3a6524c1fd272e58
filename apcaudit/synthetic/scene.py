"""Scenes: what a synthetic machine holds, declared as values.

An address is a number or a name: `nt!IopCompleteRequest`, `Bfilter!ScUnInitExcludePath+0x30` (an export),
`Bfilter+0x8a0` (an offset in the image), `nt!A|nt!B` (the first that the kernel has), for a thread's own values
`stack-0x90` (below its stack base), and in stack contents the name of anything placed (`process:svchost.exe`,
`thread:8`, `apc:LABEL`: see `image.Image`). Addresses in user space are told in `user`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from apcaudit.synthetic.assembly import Code
from apcaudit.synthetic.user import UserSpace

if TYPE_CHECKING:
    from apcaudit.synthetic.image import Image

Address = int | str


@dataclass(frozen=True, slots=True)
class IoStackLocation:
    """One IO_STACK_LOCATION of an IRP; `driver` names whose device it is for."""

    driver: str
    major: int = 0
    minor: int = 0
    device: str | None = None
    completion_routine: Address = 0
    context: Address = 0
    control: int = 0


@dataclass(frozen=True, slots=True)
class Irp:
    """The IRP that a KAPC is embedded in (Tail.Apc), completed and waiting for its APC.

    `stack` is ordered as in memory: the lowest driver first, the driver that the request was sent to last.
    `file_name` makes a file object on the last location's device. `user_iosb` and `user_event` are addresses, often on
    the requesting thread's stack. `in_irp_list` tells a threaded IRP from one of IoAllocateIrp. `user_apc_routine`
    is what NtReadFile and its like were given, with its context.
    """

    stack: tuple[IoStackLocation, ...] = ()
    flags: int = 0
    file_name: str | None = None
    user_iosb: Address = 0
    user_event: Address = 0
    status: int = 0
    information: int = 0
    requestor_mode: int = 0
    in_irp_list: bool = True
    current_location: int | None = None
    user_apc_routine: Address = 0
    user_apc_context: Address = 0


@dataclass(frozen=True, slots=True)
class Apc:
    """One KAPC. What is left None is filled in as Windows would for the list that holds it.

    `thread` is the TID that KAPC.Thread points to. `holder` puts it in a structure of the thread's or of its own:
    `suspend` (SuspendApc or SchedulerApc, whichever the kernel has), `teb` (UpdateTebApc), `timer` (an ETIMER that the
    thread has set) or `reserve` (a reserve object, to which the processes in `handles` have one). With `linked` False
    the KAPC exists but no list holds it.
    """

    kernel_routine: Address = "nt!IopCompleteRequest"
    normal_routine: Address = 0
    rundown_routine: Address = 0
    mode: str | None = None
    environment: int | None = None
    inserted: bool = True
    type: int = 0x12
    size: int | None = None
    thread: int | None = None
    address: int | None = None
    normal_context: Address = 0
    system_argument1: Address | None = None
    system_argument2: Address = 0
    irp: Irp | None = None
    holder: str | None = None
    handles: tuple[str, ...] = ()
    pool_tag: bytes | None = b"KAPC"
    label: str | None = None
    linked: bool = True


@dataclass(frozen=True, slots=True)
class StackWrite:
    """Pointers written at one place of a kernel stack."""

    address: Address
    values: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread. `attached_to` names the process whose address space it has entered with KeStackAttachProcess.

    `system` is whether it is a system thread (default: its process is System or Idle). `wait_mode` is `kernel` or
    `user` (default: as the thread is), `wait_state` WaitRegister.State (default: WaitCommitted of a waiting thread).
    `requests` are its pending IRPs. `stack` are the pointers found from KernelStack upwards; `frames` go to addresses
    of their own. `stack_pages` is how much of the top of the stack is in memory, `instruction` where the thread left
    user mode. `members` are raw values by `_ETHREAD` member path (`Tcb.WaitIrql`), written last.
    """

    tid: int
    start: Address = "nt!ExpWorkerThread"
    state: str = "Waiting"
    wait_reason: str = "WrQueue"
    wait_irql: int = 0
    attached_to: str | None = None
    kernel_apc_pending: bool = False
    user_apc_pending: bool = False
    kernel_apc_in_progress: bool = False
    special_apc_in_progress: bool = False
    kernel_apc_disable: int = 0
    special_apc_disable: int = 0
    apc_queueable: bool = True
    alertable: bool = False
    terminated: bool = False
    system: bool | None = None
    suspend_count: int = 0
    freeze_count: int = 0
    wait_mode: str | None = None
    wait_state: int | None = None
    termination_request: bool = False
    kernel_apcs: tuple[Apc, ...] = ()
    user_apcs: tuple[Apc, ...] = ()
    saved_kernel_apcs: tuple[Apc, ...] = ()
    saved_user_apcs: tuple[Apc, ...] = ()
    requests: tuple[Irp, ...] = ()
    address: int | None = None
    in_thread_list: bool = True
    in_cid_table: bool = True
    running_on: int | None = None
    idle: bool = False
    stack: tuple[Address, ...] = ()
    frames: tuple[StackWrite, ...] = ()
    stack_base: int | None = None
    stack_pages: int = 1
    stale_saved_state: bool = False
    pool_tag: bytes | None = None
    instruction: Address | None = None
    members: Mapping[str, int | bytes] = field(default_factory=dict)

    @property
    def apcs(self) -> tuple[Apc, ...]:
        """All KAPCs of the thread."""
        return self.kernel_apcs + self.user_apcs + self.saved_kernel_apcs + self.saved_user_apcs


@dataclass(frozen=True, slots=True)
class Process:
    """One process; PID 4 is System, PID 0 is Idle. A scene that leaves them out is given them.

    `wow64` is whether it runs 32-bit code on x64. `space` is what it has in user space, behind page tables of its own;
    without it the process has the kernel's page tables, a PEB and one VAD.
    """

    name: str
    pid: int
    threads: tuple[Thread, ...] = ()
    address: int | None = None
    parent: int = 4
    in_process_list: bool = True
    wow64: bool = False
    space: UserSpace | None = None


@dataclass(frozen=True, slots=True)
class Driver:
    r"""One driver image: exports by relative address, imports by module, and pieces of code.

    `unwind` is UNWIND_INFO by the relative addresses [begin, end) of functions, which x64 images have.
    `listed` is whether PsLoadedModuleList has it. Devices are names without `\Device\`; an empty name makes an
    unnamed device.
    """

    name: str
    base: int | None = None
    size: int = 0x8000
    exports: Mapping[str, int] = field(default_factory=dict)
    imports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    code: Mapping[int, Code] = field(default_factory=dict)
    unwind: Mapping[tuple[int, int], bytes] = field(default_factory=dict)
    listed: bool = True
    devices: tuple[str, ...] = ()
    driver_object: bool = True

    @property
    def stem(self) -> str:
        """The name without its extension, as a debugger shows it."""
        return self.name.rpartition(".")[0] or self.name


@dataclass(frozen=True, slots=True)
class UnloadedDriver:
    """A former driver, as MmUnloadedDrivers remembers it."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Bugcheck:
    """Why the machine stopped: code, four parameters, and the driver that was blamed.

    `registers` of the crashed processor go to the dump's context and the processor's own, by their names in CONTEXT.
    """

    code: int
    parameters: tuple[Address, Address, Address, Address] = (0, 0, 0, 0)
    driver: str | None = None
    registers: Mapping[str, Address] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scene:
    """A machine. `crashing_thread` is the TID of the thread that stopped it; the dump's context is its.

    `code` are pieces of machine code by their address, of the kernel mostly.
    `events` are replayed on the built image, in their order: what corrupts, mostly.
    """

    name: str
    description: str
    kernel: str
    processes: tuple[Process, ...] = ()
    drivers: tuple[Driver, ...] = ()
    unloaded: tuple[UnloadedDriver, ...] = ()
    bugcheck: Bugcheck | None = None
    crashing_thread: int | None = None
    crash_irql: int | None = None
    processors: int = 1
    code: Mapping[Address, Code] = field(default_factory=dict)
    events: tuple[Callable[[Image], None], ...] = ()
