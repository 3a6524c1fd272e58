"""Whether a layout of threads and processes is that of the image: asked of the System process and its threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .. import facts as windows
from ..isf_types import IsfTypes
from ..layout import Layout, LayoutError, read_layout
from ..memory import PAGE, Memory
from ..model import ThreadMembers
from ..queues import walk

THREADS = 64
"""How many threads of the System process are looked at."""

_SYSTEM_PID = 4  # of every Windows from XP on (Windows Internals, "System process")
_MOST_WRONG = 8
"""One thread in so many may contradict the layout: an image of a running machine is smeared."""

_HIGHEST_COUNT = 0x1000  # KernelApcDisable either side of 0; genuine dumps have -12 at most

# A KAPC that every thread embeds, and whose Thread is that thread: since 8, and before.
_EMBEDDED = ("Tcb.SchedulerApc", "Tcb.SuspendApc")


@dataclass(frozen=True, slots=True)
class Fit:
    """How many threads were looked at and how many agree with the layout; `reason` is why it does not fit, if so."""

    agreeing: int
    threads: int
    reason: str | None = None


def probe(memory: Memory, address_of: Callable[[str], int | None], types: IsfTypes) -> Fit:
    """Check a layout against the image.

    Args:
        memory: the image.
        address_of: virtual address of a symbol of the kernel, None for one that it lacks.
        types: the structures that are to be tried.
    """
    try:
        layout = read_layout(types.member, types.size_of)
    except LayoutError as error:
        return Fit(0, 0, str(error))
    symbol = address_of("PsInitialSystemProcess")
    process = None if symbol is None else memory.pointer(symbol)
    if not process:
        return Fit(0, 0, "PsInitialSystemProcess cannot be read")
    reason = _not_system(memory, types, process)
    if reason is not None:
        return Fit(0, 0, reason)
    links = types.member("_EPROCESS", "ThreadListHead.Flink")
    if links is None:
        return Fit(0, 0, "_EPROCESS has no ThreadListHead")
    ring = walk(memory.links, process + links.offset, pointer_size=memory.pointer_size, bound=THREADS).entries
    threads = [entry - layout.thread_list_entry for entry in ring]
    agreeing = sum(_agrees(memory, layout, types, thread, process) for thread in threads)
    if not threads or (len(threads) - agreeing) * _MOST_WRONG > len(threads):
        return Fit(agreeing, len(threads), f"{agreeing} of {len(threads)} threads of System agree with it")
    return Fit(agreeing, len(threads))


def _not_system(memory: Memory, types: IsfTypes, process: int) -> str | None:
    pid, name = types.member("_EPROCESS", "UniqueProcessId"), types.member("_EPROCESS", "ImageFileName")
    if pid is None or name is None:
        return "_EPROCESS has no UniqueProcessId or ImageFileName"
    if memory.read(process, 1) != bytes([windows.PROCESS_OBJECT]):
        return f"PsInitialSystemProcess points to {process:#x}, where no process is"
    if memory.pointer(process + pid.offset) != _SYSTEM_PID or memory.read(process + name.offset, 7) != b"System\0":
        return "PsInitialSystemProcess is not System with PID 4 in it"
    return None


def _agrees(memory: Memory, layout: Layout, types: IsfTypes, thread: int, process: int) -> bool:
    """Tell whether what is at an address contradicts itself nowhere as a thread of a process."""
    data = memory.read(thread, layout.thread.size)
    if data is None:
        return False
    members = ThreadMembers._make(layout.thread(data))
    base, limit = members.stack_base or 0, members.stack_limit or 0
    return (
        members.dispatcher_type == windows.THREAD_OBJECT
        and members.pid == _SYSTEM_PID
        and bool(members.tid)
        and (members.tid or 0) % windows.ID_STEP == 0
        and members.process == process
        and (members.state or 0) <= windows.IN_SWAP
        and members.system_thread != 0
        and members.apc_state_index in (0, 1)
        and (members.apc_process if members.apc_state_index == 0 else members.saved_process) == process
        and (members.apc_state_index == 1 or not members.saved_process)
        and base % PAGE == limit % PAGE == 0
        and limit < base
        and abs(members.kernel_apc_disable or 0) <= _HIGHEST_COUNT
        and _linked(memory, thread + layout.kernel_head, members.apc_kernel_flink)
        and _linked(memory, thread + layout.user_head, members.apc_user_flink)
        and _embeds(data, types, thread)
    )


def _linked(memory: Memory, head: int, flink: int | None) -> bool:
    """Tell whether the entry that a list head points to points back, as one that is empty does to itself."""
    links = memory.links(flink) if flink else None
    return links is not None and links[1] == head


def _embeds(data: bytes, types: IsfTypes, thread: int) -> bool:
    for path in _EMBEDDED:
        kind, owner = types.member("_ETHREAD", f"{path}.Type"), types.member("_ETHREAD", f"{path}.Thread")
        if kind is not None and owner is not None:
            end = owner.offset + owner.size
            return (
                data[kind.offset] == windows.APC_OBJECT and int.from_bytes(data[owner.offset : end], "little") == thread
            )
    return False
