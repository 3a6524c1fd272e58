"""Processors: a _KPCR and _KPRCB each, and KiProcessorBlock."""

from __future__ import annotations

from apcaudit.synthetic.dump import CONTEXT_FULL
from apcaudit.synthetic.machine import Machine
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.scene import Bugcheck

#: IRQL that a bugcheck leaves a processor at: HIGH_LEVEL, 31 on x86 and 15 on x64.
_HIGH_LEVEL = {4: 31, 8: 15}


def place(machine: Machine, current: dict[int, int], idle: dict[int, int]) -> None:
    """Place all processors; `current` and `idle` are _ETHREADs by processor number."""
    memory, scene = machine.memory, machine.scene
    block = machine.variable("KiProcessorBlock", 64 * memory.pointer_size)
    prcb_member = "Prcb" if memory.pointer_size == 8 else "PrcbData"
    size = max(memory.size("_KPCR"), memory.offset("_KPCR", prcb_member) + memory.size("_KPRCB"))
    stride = -(-size // PAGE) * PAGE + PAGE
    for number in range(scene.processors):
        kpcr = machine.ranges.processor if not number else machine.ranges.other_processors + number * stride
        memory.space.map(kpcr, min(size, (1 << 32) - kpcr) if memory.pointer_size == 4 else size)
        prcb = kpcr + memory.offset("_KPCR", prcb_member)
        memory.write(kpcr, "_KPCR", "Self", kpcr, optional=True)
        memory.write(kpcr, "_KPCR", "SelfPcr", kpcr, optional=True)
        memory.write(kpcr, "_KPCR", "CurrentPrcb" if memory.pointer_size == 8 else "Prcb", prcb)
        memory.write(kpcr, "_KPCR", "MajorVersion", 1)
        memory.write(kpcr, "_KPCR", "MinorVersion", 1)
        memory.write(kpcr, "_KPCR", "Number", number, optional=True)
        memory.write(kpcr, "_KPCR", "KdVersionBlock", machine.kernel.address("KdVersionBlock"), optional=True)
        running = current.get(number, idle[number])
        memory.write(prcb, "_KPRCB", "CurrentThread", running)
        memory.write(prcb, "_KPRCB", "NextThread", 0)
        memory.write(prcb, "_KPRCB", "IdleThread", idle[number])
        memory.write(prcb, "_KPRCB", "Number", number)
        memory.write(prcb, "_KPRCB", "MajorVersion", 1)
        memory.write(prcb, "_KPRCB", "MinorVersion", 1)
        root = memory.space.mode.root
        memory.write(prcb, "_KPRCB", "ProcessorState.SpecialRegisters.Cr3", root, optional=True)
        if scene.bugcheck is not None:
            memory.write(kpcr, "_KPCR", "Irql", _HIGH_LEVEL[memory.pointer_size], optional=True)
            if running == machine.address_of.get(f"thread:{scene.crashing_thread}"):
                _save_state(machine, scene.bugcheck, prcb)
        memory.write_pointer(block + number * memory.pointer_size, prcb)
        machine.address_of[f"kpcr:{number}"] = kpcr
        machine.address_of[f"kprcb:{number}"] = prcb
    memory.write_scalar(machine.variable("KeNumberProcessors", 4), 4, scene.processors)


def _save_state(machine: Machine, bugcheck: Bugcheck, prcb: int) -> None:
    """Write what a processor that stops the machine saves of itself."""
    memory, crash_irql = machine.memory, machine.scene.crash_irql
    if crash_irql is not None:
        memory.write(prcb, "_KPRCB", "DebuggerSavedIRQL", crash_irql, optional=True)
    flags = {"ContextFlags": CONTEXT_FULL[machine.kernel.is_64bit]} if bugcheck.registers else {}
    for name, value in {**flags, **bugcheck.registers}.items():
        path = f"ProcessorState.ContextFrame.{name}"
        memory.write(prcb, "_KPRCB", path, machine.resolve(value), optional=True)
