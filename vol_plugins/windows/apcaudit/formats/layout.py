"""Decoders of kernel structures, built once from the offsets and sizes in the symbol table."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..members import PrefilterMembers, ThreadMembers


@dataclass(frozen=True, slots=True)
class Member:
    """A member's offset and size in bytes; of a bit field also its lowest bit and width (`bits` None: no bit field)."""

    offset: int
    size: int
    signed: bool = False
    shift: int = 0
    bits: int | None = None


MemberLookup = Callable[[str, str], "Member | None"]
"""Finds a member by structure name and dotted path (`Tcb.ApcState.ApcListHead[0].Flink`); None if there is none."""

_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def is_number(member: Member) -> bool:
    """Return whether a member is an integer of 1, 2, 4 or 8 bytes; a damaged symbol file may claim anything."""
    if member.size not in _FORMATS or member.offset < 0:
        return False
    return member.bits is None or (member.shift >= 0 and 0 < member.bits <= 8 * member.size - member.shift)


class Decoder:
    """Decodes the chosen members of one structure from its bytes, in the order given.

    Calling it with the structure's bytes returns a tuple of integers, with None where the member
    given was None. Members may overlap, as in unions.
    """

    __slots__ = ("_first", "_members", "_others", "_pick", "_structs", "size")

    def __init__(self, members: Sequence[Member | None], size: int) -> None:
        self.size = size
        self._members = tuple(members)
        units = sorted({(m.offset, m.size, m.signed and m.bits is None) for m in members if m is not None})
        self._structs: list[struct.Struct] = []
        position: dict[tuple[int, int, bool], int] = {}
        while units:
            units = self._add_struct(units, position)
        self._first, *self._others = self._structs or [struct.Struct("<")]
        picks = [_expression(member, position) for member in members]
        # A generated expression (namedtuple does the same): loops take twice as long, and a decoder is called for every
        # thread of the image. The text contains only numbers that are computed here.
        self._pick: Callable[[tuple[int, ...]], tuple[int | None, ...]] = eval(  # noqa: S307
            f"lambda values: ({' '.join(f'{pick},' for pick in picks)})", {}
        )

    def _add_struct(
        self, units: list[tuple[int, int, bool]], position: dict[tuple[int, int, bool], int]
    ) -> list[tuple[int, int, bool]]:
        """Add a struct format for the units that do not overlap; return the units left over."""
        text, end, rest = "<", 0, []
        for unit in units:
            offset, size, signed = unit
            if offset < end:
                rest.append(unit)
                continue
            letter = _FORMATS[size]
            text += f"{offset - end}x" + (letter.lower() if signed else letter)
            end = offset + size
            position[unit] = len(position)
        self._structs.append(struct.Struct(text))
        return rest

    def __call__(self, data: bytes, offset: int = 0) -> tuple[int | None, ...]:
        """Decode the structure at an offset of a buffer, which must contain all of it."""
        values: tuple[int, ...] = self._first.unpack_from(data, offset)
        for part in self._others:
            values += part.unpack_from(data, offset)
        return self._pick(values)

    def partial(self, data: bytes, holes: Iterable[tuple[int, int]]) -> tuple[int | None, ...]:
        """Decode a structure of which some bytes are unknown.

        Args:
            data: the structure's bytes; those in the holes are ignored.
            holes: the unknown ranges [start, end), in bytes from its start. A member that overlaps one becomes None.
        """
        holes = tuple(holes)
        values = self(data)
        return tuple(
            None if member is not None and _touches(member, holes) else value
            for member, value in zip(self._members, values, strict=True)
        )


def _expression(member: Member | None, position: Mapping[tuple[int, int, bool], int]) -> str:
    """Return the Python expression that extracts a member from the unpacked `values`."""
    if member is None:
        return "None"
    if member.bits is None:
        return f"values[{position[member.offset, member.size, member.signed]}]"
    unit = position[member.offset, member.size, False]
    return f"values[{unit}] >> {member.shift:d} & {(1 << member.bits) - 1:d}"


def _touches(member: Member, holes: Iterable[tuple[int, int]]) -> bool:
    return any(max(start, member.offset) < min(end, member.offset + member.size) for start, end in holes)


# Members of an embedded KAPC that are read together with the thread.
_EMBEDDED_MEMBERS = {
    "type": "Type",
    "size": "Size",
    "thread": "Thread",
    "kernel": "KernelRoutine",
    "rundown": "RundownRoutine",
    "normal": "NormalRoutine",
    "inserted": "Inserted",
}

# The paths below _ETHREAD of each member of ThreadMembers, newest Windows first. Comments say in which Windows a member
# moved, by the symbol files of those builds.
_THREAD_PATHS: dict[str, tuple[str, ...]] = {
    "pid": ("Cid.UniqueProcess",),
    "tid": ("Cid.UniqueThread",),
    "dispatcher_type": ("Tcb.Header.Type",),
    "process": ("Tcb.Process", "ThreadsProcess"),  # _ETHREAD.ThreadsProcess to 2003 and Vista, _KTHREAD.Process since
    "state": ("Tcb.State",),
    "wait_reason": ("Tcb.WaitReason",),
    "wait_irql": ("Tcb.WaitIrql",),
    "wait_mode": ("Tcb.WaitMode",),
    "wait_state": ("Tcb.WaitRegister.State",),  # since 7
    "suspend_count": ("Tcb.SuspendCount",),
    "freeze_count": ("Tcb.FreezeCount",),  # a byte to 7, a bit of ThreadFlags or MiscFlags since 8
    "alertable": ("Tcb.Alertable",),
    "apc_queueable": ("Tcb.ApcQueueable",),
    "apc_state_index": ("Tcb.ApcStateIndex",),
    "kernel_apc_disable": ("Tcb.KernelApcDisable",),
    "special_apc_disable": ("Tcb.SpecialApcDisable",),  # since Server 2003: XP has no guarded regions
    "terminated": ("Terminated",),
    "termination_request": ("Tcb.TerminationApcRequest",),  # since 8.1
    "system_thread": ("Tcb.SystemThread", "SystemThread"),  # CrossThreadFlags to 7, _KTHREAD's MiscFlags since 8
    "start_address": ("StartAddress",),
    "win32_start_address": ("Win32StartAddress",),
    "next_processor": ("Tcb.NextProcessorNumber", "Tcb.NextProcessor"),
    "kernel_stack": ("Tcb.KernelStack",),
    "initial_stack": ("Tcb.InitialStack",),
    "stack_base": ("Tcb.StackBase",),
    "stack_limit": ("Tcb.StackLimit",),
    "thread_list_flink": ("ThreadListEntry.Flink",),
    "thread_list_blink": ("ThreadListEntry.Blink",),
    "irp_list_flink": ("IrpList.Flink",),
    "create_time": ("CreateTime.QuadPart",),
    "exit_time": ("ExitTime.QuadPart",),
    "apc_kernel_flink": ("Tcb.ApcState.ApcListHead[0].Flink",),
    "apc_kernel_blink": ("Tcb.ApcState.ApcListHead[0].Blink",),
    "apc_user_flink": ("Tcb.ApcState.ApcListHead[1].Flink",),
    "apc_user_blink": ("Tcb.ApcState.ApcListHead[1].Blink",),
    "apc_process": ("Tcb.ApcState.Process",),
    "kernel_apc_in_progress": ("Tcb.ApcState.KernelApcInProgress",),  # a byte to 8, a bit of InProgressFlags since 8.1
    "special_apc_in_progress": ("Tcb.ApcState.SpecialApcInProgress",),
    "kernel_apc_pending": ("Tcb.ApcState.KernelApcPending",),
    "user_apc_pending": ("Tcb.ApcState.UserApcPendingAll", "Tcb.ApcState.UserApcPending"),  # two bits since 17763
    "saved_kernel_flink": ("Tcb.SavedApcState.ApcListHead[0].Flink",),
    "saved_kernel_blink": ("Tcb.SavedApcState.ApcListHead[0].Blink",),
    "saved_user_flink": ("Tcb.SavedApcState.ApcListHead[1].Flink",),
    "saved_user_blink": ("Tcb.SavedApcState.ApcListHead[1].Blink",),
    "saved_process": ("Tcb.SavedApcState.Process",),
    **{
        f"suspend_apc_{name}": (f"Tcb.SchedulerApc.{member}", f"Tcb.SuspendApc.{member}")
        for name, member in _EMBEDDED_MEMBERS.items()
    },
    **{f"teb_apc_{name}": (f"UpdateTebApc.{member}",) for name, member in _EMBEDDED_MEMBERS.items()},
}

# KeEnterCriticalRegion and similar routines decrement these: negative means disabled. XP's PDB has them as ULONG.
_SIGNED = frozenset({"kernel_apc_disable", "special_apc_disable"})

STRUCTURE_BOUND = 0x10000
"""The largest plausible _ETHREAD, in bytes; genuine ones are smaller than 0x1000."""

_LARGEST_KAPC = 0xFF  # KAPC.Size is a byte since Vista; genuine KAPCs have 0x30 and 0x58 bytes

_APC_MEMBERS = (
    "Type",
    "Size",
    "Thread",
    "KernelRoutine",
    "RundownRoutine",
    "NormalRoutine",
    "NormalContext",
    "SystemArgument1",
    "SystemArgument2",
    "ApcStateIndex",
    "ApcMode",
    "Inserted",
)


class LayoutError(Exception):
    """The symbol table lacks a structure or member that the audit cannot do without."""


@dataclass(frozen=True, slots=True)
class EmbeddedKapc:
    """A KAPC that is a member of _ETHREAD: offsets in _ETHREAD of the fields that the kernel sets once.

    `routines` is the offset of KernelRoutine; RundownRoutine and NormalRoutine follow it directly in every version.
    """

    member: str
    start: int
    end: int
    type: int
    size: int
    thread: int
    routines: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The structures of one kernel that the audit decodes; sizes and offsets in bytes.

    `thread` decodes ThreadMembers, `prefilter` PrefilterMembers. `kernel_head`, `user_head`, `saved_kernel_head`,
    `saved_user_head` and `thread_list_entry` are offsets in _ETHREAD, `apc_list_entry` is an offset in _KAPC.
    `state_kernel_head`, `state_user_head` and `state_process` are offsets in _KAPC_STATE.
    `embedded` maps the offset of each KAPC in _ETHREAD to the member's name; `embedded_kapcs` has the offsets of its
    fields. `has_state_pointer` is whether _KTHREAD has ApcStatePointer; then the kernel inserts an APC into the list of
    the APC's own ApcStateIndex, whatever the thread's is. `lacks` names the ThreadMembers that this Windows does not
    have.
    """

    pointer_size: int
    thread: Decoder
    prefilter: Decoder
    apc: Decoder
    apc_list_entry: int
    kernel_head: int
    user_head: int
    saved_kernel_head: int
    saved_user_head: int
    thread_list_entry: int
    state_kernel_head: int
    state_user_head: int
    state_process: int
    embedded: Mapping[int, str]
    embedded_kapcs: tuple[EmbeddedKapc, ...]
    has_state_pointer: bool
    lacks: frozenset[str]


def read_layout(
    lookup: MemberLookup,
    size_of: Callable[[str], int | None],
    members_of_type: Callable[[str, str], Mapping[str, int]] = lambda *_: {},
) -> Layout:
    """Read the layout from a symbol table.

    Args:
        lookup: finds a member.
        size_of: returns the size of a structure in bytes, None when the table lacks it.
        members_of_type: returns name and offset of the direct members of a structure that have a given type.

    Raises:
        LayoutError: a structure or required member is missing or has an impossible size or offset; the message
            names it.
    """
    sizes = {name: size_of(name) for name in ("_ETHREAD", "_KTHREAD", "_KAPC", "_KAPC_STATE", "_EPROCESS")}
    missing = [name for name, size in sizes.items() if not size]
    if missing:
        raise LayoutError(f"the symbol table has no {', '.join(missing)}")
    names = ThreadMembers._fields
    thread = [_first(lookup, _THREAD_PATHS[name]) for name in names]
    for index, name in enumerate(names):
        member = thread[index]
        if member is not None and name in _SIGNED:
            thread[index] = Member(member.offset, member.size, signed=True)
    lists = [_needed(lookup, "_ETHREAD", path) for path in _LIST_HEADS]
    state = [_needed(lookup, "_KAPC_STATE", path) for path in _STATE_MEMBERS]
    entry = _needed(lookup, "_KAPC", "ApcListEntry.Flink")
    apc = [_needed(lookup, "_KAPC", name) for name in _APC_MEMBERS]
    _check("_ETHREAD", sizes["_ETHREAD"] or 0, [*thread, *lists])
    _check("_KAPC_STATE", sizes["_KAPC_STATE"] or 0, state)
    _check("_KAPC", sizes["_KAPC"] or 0, [*apc, entry])
    if (sizes["_KAPC"] or 0) > _LARGEST_KAPC:
        raise LayoutError(f"the symbol table's _KAPC has {sizes['_KAPC']:#x} bytes, more than its own Size can say")
    lacks = frozenset(name for name, member in zip(names, thread, strict=True) if member is None)
    embedded = _embedded(lookup, members_of_type)
    has_state_pointer = lookup("_ETHREAD", "Tcb.ApcStatePointer[0]") is not None
    # The links of an unused SavedApcState matter only where the kernel may still insert APCs there.
    unused = frozenset() if has_state_pointer else frozenset({"saved_kernel_flink", "saved_user_flink"})
    prefilter = [None if name in unused else thread[names.index(name)] for name in PrefilterMembers._fields]
    return Layout(
        pointer_size=entry.size,
        thread=Decoder(thread, sizes["_ETHREAD"] or 0),
        prefilter=Decoder(prefilter, sizes["_ETHREAD"] or 0),
        apc=Decoder(apc, sizes["_KAPC"] or 0),
        apc_list_entry=entry.offset,
        kernel_head=lists[0].offset,
        user_head=lists[1].offset,
        saved_kernel_head=lists[2].offset,
        saved_user_head=lists[3].offset,
        thread_list_entry=lists[4].offset,
        state_kernel_head=state[0].offset,
        state_user_head=state[1].offset,
        state_process=state[2].offset,
        embedded=embedded,
        embedded_kapcs=_embedded_kapcs(embedded, dict(zip(_APC_MEMBERS, apc, strict=True)), sizes),
        has_state_pointer=has_state_pointer,
        lacks=lacks,
    )


def _embedded(lookup: MemberLookup, members_of_type: Callable[[str, str], Mapping[str, int]]) -> dict[int, str]:
    """Return offset in _ETHREAD and name of every member that is a KAPC, including those of its _KTHREAD."""
    tcb = lookup("_ETHREAD", "Tcb")
    start = 0 if tcb is None else tcb.offset
    found = {offset + start: name for name, offset in members_of_type("_KTHREAD", "_KAPC").items()}
    return found | {offset: name for name, offset in members_of_type("_ETHREAD", "_KAPC").items()}


def _embedded_kapcs(
    embedded: Mapping[int, str], members: Mapping[str, Member], sizes: Mapping[str, int | None]
) -> tuple[EmbeddedKapc, ...]:
    return tuple(
        EmbeddedKapc(
            name,
            start,
            start + (sizes["_KAPC"] or 0),
            start + members["Type"].offset,
            start + members["Size"].offset,
            start + members["Thread"].offset,
            start + members["KernelRoutine"].offset,
        )
        for start, name in embedded.items()
        if start + (sizes["_KAPC"] or 0) <= (sizes["_ETHREAD"] or 0)
    )


_LIST_HEADS = (
    "Tcb.ApcState.ApcListHead[0].Flink",
    "Tcb.ApcState.ApcListHead[1].Flink",
    "Tcb.SavedApcState.ApcListHead[0].Flink",
    "Tcb.SavedApcState.ApcListHead[1].Flink",
    "ThreadListEntry.Flink",
)
_STATE_MEMBERS = ("ApcListHead[0].Flink", "ApcListHead[1].Flink", "Process")


def _check(structure: str, size: int, members: Sequence[Member | None]) -> None:
    """Check that a structure's members lie inside it and can be decoded.

    Raises:
        LayoutError: one of them does not, or the structure is too large.
    """
    if size > STRUCTURE_BOUND:
        raise LayoutError(f"the symbol table's {structure} has {size:#x} bytes, more than any kernel's")
    for member in members:
        if member is None:
            continue
        if not is_number(member):
            raise LayoutError(f"the symbol table's {structure} has a member of {member.size} bytes that is no number")
        if member.offset > size - member.size:
            raise LayoutError(
                f"the symbol table's {structure} has {size:#x} bytes and a member at {member.offset:#x}, outside of it"
            )


def _first(lookup: MemberLookup, paths: Sequence[str]) -> Member | None:
    return next((member for path in paths if (member := lookup("_ETHREAD", path)) is not None), None)


def _needed(lookup: MemberLookup, structure: str, path: str) -> Member:
    member = lookup(structure, path)
    if member is None:
        raise LayoutError(f"the symbol table's {structure} has no {path}")
    return member
