"""Threads: _ETHREAD objects with both APC states, and kernel stacks."""

from __future__ import annotations

import struct
from operator import attrgetter

from apcaudit.synthetic.layout import LayoutError
from apcaudit.synthetic.machine import BOOT_TIME, SYSTEM_TIME, Machine, SceneError
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.scene import Process, Thread
from apcaudit.synthetic.scheduling import STATES, WAIT_REASONS

#: KOBJECTS (wdm.h): NotificationEvent, Semaphore, Thread, TimerNotification, Apc.
_EVENT, _SEMAPHORE, _THREAD, _TIMER, _APC = 0, 5, 6, 8, 0x12

#: Bytes below a stack's base where a waiting thread's KernelStack points; ours.
_STACK_USED = 0x300

#: What of a scene's thread says in which state it is; threads alike in it share most of their bytes.
_STATE = attrgetter(
    "state",
    "wait_reason",
    "wait_irql",
    "wait_mode",
    "wait_state",
    "idle",
    "running_on",
    "terminated",
    "termination_request",
    "alertable",
    "suspend_count",
    "freeze_count",
    "apc_queueable",
    "kernel_apc_disable",
    "special_apc_disable",
    "kernel_apc_pending",
    "user_apc_pending",
    "kernel_apc_in_progress",
    "special_apc_in_progress",
)

#: Rings that are empty in a thread as these scenes have it.
_EMPTY_RINGS = (
    "Tcb.Header.WaitListHead",
    "Tcb.MutantListHead",
    "Tcb.Timer.Header.WaitListHead",
    "Tcb.SuspendSemaphore.Header.WaitListHead",
    "Tcb.SuspendEvent.Header.WaitListHead",
    "Tcb.ApcState.ApcListHead[0]",
    "Tcb.ApcState.ApcListHead[1]",
    "Tcb.ThreadListEntry",
    "ThreadListEntry",
    "IrpList",
    "PostBlockList",
    "ActiveTimerListHead",
)


class ThreadWriter:
    """Lays out threads of one kernel: a template of what all share, patched for each."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.memory = machine.memory
        self.layout = machine.memory.layout
        self.size = self.memory.size("_ETHREAD")
        self._pointer = struct.Struct("<Q" if machine.kernel.is_64bit else "<I")
        self._mask = self.layout.pointer_mask
        self._relocations: list[tuple[int, int]] = []
        self._template = bytearray(self.size)
        self._alike: dict[tuple[object, ...], bytearray] = {}
        self._states = tuple(self.layout.offset("_ETHREAD", f"Tcb.{each}") for each in ("ApcState", "SavedApcState"))
        self.embedded = next(
            (path for path in ("Tcb.SchedulerApc", "Tcb.SuspendApc") if self._has(path)), "Tcb.SuspendApc"
        )
        self._make_template()

    def _has(self, path: str) -> bool:
        return self.layout.has("_ETHREAD", path)

    def _put(self, data: bytearray, path: str, value: int, *, optional: bool = False) -> None:
        field = self.layout.find("_ETHREAD", path)
        if field is None:
            if optional:
                return
            field = self.layout.field("_ETHREAD", path)
        start, end = field.offset, field.offset + field.size
        if field.bits:
            mask = ((1 << field.bits) - 1) << field.bit
            value = (int.from_bytes(data[start:end], "little") & ~mask) | ((value << field.bit) & mask)
        data[start:end] = (value & ((1 << (8 * field.size)) - 1)).to_bytes(field.size, "little")

    def _self_pointer(self, path: str, target: str = "") -> None:
        """Note a pointer to a member of the thread itself."""
        if self._has(path):
            delta = self.layout.offset("_ETHREAD", target) if target else 0
            self._relocations.append((self.layout.offset("_ETHREAD", path), delta))

    def _make_template(self) -> None:
        put, kernel = self._put, self.machine.kernel
        put(self._template, "Tcb.Header.Type", _THREAD)
        if not self._has("Tcb.SchedulerApc"):
            put(self._template, "Tcb.Header.Size", self.memory.size("_KTHREAD") // 4)
        put(self._template, "Tcb.Timer.Header.Type", _TIMER)
        put(self._template, "Tcb.SuspendSemaphore.Header.Type", _SEMAPHORE, optional=True)
        put(self._template, "Tcb.SuspendEvent.Header.Type", _EVENT, optional=True)
        put(self._template, "Tcb.Priority", 8)
        put(self._template, "Tcb.BasePriority", 8)
        put(self._template, "Tcb.ContextSwitches", 7)
        put(self._template, "Tcb.KernelStackResident", 1, optional=True)
        put(self._template, "Tcb.PreviousMode", 0)
        routines = ("KiSuspendNop", "KiSuspendRundown", "KiSuspendThread")
        if self.embedded == "Tcb.SchedulerApc":
            routines = ("KiSchedulerApcNop", "KiSchedulerApcRundown", "KiSchedulerApc")
        put(self._template, f"{self.embedded}.Type", _APC)
        put(self._template, f"{self.embedded}.Size", self.memory.size("_KAPC"))
        for member, symbol in zip(("KernelRoutine", "RundownRoutine", "NormalRoutine"), routines, strict=True):
            if kernel.has(symbol):
                put(self._template, f"{self.embedded}.{member}", kernel.address(symbol))
        self._self_pointer(f"{self.embedded}.Thread")
        for ring in _EMPTY_RINGS:
            self._self_pointer(f"{ring}.Flink", ring)
            self._self_pointer(f"{ring}.Blink", ring)
        self._self_pointer("Tcb.WaitBlockList", "Tcb.WaitBlock[0]")
        for index in range(4):
            self._self_pointer(f"Tcb.WaitBlock[{index}].Thread")

    def place(self, process: Process, thread: Thread) -> int:
        """Place one thread's object and stack; its APCs come later."""
        machine = self.machine
        tag = machine.pool.types["Thread"]
        if thread.pool_tag is not None:
            machine.pool.types["Thread"] = type(tag)(tag.address, thread.pool_tag, tag.index)
        body = machine.pool.place_object("Thread", self.size, address=thread.address)
        machine.pool.types["Thread"] = tag
        stack_base = thread.stack_base if thread.stack_base is not None else machine.next_stack()
        system = process.pid in (0, 4) if thread.system is None else thread.system
        data = self._copy(thread, system=system)
        for offset, delta in self._relocations:
            self._pointer.pack_into(data, offset, (body + delta) & self._mask)
        self._identify(data, process, thread)
        self._apc_states(data, body, process, thread)
        self._stack(data, thread, stack_base, system=system)
        self.memory.space.write(body, bytes(data))
        for path, value in thread.members.items():
            self.memory.write(body, "_ETHREAD", path, value)
        machine.stack_of[body] = stack_base
        machine.address_of.setdefault(f"thread:{thread.tid}", body)
        machine.address_of.setdefault(thread.tid, body)
        if thread.in_cid_table and thread.tid:
            machine.cid_entries[thread.tid] = body
        return body

    def _copy(self, thread: Thread, *, system: bool) -> bytearray:
        """Give the bytes that all threads in the same state have."""
        key = (system, *_STATE(thread))
        if key not in self._alike:
            data = bytearray(self._template)
            self._schedule(data, thread, system=system)
            self._apc_flags(data, thread)
            self._alike[key] = data
        return bytearray(self._alike[key])

    def _schedule(self, data: bytearray, thread: Thread, *, system: bool) -> None:
        put = self._put
        if thread.state not in STATES or thread.wait_reason not in WAIT_REASONS:
            raise SceneError(f"thread {thread.tid}: no state {thread.state}:{thread.wait_reason}")
        put(data, "Tcb.State", STATES[thread.state])
        put(data, "Tcb.WaitReason", WAIT_REASONS[thread.wait_reason])
        # An idle thread never waits; genuine dumps show 2 there in 8.1 and 10.
        put(data, "Tcb.WaitIrql", 2 if thread.idle else thread.wait_irql)
        in_user_mode = thread.wait_mode == "user" if thread.wait_mode is not None else not system
        put(data, "Tcb.WaitMode", int(in_user_mode))
        # KWAIT_STATE WaitCommitted (public PDBs since 7).
        committed = 1 if thread.state == "Waiting" else 0
        state = committed if thread.wait_state is None else thread.wait_state
        put(data, "Tcb.WaitRegister.State", state, optional=True)
        put(data, "Tcb.FreezeCount", thread.freeze_count)
        put(data, "Tcb.TerminationApcRequest", int(thread.termination_request), optional=True)
        put(data, "Tcb.Alertable", int(thread.alertable))
        put(data, "Tcb.SuspendCount", thread.suspend_count)
        put(data, "Tcb.KernelApcDisable", thread.kernel_apc_disable)
        if thread.special_apc_disable or self._has("Tcb.SpecialApcDisable"):
            put(data, "Tcb.SpecialApcDisable", thread.special_apc_disable)
        queueable = thread.apc_queueable and not (thread.idle and self._idle_is_attached)
        put(data, "Tcb.ApcQueueable", int(queueable))
        if thread.running_on is not None:
            put(data, "Tcb.NextProcessor", thread.running_on)
        put(data, "SystemThread", int(system), optional=True)
        put(data, "Tcb.SystemThread", int(system), optional=True)
        put(data, "Terminated", int(thread.terminated))
        if thread.state == "Terminated":
            put(data, "ExitTime", SYSTEM_TIME - 10_000_000)

    @property
    def _idle_is_attached(self) -> bool:
        """Idle threads of 8.1 and 10 are at index 1 and not queueable (33 genuine dumps)."""
        return self._has("Tcb.ApcState.InProgressFlags")

    def _identify(self, data: bytearray, process: Process, thread: Thread) -> None:
        put, owner = self._put, self.machine.address_of[f"process:{process.pid}"]
        put(data, "Cid.UniqueProcess", process.pid)
        put(data, "Cid.UniqueThread", thread.tid)
        start = self.machine.resolve(thread.start)
        put(data, "StartAddress", start)
        put(data, "Win32StartAddress", start)
        if self._has("ThreadsProcess"):
            put(data, "ThreadsProcess", owner)
        put(data, "Tcb.Process", owner, optional=True)
        created = 0 if thread.idle else BOOT_TIME + thread.tid * 1_000_000
        # XP keeps NestedFaultCount and ApcNeeded in the lowest three bits of the time.
        put(data, "CreateTime", created << (3 if self._has("NestedFaultCount") else 0))

    def _apc_states(self, data: bytearray, body: int, process: Process, thread: Thread) -> None:
        put, owner = self._put, self.machine.address_of[f"process:{process.pid}"]
        attached = thread.attached_to
        index = int(attached is not None or (thread.idle and self._idle_is_attached))
        if attached is not None and attached not in self.machine.processes:
            raise SceneError(f"thread {thread.tid}: no process {attached} to attach to")
        if not index:
            target = owner
        elif attached is not None:
            target = self.machine.processes[attached]
        else:
            # An idle thread stays in the address space of the process that ran before it.
            target = self.machine.address_of["process:4"]
        put(data, "Tcb.ApcState.Process", target)
        put(data, "Tcb.ApcStateIndex", index)
        put(data, "Tcb.SavedApcState.Process", owner if index else 0)
        state, saved = (body + offset for offset in self._states)
        if self._has("Tcb.ApcStatePointer"):
            put(data, "Tcb.ApcStatePointer[0]", saved if index else state)
            put(data, "Tcb.ApcStatePointer[1]", state if index else saved)
        if index or thread.stale_saved_state:
            for queue in range(2):
                head = saved + self.layout.offset("_KAPC_STATE", f"ApcListHead[{queue}]")
                # What an APC long since run left behind: links to freed pool, in the kernel list only.
                stale = not index and queue == 0
                target = (body + self.size + 0x1234560) & ~0xF if stale else head
                for link in ("Flink", "Blink"):
                    put(data, f"Tcb.SavedApcState.ApcListHead[{queue}].{link}", target)

    def _apc_flags(self, data: bytearray, thread: Thread) -> None:
        put = self._put
        put(data, "Tcb.ApcState.KernelApcPending", int(thread.kernel_apc_pending))
        put(data, "Tcb.ApcState.UserApcPending", int(thread.user_apc_pending))
        if self._has("Tcb.ApcState.InProgressFlags"):
            flags = int(thread.kernel_apc_in_progress) | 2 * int(thread.special_apc_in_progress)
            put(data, "Tcb.ApcState.InProgressFlags", flags)
            return
        put(data, "Tcb.ApcState.KernelApcInProgress", int(thread.kernel_apc_in_progress))
        if thread.special_apc_in_progress:
            raise LayoutError("this kernel does not note that a special APC is in progress (Windows 8.1 does)")

    def _stack(self, data: bytearray, thread: Thread, base: int, *, system: bool) -> None:
        memory, size = self.memory, self.machine.ranges.stack_size
        top = base - _STACK_USED
        self._put(data, "Tcb.InitialStack", base)
        self._put(data, "Tcb.StackBase", base)
        self._put(data, "Tcb.StackLimit", base - size)
        self._put(data, "Tcb.KernelStack", top)
        if not thread.stack_pages:
            self._put(data, "Tcb.KernelStackResident", 0, optional=True)
            return
        memory.space.map(base - thread.stack_pages * PAGE, thread.stack_pages * PAGE)
        if not system and not thread.idle:
            self._trap_frame(data, base, thread)
        values = thread.stack or ("nt!KiSwapContext+0x7a", "nt!KiSwapThread+0x9c")
        pointers = [self.machine.resolve(value, base) & self._mask for value in values]
        memory.space.write(top, b"".join(map(self._pointer.pack, pointers)))

    def _trap_frame(self, data: bytearray, base: int, thread: Thread) -> None:
        """Write the frame that a system call from user mode leaves at the top of the stack."""
        memory = self.memory
        if not memory.layout.has_type("_KTRAP_FRAME"):
            return
        frame = base - (-(-memory.size("_KTRAP_FRAME") // 16) * 16)
        is_64bit = self.machine.kernel.is_64bit
        memory.write(frame, "_KTRAP_FRAME", "SegCs", 0x33 if is_64bit else 0x1B)
        left = self.machine.ranges.user + 0x1234 if thread.instruction is None else thread.instruction
        memory.write(frame, "_KTRAP_FRAME", "Rip" if is_64bit else "Eip", self.machine.resolve(left))
        self._put(data, "Tcb.TrapFrame", frame)
