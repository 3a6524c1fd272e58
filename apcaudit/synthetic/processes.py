"""Processes: _EPROCESS objects, PsActiveProcessHead, and the rings of their threads."""

from __future__ import annotations

from apcaudit.synthetic import processparts
from apcaudit.synthetic.machine import BOOT_TIME, Machine
from apcaudit.synthetic.scene import Process, Scene, Thread

#: KOBJECTS ProcessObject (wdm.h).
_PROCESS_OBJECT = 3
_SYSTEM_PID = 4


def complete(scene: Scene) -> tuple[Process, ...]:
    """Give the scene's processes, with Idle and System and one idle thread a processor where they are missing."""
    processes = list(scene.processes)
    if not any(process.pid == _SYSTEM_PID for process in processes):
        processes.insert(0, Process("System", _SYSTEM_PID, parent=0))
    idle = next((process for process in processes if process.pid == 0), None)
    if idle is None:
        idle = Process("Idle", 0, parent=0, in_process_list=False)
        processes.insert(0, idle)
    have = sum(thread.idle for thread in idle.threads)
    if have < scene.processors:
        threads = idle.threads + tuple(_idle_thread(index) for index in range(have, scene.processors))
        completed = Process("Idle", 0, threads, idle.address, 0, in_process_list=False)
        processes[processes.index(idle)] = completed
    return tuple(processes)


def _idle_thread(processor: int) -> Thread:
    """Declare a processor's idle thread; its TID is 0, so it has no entry in the CID table."""
    return Thread(
        0, start="nt!KiIdleLoop", state="Running", wait_reason="Executive", idle=True, running_on=processor,
        in_cid_table=False,
    )  # fmt: skip


def place(machine: Machine, processes: tuple[Process, ...]) -> None:
    """Place the processes' objects; their threads come later."""
    memory = machine.memory
    listed = []
    for position, process in enumerate(processes):
        body = machine.pool.place_object("Process", memory.size("_EPROCESS"), address=process.address)
        _write(machine, process, body)
        processparts.place(machine, process, body, position)
        machine.processes[process.name] = body
        machine.address_of[f"process:{process.name}"] = body
        machine.address_of[f"process:{process.pid}"] = body
        if process.pid:
            machine.cid_entries[process.pid] = body
        if process.in_process_list and process.pid:
            listed.append(body + memory.offset("_EPROCESS", "ActiveProcessLinks"))
        if process.pid == _SYSTEM_PID:
            machine.set_pointer("PsInitialSystemProcess", body)
        elif process.pid == 0:
            machine.set_pointer("PsIdleProcess", body)
    memory.link(machine.variable("PsActiveProcessHead", 16), listed)
    processparts.place_protections(machine)


def _write(machine: Machine, process: Process, body: int) -> None:
    memory = machine.memory
    values: list[tuple[str, int | bytes]] = [
        ("UniqueProcessId", process.pid),
        ("ImageFileName", process.name.encode()[:14]),
        ("Pcb.Header.Type", _PROCESS_OBJECT),
        ("Pcb.DirectoryTableBase", memory.space.mode.root),
        ("Pcb.BasePriority", 8),
        ("ExitTime", b""),
    ]
    if process.pid not in (0, _SYSTEM_PID):
        created = BOOT_TIME + process.pid * 10_000_000
        values += [("CreateTime", created.to_bytes(8, "little")), ("InheritedFromUniqueProcessId", process.parent)]
    for path, value in values:
        memory.write(body, "_EPROCESS", path, value)
    if process.wow64:
        # What the pointer leads to (_EWOW64PROCESS since 10, the 32-bit PEB before) is not read by anybody here.
        for name in ("WoW64Process", "Wow64Process"):
            memory.write(body, "_EPROCESS", name, machine.pool.allocate(0x10, b"Wow6"), optional=True)
    for head in ("Pcb.Header.WaitListHead", "Pcb.ThreadListHead", "Pcb.ProfileListHead", "Pcb.ReadyListHead"):
        if memory.has("_EPROCESS", head):
            memory.link(body + memory.offset("_EPROCESS", head), [])
    for head in ("ThreadListHead", "ActiveProcessLinks"):
        memory.link(body + memory.offset("_EPROCESS", head), [])


def link_threads(machine: Machine, process: Process, threads: list[int]) -> None:
    """Make both rings of a process's threads, by the addresses of its listed _ETHREADs."""
    memory, body = machine.memory, machine.address_of[f"process:{process.pid}"]
    executive = memory.offset("_ETHREAD", "ThreadListEntry")
    kernel = memory.offset("_ETHREAD", "Tcb.ThreadListEntry")
    memory.link(body + memory.offset("_EPROCESS", "ThreadListHead"), [each + executive for each in threads])
    memory.link(body + memory.offset("_EPROCESS", "Pcb.ThreadListHead"), [each + kernel for each in threads])
    memory.write(body, "_EPROCESS", "ActiveThreads", len(threads), optional=True)
