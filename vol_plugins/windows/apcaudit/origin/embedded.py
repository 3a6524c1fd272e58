"""KAPCs that are members of another structure: the thread's own, a timer's, an ETW entry's."""

from __future__ import annotations

from ..memory import Memory
from ..model import Apc, Origin, Thread
from ..structures import read_member
from ..symbols import KernelSymbols

# What the KAPCs in _KTHREAD and _ETHREAD are for: SuspendApc to 7, SchedulerApc since 8 (its NormalRoutine is
# KiSchedulerApc), UpdateTebApc since 24H2 (public PDBs of these builds).
_PURPOSES = {
    "SuspendApc": "suspension",
    "SchedulerApc": "suspension, freezing, preemption or termination",
    "UpdateTebApc": "update of the TEB",
}

# KOBJECTS TimerNotificationObject and TimerSynchronizationObject (ReactOS sdk/include/ndk/ketypes.h).
_TIMER_TYPES = (8, 9)

# KernelRoutine, structure and member that holds its KAPC (public PDBs; _ETW_APC_ENTRY.Apc in 16299 to 19045 only).
_HOLDERS = (
    ("ExpTimerApcRoutine", "_ETIMER", "TimerApc"),
    ("EtwpStackWalkApc", "_ETW_APC_ENTRY", "Apc"),
    ("EtwpCrimsonStackWalkApc", "_ETW_APC_ENTRY", "Apc"),
    ("MiStoreWriteModifiedCompleteApc", "_MMMOD_WRITER_MDL_ENTRY", "StoreWriteCompletionApc"),
)


class Embedded:
    """Names the KAPCs that the symbol table shows as members of threads, timers and the like."""

    def __init__(self, memory: Memory, symbols: KernelSymbols) -> None:
        self._memory = memory
        self._symbols = symbols
        self._terminate = symbols.address("KiSchedulerApcTerminate")
        self._holders = {
            address: (structure, name)
            for routine, structure, name in _HOLDERS
            if (address := symbols.address(routine)) is not None
        }

    def of_thread(self, apc: Apc, thread: Thread) -> Origin | None:
        """Return the origin of a KAPC that is a member of its thread."""
        name = apc.member
        if name is None:
            return None
        evidence = [f"the KAPC is {name} of the thread itself"]
        members = thread.members
        if name in ("SuspendApc", "SchedulerApc"):
            evidence += [
                f"{label} is {count}"
                for label, count in (("SuspendCount", members.suspend_count), ("FreezeCount", members.freeze_count))
                if count is not None
            ]
        if self._is_terminating(apc):
            evidence.append(f"KernelRoutine is {apc.kernel_routine}")
            return Origin(f"{name} of this thread: termination", tuple(evidence), ("KiSchedulerApc has turned it so",))
        purpose = _PURPOSES.get(name)
        if purpose is None:
            return Origin(f"{name} of this thread", tuple(evidence))
        return Origin(f"{name} of this thread: {purpose}?", tuple(evidence), (f"{name} serves {purpose}",))

    def _is_terminating(self, apc: Apc) -> bool:
        """Tell SchedulerApc in the user phase of a termination: the routine decides, since the member serves all."""
        return (
            self._terminate is not None
            and apc.kernel_routine is not None
            and (apc.kernel_routine.address == self._terminate)
        )

    def holder(self, apc: Apc) -> Origin | None:
        """Return the origin of a KAPC whose KernelRoutine belongs to a structure that holds it."""
        held = self._holders.get(apc.kernel_routine.address) if apc.kernel_routine is not None else None
        member = self._symbols.member(*held) if held is not None else None
        if held is None or member is None:
            return None
        structure, name = held
        address = apc.address - member.offset
        evidence = [f"KernelRoutine is {apc.kernel_routine}, whose KAPC is a member {structure}.{name}: {address:#x}"]
        if structure != "_ETIMER":
            return Origin(f"{structure} {address:#x}?", tuple(evidence))
        kind = read_member(self._memory, self._symbols, structure, "KeTimer.Header.Type", address)
        if kind not in _TIMER_TYPES:
            said = "unreadable" if kind is None else f"{kind}, no timer's"
            return Origin(f"timer {address:#x}? (KeTimer.Header.Type is {said})", tuple(evidence))
        evidence.append(f"its KeTimer.Header.Type is {kind}, a timer's")
        routine = f" with the completion routine {apc.normal_routine}" if apc.normal_routine is not None else ""
        return Origin(
            f"timer {address:#x} expired", tuple(evidence), (f"the thread set the timer{routine} (NtSetTimer)",)
        )
