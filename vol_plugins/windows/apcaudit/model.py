"""The values that pass between the stages of the audit: threads, queues, APCs, code, facts about the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from operator import attrgetter
from typing import Any

from . import windows
from .members import ThreadMembers as ThreadMembers
from .targets import Target


@dataclass(frozen=True, slots=True)
class ModuleConflict:
    """The reason why an entry of the module list is not believed.

    `overlapping` is whether it claims memory of other modules, or an impossible base or size, which no loader causes.
    Otherwise the image's own header contradicts it; drivers that erase their headers cause that too.
    """

    text: str
    overlapping: bool = False

    def __str__(self) -> str:
        return self.text


class Neighbours(Enum):
    """How a thread's ThreadListEntry relates to the entries that it points to."""

    PASSED_BY = "the entries that its ThreadListEntry names link past it: it was unlinked"
    SELF = "its ThreadListEntry points to itself: it was unlinked and closed, or never linked in"
    EMPTY = "its ThreadListEntry is null"
    LINKED = "its neighbours still link to it: it hangs on a ring that its process's list does not reach"
    HALF = "one neighbour links to it and the other past it: the list was changing, or is damaged"
    UNREADABLE = "what its ThreadListEntry points to cannot be read"


@dataclass(frozen=True, slots=True)
class Absence:
    """The evidence that a view lacks a thread that another view holds, though the view was read to its end.

    `missed_by` names the view that lacks it: `list` or `cid`. `neighbours` is None where the thread is on its list, or
    its links could not be read. `created_late` is whether it was created while the image was being taken (None:
    unknown), `stopped` whether a bugcheck had stopped the machine, so that nothing in the image can be smeared.
    """

    missed_by: str
    neighbours: Neighbours | None = None
    created_late: bool | None = None
    stopped: bool = False

    @property
    def smear(self) -> bool:
        """Whether the time between two reads of a running machine explains the absence."""
        return bool(self.created_late) and not self.stopped


def neighbours_of(entry: int, links: tuple[int, int], around: tuple[tuple[int, int] | None, ...]) -> Neighbours:
    """Classify a LIST_ENTRY by the links of the entries that it points to.

    Args:
        entry: virtual address of the LIST_ENTRY.
        links: its (Flink, Blink).
        around: (Flink, Blink) of the entry that Flink names and of the one that Blink names; None is unreadable.
    """
    if links == (0, 0):
        return Neighbours.EMPTY
    if links == (entry, entry):
        return Neighbours.SELF
    following, before = around
    if following is None or before is None:
        return Neighbours.UNREADABLE
    linked = following[1] == entry, before[0] == entry
    if all(linked):
        return Neighbours.LINKED
    return Neighbours.HALF if any(linked) else Neighbours.PASSED_BY


class QueueName(str, Enum):
    """The list of a thread that an APC is on."""

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
    ABSENT = "the next entry is not in this dump"
    MISALIGNED = "a link is not aligned to a pointer"
    OTHER_HEAD = "a link leads to the head of another list"
    JOINS = "from there on it is another list"
    CYCLE = "the list closes without returning to its head"
    BOUND = "the list is longer than the audit follows"


class View(str, Enum):
    """A record of threads in the image: process list, CID table, processors, memory scan, dump header."""

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
    """Why no routine can begin at an address in a module; `certain` is whether nothing there is executable."""

    text: str
    certain: bool


@dataclass(frozen=True, slots=True)
class Code:
    """A code address and what is known of it; text is `module!symbol+offset` as a debugger prints it.

    `former` names the unloaded driver whose range had the address, where no module has it now. `doubt` says why the
    entry of the module list that claims the address is not believed. For routines, `not_code` says why none can begin
    at the address, and `region` names the memory where no module has it.
    """

    address: int
    backing: Backing
    text: str
    module: str | None = None
    symbol: str | None = None
    former: str | None = None
    doubt: ModuleConflict | None = None
    not_code: NotCode | None = None
    region: str | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Origin:
    """What queued an APC: one phrase, the evidence in the image, and what is inferred from it.

    In `text`, inferred parts end in a question mark.
    """

    text: str
    evidence: tuple[str, ...] = ()
    inferred: tuple[str, ...] = ()


ApcKey = tuple[QueueName, int, bool]
"""A list of a thread, the virtual address of a KAPC on it, and whether the list is of a third APC state.

One KAPC may be on two lists.
"""


@dataclass(frozen=True, slots=True)
class Apc:
    """A KAPC as read from memory; `address` is its virtual address, None means that a member could not be read.

    `member` names the member of the list's own thread that the KAPC is, such as SchedulerApc, `also_on` another list
    that holds it. `misplaced` names the memory that it lies in if no queued KAPC belongs there, `on_stack` is whether
    that is a kernel stack. `nested` is whether it is on a list of a third APC state, which KeStackAttachProcess keeps
    on the kernel stack. `of_bugcheck` is whether a parameter of the bugcheck names it though no list holds it.
    `special_user` is whether its KernelRoutine is that of special user APCs.
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
    of_bugcheck: bool = False
    special_user: bool = False

    @property
    def key(self) -> ApcKey:
        """The key of results about this APC."""
        return self.queue, self.address, self.nested

    @property
    def absent(self) -> bool:
        """Whether nothing of the KAPC could be read, so that only its address is known."""
        members = (self.type, self.thread, self.kernel_routine, self.normal_routine, self.inserted)
        return all(member is None for member in members)

    @property
    def is_user(self) -> bool:
        """Whether it would run something in user mode."""
        return self.special_user or self.apc_mode == windows.USER_MODE

    @property
    def kind(self) -> str | None:
        """`special-kernel`, `normal-kernel`, `user` or `special-user`; None when the mode or NormalRoutine is unknown.

        A special user APC is one in both of its phases: at first its ApcMode is KernelMode.
        """
        if self.special_user:
            return "special-user"
        if self.apc_mode == windows.USER_MODE:
            return "user"
        if self.apc_mode is None or self.normal_routine is None:
            return None
        return "normal-kernel" if self.normal_routine.address else "special-kernel"


@dataclass(frozen=True, slots=True)
class Queue:
    """One APC list of a thread: what was read, how the walk ended, and where it was damaged.

    `broken_at` is the address of the first LIST_ENTRY whose Blink does not point back to where the
    walk came from, None when every link agrees. `led_to` is the link that could not be followed. Where
    the list ends in an entry that the dump lacks, the last APC is that one, of which only the address is known.
    """

    name: QueueName
    head: int
    apcs: tuple[Apc, ...]
    ending: Ending
    ended_at: int
    broken_at: int | None = None
    led_to: int | None = None

    @property
    def intact(self) -> bool:
        """Whether every link was readable and agreed with its neighbours."""
        return self.ending is Ending.CLOSED and self.broken_at is None

    @property
    def empty(self) -> bool:
        """Whether the list is intact and holds nothing."""
        return self.intact and not self.apcs

    @property
    def undamaged(self) -> bool:
        """Whether nothing that was read of the list contradicts it; an entry that the dump lacks is no damage."""
        return self.ending in (Ending.CLOSED, Ending.ABSENT) and self.broken_at is None


@dataclass(frozen=True, slots=True)
class FoundThread:
    """A thread that some view of the image holds: its _ETHREAD's virtual address, members, owner, and views.

    `processor` is the number of the processor whose CurrentThread this is. `irql` is the IRQL that it ran at when a
    bugcheck stopped the machine, None if unknown. `absence` is the evidence where a view lacks the thread,
    `owner_listed` whether PsActiveProcessHead has its process (None: not asked).
    """

    address: int
    members: ThreadMembers
    owner: Process | None
    views: frozenset[View] = frozenset()
    processor: int | None = None
    idle: bool = False
    irql: int | None = None
    absence: Absence | None = None
    owner_listed: bool | None = None


@dataclass(frozen=True, slots=True)
class QueuedThread(FoundThread):
    """A thread with its APC lists walked.

    A list that is intact and empty is not in `queues`. `attached` is ApcState.Process where it is not the owner.
    `start_backing` is what holds a system thread's start address, `start` the code there where something is wrong with
    it, `start_conflict` why the entry of the module list that claims it is doubted. `nested_attach` is the evidence of
    a second attach on an attached thread's stack. `lost` are APCs on the lists of SavedApcState of a thread that is not
    attached.
    """

    attached: Process | None = None
    queues: tuple[Queue, ...] = ()
    start_backing: Backing | None = None
    start: Code | None = None
    start_conflict: ModuleConflict | None = None
    nested_attach: str | None = None
    lost: tuple[Apc, ...] = ()

    @classmethod
    def from_found(cls, found: FoundThread, **walked: Any) -> QueuedThread:
        """Make a QueuedThread from a found thread; `walked` are the members that this stage adds."""
        return cls(*_as_found(found), **walked)

    def queue(self, name: QueueName) -> Queue | None:
        """Return the named list where it is damaged or holds something, else None."""
        for queue in self.queues:
            if queue.name is name:
                return queue
        return None

    def process_of(self, apc: Apc) -> Process | None:
        """Return the process whose user space one of this thread's user APCs would run in."""
        attached = self.members.apc_state_index == 1 and not apc.queue.saved
        return self.attached if attached and self.attached is not None else self.owner


@dataclass(frozen=True, slots=True)
class Thread(QueuedThread):
    """A thread with all that the checks need.

    `targets` are what its user APCs would run, as far as that is known. `only_stuck` is whether this is the only thread
    of a live image with an APC that should have ended its wait. `first` is whether this is the only thread of a process
    in which nothing has run in user mode yet, None if unknown, or where no user APC needs it.
    """

    targets: Mapping[ApcKey, Target] = field(default_factory=dict)
    only_stuck: bool = False
    first: bool | None = None

    @classmethod
    def from_queued(cls, queued: QueuedThread, **added: Any) -> Thread:
        """Make a Thread from one whose lists were walked; `added` are the members that this stage adds."""
        return cls(*_as_queued(queued), **added)

    def target(self, apc: Apc) -> Target | None:
        """Return what one of its user APCs would run, None where that is not known and for other APCs."""
        return self.targets.get(apc.key)


# The members that a thread has at a stage, in the order of its constructor.
_as_found, _as_queued = (attrgetter(*stage.__match_args__) for stage in (FoundThread, QueuedThread))


@dataclass(frozen=True, slots=True)
class BugCheck:
    """The stop code and its four parameters, and where they were read."""

    code: int
    parameters: tuple[int, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about the image as a whole that checks need.

    `apc_size` is sizeof(_KAPC) in bytes, `lacks` the names of ThreadMembers that this Windows lacks.
    `partial` is whether the image was made to hold only parts of memory, like a minidump: then unreadable memory is no
    evidence. `crashing_thread` is the _ETHREAD that stopped the machine, None if unknown, `crash` the line about
    the bugcheck, None without one.
    `create_time_shift` is how many bits _ETHREAD.CreateTime is shifted to the left of a FILETIME. `routines` are the
    addresses of windows.ROUTINES that this kernel has, `wait_reasons` the names of its KWAIT_REASON, `embedded` the
    members of its _ETHREAD that are KAPCs.
    """

    apc_size: int
    lacks: frozenset[str] = frozenset()
    partial: bool = False
    bugcheck: BugCheck | None = None
    crashing_thread: int | None = None
    crash: str | None = None
    create_time_shift: int = 0
    routines: Mapping[str, int] = field(default_factory=dict)
    wait_reasons: tuple[str, ...] = windows.WAIT_REASONS
    embedded: frozenset[str] = frozenset()

    @property
    def stopped(self) -> bool:
        """Whether the image is of a machine that a bugcheck stopped, so that all of it is of one moment."""
        return self.bugcheck is not None

    def is_routine(self, code: Code | None, *names: str) -> bool:
        """Tell whether an address is that of one of the named kernel routines, whatever other names it has."""
        return code is not None and any(self.routines.get(name) == code.address for name in names)
