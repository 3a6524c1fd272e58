"""The values that pass between the stages of the audit: threads, queues, APCs, findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from . import facts as windows
from .absence import Absence
from .module_doubt import ModuleDoubt
from .severity import Severity as Severity
from .thread_members import ThreadMembers as ThreadMembers

if TYPE_CHECKING:
    from .stacks.frame import Stack


class QueueName(str, Enum):
    """Which list of a thread an APC hangs on."""

    KERNEL = "kernel"
    USER = "user"
    SAVED_KERNEL = "saved-kernel"
    SAVED_USER = "saved-user"
    OFF_LIST = "off-list"

    @property
    def mode(self) -> int | None:
        """The KAPC.ApcMode that belongs on this list (KPROCESSOR_MODE), None where any may be."""
        return _MODE_OF_QUEUE.get(self)

    @property
    def saved(self) -> bool:
        """Whether the list belongs to _KTHREAD.SavedApcState."""
        return self in (QueueName.SAVED_KERNEL, QueueName.SAVED_USER)


_MODE_OF_QUEUE = {
    QueueName.KERNEL: 0,
    QueueName.SAVED_KERNEL: 0,
    QueueName.USER: 1,
    QueueName.SAVED_USER: 1,
}


class Ending(Enum):
    """How the walk of a LIST_ENTRY ring ended."""

    CLOSED = "came back to its head"
    UNREADABLE = "a link points to memory that cannot be read"
    MISALIGNED = "a link is not aligned to a pointer"
    OTHER_HEAD = "a link leads to the head of another list"
    JOINS = "from there on it is another list"
    CYCLE = "the list closes without returning to its head"
    BOUND = "the list is longer than the audit follows"


class View(str, Enum):
    """Where a thread was found."""

    LIST = "list"
    CID = "cid"
    CPU = "cpu"
    SCAN = "scan"
    DUMP = "dump"


@dataclass(frozen=True, slots=True)
class Process:
    """An _EPROCESS: virtual address, PID, image name, and whether it runs 32-bit code on x64; None is unknown."""

    address: int
    pid: int | None
    name: str | None
    wow64: bool | None = None

    def __str__(self) -> str:
        return f"{self.name or hex(self.address)} ({'?' if self.pid is None else self.pid})"


class Backing(Enum):
    """What holds the code at an address."""

    MODULE = "loaded module"
    UNLOADED = "former range of an unloaded driver"
    NOTHING = "no loaded module"
    USER = "user space, or at no canonical address"
    UNKNOWN = "the list of modules could not be read"


@dataclass(frozen=True, slots=True)
class NotCode:
    """Why no routine can begin at an address in a module; `certain` is whether nothing there can be run at all."""

    text: str
    certain: bool


@dataclass(frozen=True, slots=True)
class Code:
    """A code address and what is known of it; text is `module!symbol+offset` as a debugger prints it.

    `former` names the unloaded driver whose range the address lay in, where no module lies there now. `doubt` says why
    the entry of the module list that claims the address is not believed. Of routines, `not_code` says why none can
    begin there, and `region` in what memory it lies that no module holds.
    """

    address: int
    backing: Backing
    text: str
    module: str | None = None
    symbol: str | None = None
    former: str | None = None
    doubt: ModuleDoubt | None = None
    not_code: NotCode | None = None
    region: str | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Origin:
    """What queued an APC: one phrase, what the image shows, and what follows from it.

    In `text`, what is inferred ends in a question mark.
    """

    text: str
    evidence: tuple[str, ...] = ()
    inferred: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Apc:
    """A KAPC as it stands in memory; address is its virtual address, None what could not be read.

    `member` is the member of the list's own thread that the KAPC is, SchedulerApc say. `misplaced` says where it lies
    where that is no place for a queued KAPC, `on_stack` whether that is a kernel stack. `nested` is whether it hangs on
    a third APC state, which KeStackAttachProcess keeps on the kernel stack. `of_bugcheck` is whether a parameter of the
    bugcheck names it and no list holds it any more.
    """

    address: int
    queue: QueueName
    position: int
    type: int | None
    size: int | None
    thread: int | None
    kernel_routine: Code | None
    rundown_routine: Code | None
    normal_routine: Code | None
    normal_context: int | None
    system_argument1: int | None
    system_argument2: int | None
    apc_state_index: int | None
    apc_mode: int | None
    inserted: int | None
    member: str | None = None
    also_on: str | None = None
    misplaced: str | None = None
    on_stack: bool = False
    nested: bool = False
    origin: Origin | None = None
    of_bugcheck: bool = False

    @property
    def kind(self) -> str | None:
        """`special-kernel`, `normal-kernel` or `user`; None when the mode or NormalRoutine is unknown.

        A special user APC is told by its routine's address: see checks.own_apcs.
        """
        if self.apc_mode == 1:
            return "user"
        if self.apc_mode is None or self.normal_routine is None:
            return None
        return "normal-kernel" if self.normal_routine.address else "special-kernel"


@dataclass(frozen=True, slots=True)
class Queue:
    """One APC list of a thread: what was read, how the walk ended, and where it was damaged.

    `broken_at` is the address of the first LIST_ENTRY whose Blink does not point back to where the
    walk came from, None when every link agrees.
    """

    name: QueueName
    head: int
    apcs: tuple[Apc, ...]
    ending: Ending
    ended_at: int
    broken_at: int | None = None

    @property
    def intact(self) -> bool:
        """Whether every link was readable and agreed with its neighbours."""
        return self.ending is Ending.CLOSED and self.broken_at is None

    @property
    def empty(self) -> bool:
        """Whether the list is intact and holds nothing."""
        return self.intact and not self.apcs


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread: its _ETHREAD's virtual address, members, owner, and the APC lists that are not quiet.

    A list that is intact and empty is not in `queues`. `attached` is ApcState.Process where it is not
    the owner. `processor` is the number of the processor whose CurrentThread this is. `irql` is what
    the image tells of the IRQL that the thread ran at when the machine stopped; None is unknown.
    `start_backing` says what holds a system thread's start address; `start` names it once it is reported.
    `absence` is the evidence where a view misses the thread, `owner_listed` whether PsActiveProcessHead holds
    its process (None: not asked), `nested_attach` what the stack of an attached thread shows of a second attach.
    `crash` is what the bugcheck says of a thread that it names. `start_conflict` says why the entry of the module list
    that claims the start address is doubted. `stack` is what was found of its frames, of suspect threads. `lost` are
    APCs on the lists of SavedApcState though the thread is not attached, and `only_stuck` is whether no other thread of
    a live image has an APC that should have ended its wait.
    """

    address: int
    members: ThreadMembers
    owner: Process | None
    attached: Process | None = None
    views: frozenset[View] = frozenset()
    queues: tuple[Queue, ...] = ()
    start_backing: Backing | None = None
    start: Code | None = None
    processor: int | None = None
    idle: bool = False
    irql: int | None = None
    absence: Absence | None = None
    owner_listed: bool | None = None
    nested_attach: str | None = None
    crash: str | None = None
    start_conflict: ModuleDoubt | None = None
    stack: Stack | None = None
    lost: tuple[Apc, ...] = ()
    only_stuck: bool = False

    def queue(self, name: QueueName) -> Queue | None:
        """Return the named list where it is damaged or holds something, else None."""
        for queue in self.queues:
            if queue.name is name:
                return queue
        return None


@dataclass(frozen=True, slots=True)
class BugCheck:
    """The stop code and its four parameters, and where they were read."""

    code: int
    parameters: tuple[int, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the audit knows of the image as a whole and a check may need.

    `apc_size` is sizeof(_KAPC) in bytes, `lacks` the names of ThreadMembers that this Windows lacks.
    `partial` is whether the image was made to hold only parts of memory, as a minidump is: that something cannot be
    read then says nothing. `crashing_thread` is the _ETHREAD that stopped the machine, None where that is unknown.
    `create_time_shift` is how many bits _ETHREAD.CreateTime is shifted to the left of a FILETIME. `routines` are the
    addresses of windows.ROUTINES that this kernel has, `wait_reasons` the names of its KWAIT_REASON, `embedded` the
    members of its _ETHREAD that are KAPCs.
    """

    apc_size: int
    lacks: frozenset[str] = frozenset()
    partial: bool = False
    bugcheck: BugCheck | None = None
    crashing_thread: int | None = None
    create_time_shift: int = 0
    routines: Mapping[str, int] = field(default_factory=dict)
    wait_reasons: tuple[str, ...] = windows.WAIT_REASONS
    embedded: frozenset[str] = frozenset()

    @property
    def stopped(self) -> bool:
        """Whether the image is of a machine that a bugcheck stopped, so that all of it is of one moment."""
        return self.bugcheck is not None

    def is_routine(self, code: Code | None, *names: str) -> bool:
        """Tell whether an address is that of one of the kernel's routines, whatever other names it has."""
        return code is not None and any(self.routines.get(name) == code.address for name in names)


@dataclass(frozen=True, slots=True)
class Finding:
    """A code of the vocabulary that holds, how severe it is here, and one sentence with the values."""

    code: str
    severity: Severity
    explanation: str


@dataclass(frozen=True, slots=True)
class YaraHit:
    """A YARA rule that hit a driver, or memory that no driver holds.

    `at_start` is whether a string of it lies in the function at the thread's start address; `address` is where the
    first of those strings lies, else the first of all, None for a rule without strings.
    """

    rule: str
    unit: str
    at_start: bool
    address: int | None

    def __str__(self) -> str:
        return f"{self.rule}@start" if self.at_start else self.rule


@dataclass(frozen=True, slots=True)
class Audited:
    """A thread with its findings, and those of each of its APCs by list and KAPC address.

    `yara` names the rules that hit the drivers that it depends on, `rule@start` first, None where none was scanned;
    `yara_hits` are those hits.
    """

    thread: Thread
    findings: tuple[Finding, ...]
    apc_findings: Mapping[tuple[QueueName, int], tuple[Finding, ...]]
    yara: str | None = None
    yara_hits: tuple[YaraHit, ...] = ()

    @property
    def severity(self) -> Severity:
        """The highest severity among the findings of the thread and its APCs, INFO without any."""
        findings = [*self.findings, *(finding for found in self.apc_findings.values() for finding in found)]
        return max((finding.severity for finding in findings), default=Severity.INFO)
