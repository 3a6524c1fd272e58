"""KAPCs and the IRPs and timers that hold them, hung on their threads' lists."""

from __future__ import annotations

from dataclasses import replace

from apcaudit.synthetic import reserves
from apcaudit.synthetic.machine import Machine, SceneError
from apcaudit.synthetic.scene import Apc, Irp, Thread
from apcaudit.synthetic.threads import ThreadWriter

#: (queue, state, list index): where each of a thread's four APC lists has its head.
QUEUES = {
    "kernel_apcs": ("Tcb.ApcState", 0),
    "user_apcs": ("Tcb.ApcState", 1),
    "saved_kernel_apcs": ("Tcb.SavedApcState", 0),
    "saved_user_apcs": ("Tcb.SavedApcState", 1),
}

#: IO_TYPE_IRP and IO_TYPE_FILE (wdm.h); KOBJECTS TimerNotificationObject.
_IO_TYPE_IRP, _IO_TYPE_FILE, _TIMER = 6, 5, 8


class ApcWriter:
    """Lays out a thread's KAPCs."""

    def __init__(self, machine: Machine, threads: ThreadWriter) -> None:
        self.machine = machine
        self.memory = machine.memory
        self.pool = machine.pool
        self._threads = threads

    def place(self, thread: Thread, body: int) -> None:
        """Place the thread's KAPCs and link them in the order declared."""
        for queue, (state, index) in QUEUES.items():
            apcs: tuple[Apc, ...] = getattr(thread, queue)
            if not apcs:
                continue
            head = body + self.memory.offset("_ETHREAD", f"{state}.ApcListHead[{index}]")
            entries = []
            for position, apc in enumerate(apcs):
                address = self._place(thread, body, apc, index, saved=state.endswith("SavedApcState"))
                self.machine.address_of[f"apc:{apc.label or f'{thread.tid}:{queue}:{position}'}"] = address
                if apc.linked:
                    entries.append(address + self.memory.offset("_KAPC", "ApcListEntry"))
            self.memory.link(head, entries)
        for position, irp in enumerate(thread.requests):
            self._place_request(thread, body, irp, position)

    def _place(self, thread: Thread, body: int, apc: Apc, index: int, *, saved: bool) -> int:
        memory, machine = self.memory, self.machine
        stack = machine.stack_of[body]
        file_object = 0
        if apc.irp is not None:
            address, file_object = self._place_irp(thread, body, apc, apc.irp)
        else:
            address = self._place_alone(body, apc)
        owner = body if apc.thread is None else machine.address_of[f"thread:{apc.thread}"]
        environment = apc.environment
        if environment is None:
            # Saved lists hold what was queued to the thread's own process.
            environment = 0 if saved else memory.read(body, "_ETHREAD", "Tcb.ApcStateIndex")
        argument = file_object if apc.system_argument1 is None else machine.resolve(apc.system_argument1, stack)
        mode = ("kernel", "user")[index] if apc.mode is None else apc.mode
        for path, value in (
            ("Type", apc.type),
            ("Size", memory.size("_KAPC") if apc.size is None else apc.size),
            ("Thread", owner),
            ("KernelRoutine", machine.resolve(apc.kernel_routine, stack)),
            ("RundownRoutine", machine.resolve(apc.rundown_routine, stack)),
            ("NormalRoutine", machine.resolve(apc.normal_routine, stack)),
            ("ApcStateIndex", environment),
            ("ApcMode", ("kernel", "user").index(mode)),
            ("Inserted", int(apc.inserted)),
        ):
            memory.write(address, "_KAPC", path, value)
        if apc.holder not in ("suspend", "teb"):
            # An embedded scheduler APC's arguments are other members of the thread.
            memory.write(address, "_KAPC", "NormalContext", machine.resolve(apc.normal_context, stack))
            memory.write(address, "_KAPC", "SystemArgument1", argument)
            memory.write(address, "_KAPC", "SystemArgument2", machine.resolve(apc.system_argument2, stack))
        if not apc.linked:
            # What the public exploits leave: an entry that points at itself.
            entry = address + memory.offset("_KAPC", "ApcListEntry")
            memory.link(entry, [])
        return address

    def _place_alone(self, body: int, apc: Apc) -> int:
        memory = self.memory
        if apc.holder == "suspend":
            return body + memory.offset("_ETHREAD", self._threads.embedded)
        if apc.holder == "teb":
            return body + memory.offset("_ETHREAD", "UpdateTebApc")
        if apc.holder == "timer":
            member = memory.offset("_ETIMER", "TimerApc")
            start = None if apc.address is None else apc.address - member
            timer = self.pool.allocate(memory.size("_ETIMER"), b"Time", start)
            memory.write(timer, "_ETIMER", "KeTimer.Header.Type", _TIMER)
            memory.write(timer, "_ETIMER", "ApcAssociated", 1, optional=True)
            # Until its APC has run once the timer is on its thread's list (ReactOS, ex/timer.c).
            entry = timer + memory.offset("_ETIMER", "ActiveTimerListEntry")
            memory.append(body + memory.offset("_ETHREAD", "ActiveTimerListHead"), entry)
            return timer + member
        if apc.holder == "reserve":
            return reserves.place(self.machine, apc.handles)
        if apc.holder is not None:
            raise SceneError(f"no structure {apc.holder} that holds KAPCs")
        if apc.pool_tag is None:
            # A page of its own, no pool allocation.
            address = self.pool.take(memory.size("_KAPC")) if apc.address is None else apc.address
            memory.space.map(address, memory.size("_KAPC"))
            return address
        return self.pool.allocate(memory.size("_KAPC"), apc.pool_tag, apc.address)

    def _place_irp(self, thread: Thread, body: int, apc: Apc, irp: Irp) -> tuple[int, int]:
        """Place an IRP around its KAPC; give the KAPC's and the file object's address."""
        memory, machine = self.memory, self.machine
        member = memory.offset("_IRP", "Tail.Apc")
        location_size = memory.size("_IO_STACK_LOCATION")
        size = memory.size("_IRP") + len(irp.stack) * location_size
        start = None if apc.address is None else apc.address - member
        address = self.pool.allocate(size, b"Irp ", start)
        machine.address_of[f"irp:{apc.label or thread.tid}"] = address
        stack = machine.stack_of[body]
        devices = [self._device(each.driver, each.device) for each in irp.stack]
        file_object = self._place_file(irp.file_name, devices[-1]) if irp.file_name is not None else 0
        environment = memory.read(body, "_ETHREAD", "Tcb.ApcStateIndex") if apc.environment is None else apc.environment
        completed = len(irp.stack) + 2
        for path, value in (
            ("Type", _IO_TYPE_IRP),
            ("Size", size),
            ("Flags", irp.flags),
            ("StackCount", len(irp.stack)),
            ("CurrentLocation", completed if irp.current_location is None else irp.current_location),
            ("ApcEnvironment", environment),
            ("RequestorMode", irp.requestor_mode),
            ("IoStatus.Status", irp.status),
            ("IoStatus.Information", irp.information),
            ("UserIosb", machine.resolve(irp.user_iosb, stack)),
            ("UserEvent", machine.resolve(irp.user_event, stack)),
            ("Overlay.AsynchronousParameters.UserApcRoutine", machine.resolve(irp.user_apc_routine, stack)),
            ("Overlay.AsynchronousParameters.UserApcContext", machine.resolve(irp.user_apc_context, stack)),
        ):
            memory.write(address, "_IRP", path, value)
        links = address + memory.offset("_IRP", "ThreadListEntry")
        memory.link(links, [])
        if irp.in_irp_list:
            memory.append(body + memory.offset("_ETHREAD", "IrpList"), links)
        for position, location in enumerate(irp.stack):
            at = address + memory.size("_IRP") + position * location_size
            for path, value in (
                ("MajorFunction", location.major),
                ("MinorFunction", location.minor),
                ("Control", location.control),
                ("DeviceObject", devices[position]),
                ("CompletionRoutine", machine.resolve(location.completion_routine, stack)),
                ("Context", machine.resolve(location.context, stack)),
            ):
                memory.write(at, "_IO_STACK_LOCATION", path, value)
        return address + member, file_object

    def _place_request(self, thread: Thread, body: int, irp: Irp, position: int) -> None:
        """Place a pending IRP: no KAPC of it is in use, and its last driver has not completed it."""
        memory = self.memory
        location = len(irp.stack) if irp.current_location is None else irp.current_location
        label = f"{thread.tid}:{position}"
        pending = replace(irp, current_location=location)
        apc, _ = self._place_irp(thread, body, Apc(label=label), pending)
        memory.write(apc - memory.offset("_IRP", "Tail.Apc"), "_IRP", "Tail.Overlay.Thread", body)

    def _device(self, driver: str, device: str | None) -> int:
        module = self.machine.modules.get(driver.rpartition(".")[0].lower() or driver.lower())
        if module is None:
            raise SceneError(f"an IRP goes to driver {driver}, which the scene does not have")
        if device is not None:
            return module.devices[device]
        return next(iter(module.devices.values()), 0)

    def _place_file(self, name: str, device: int) -> int:
        memory = self.memory
        body = self.pool.place_object("File", memory.size("_FILE_OBJECT"))
        memory.write(body, "_FILE_OBJECT", "Type", _IO_TYPE_FILE)
        memory.write(body, "_FILE_OBJECT", "Size", memory.size("_FILE_OBJECT"))
        memory.write(body, "_FILE_OBJECT", "DeviceObject", device)
        self.pool.string(body, "_FILE_OBJECT", "FileName", name)
        self.machine.address_of[f"file:{name}"] = body
        return body
