"""Build a scene for a kernel: one pass over what the scene declares, in an order that never depends on chance."""

from __future__ import annotations

from apcaudit.synthetic import debugger, handletable, lowstub, modules, processes, processors
from apcaudit.synthetic.apcs import ApcWriter
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import Kernel
from apcaudit.synthetic.machine import Machine, SceneError
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.scene import Process, Scene, Thread
from apcaudit.synthetic.threads import ThreadWriter
from apcaudit.synthetic.userspace import spaces


def build(scene: Scene, kernel: Kernel) -> Image:
    """Build a scene; the same scene and kernel give the same bytes.

    Raises:
        SceneError: the scene names what it does not declare.
        LayoutError: the scene uses a member that this kernel lacks.
    """
    machine = Machine(scene, kernel)
    _reserve(machine)
    modules.place_kernel(machine)
    machine.pool.create_types()
    _write_type_variables(machine)
    modules.place_drivers(machine)
    modules.place_code(machine)
    modules.place_module_list(machine)
    modules.place_unloaded(machine)
    whole = processes.complete(scene)
    processes.place(machine, whole)
    _place_threads(machine, whole)
    handletable.place(machine)
    debugger.place(machine)
    lowstub.place(machine)
    # Where Windows maps a process's pages for a moment. Nothing lies there; that it exists tells kernel page tables.
    machine.memory.space.map(machine.ranges.hyperspace, PAGE)
    image = Image(machine)
    for event in scene.events:
        event(image)
    return image


def _reserve(machine: Machine) -> None:
    """Keep the pool away from the pages that the scene's own addresses take."""
    for process in machine.scene.processes:
        addresses = [process.address, *(thread.address for thread in process.threads)]
        addresses += [apc.address for thread in process.threads for apc in thread.apcs]
        for address in addresses:
            if address is not None:
                machine.pool.reserve((address & ~(PAGE - 1)) - PAGE, (address & ~(PAGE - 1)) + 2 * PAGE)


def _write_type_variables(machine: Machine) -> None:
    pairs = {"PsThreadType": "Thread", "PsProcessType": "Process", "IoDriverObjectType": "Driver"}
    pairs |= {"IoDeviceObjectType": "Device", "IoFileObjectType": "File", "ObpTypeObjectType": "Type"}
    for symbol, name in pairs.items():
        machine.set_pointer(symbol, machine.pool.types[name].address)
    if machine.kernel.has("ObHeaderCookie"):
        from apcaudit.synthetic.pool import HEADER_COOKIE

        machine.memory.write_scalar(machine.variable("ObHeaderCookie", 1), 1, HEADER_COOKIE)


def _place_threads(machine: Machine, whole: tuple[Process, ...]) -> None:
    writer = ThreadWriter(machine)
    placed: list[tuple[Thread, int]] = []
    current: dict[int, int] = {}
    idle: dict[int, int] = {}
    for process in whole:
        listed = []
        for thread in process.threads:
            body = writer.place(process, thread)
            placed.append((thread, body))
            if process.space is not None:
                spaces.place_teb_pointer(machine, thread.tid, body)
            if thread.in_thread_list:
                listed.append(body)
            if thread.idle and thread.running_on is not None:
                idle[thread.running_on] = body
            elif thread.running_on is not None:
                current[thread.running_on] = body
        processes.link_threads(machine, process, listed)
    # After all threads, since an APC may name another thread.
    apcs = ApcWriter(machine, writer)
    for thread, body in placed:
        apcs.place(thread, body)
    _place_frames(machine, placed)
    if len(idle) < machine.scene.processors or any(number not in idle for number in current):
        raise SceneError(f"scene {machine.scene.name}: a thread runs on a processor that it does not declare")
    processors.place(machine, current, idle)


def _place_frames(machine: Machine, placed: list[tuple[Thread, int]]) -> None:
    memory = machine.memory
    for thread, body in placed:
        base = machine.stack_of[body]
        for frame in thread.frames:
            at = machine.resolve(frame.address, base)
            memory.space.map(at, len(frame.values) * memory.pointer_size)
            for position, value in enumerate(frame.values):
                memory.write_pointer(at + position * memory.pointer_size, machine.resolve(value, base))
