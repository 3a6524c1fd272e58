"""The IRP that a KAPC is part of: the request, and the device and driver that it was sent to."""

from __future__ import annotations

from dataclasses import dataclass

from ..image.structures import object_name, read_member, read_unicode_string
from ..kernel import Kernel
from ..model import Code

PAGING_IO = 0x2

# IRP_* of wdm.h; 0x40 is SYNCHRONOUS_PAGING_IO where PAGING_IO is set too, else INPUT_OPERATION.
_FLAGS = (
    (0x1, "NOCACHE"),
    (PAGING_IO, "PAGING_IO"),
    (0x4, "SYNCHRONOUS_API"),
    (0x8, "ASSOCIATED_IRP"),
    (0x10, "BUFFERED_IO"),
    (0x20, "DEALLOCATE_BUFFER"),
    (0x40, "INPUT_OPERATION"),
    (0x80, "CREATE_OPERATION"),
    (0x100, "READ_OPERATION"),
    (0x200, "WRITE_OPERATION"),
    (0x400, "CLOSE_OPERATION"),
    (0x800, "DEFER_IO_COMPLETION"),
    (0x1000, "OB_QUERY_NAME"),
    (0x2000, "HOLD_DEVICE_QUEUE"),
)

# IRP_MJ_* of wdm.h, in order from 0.
_MAJOR_FUNCTIONS = (
    "CREATE",
    "CREATE_NAMED_PIPE",
    "CLOSE",
    "READ",
    "WRITE",
    "QUERY_INFORMATION",
    "SET_INFORMATION",
    "QUERY_EA",
    "SET_EA",
    "FLUSH_BUFFERS",
    "QUERY_VOLUME_INFORMATION",
    "SET_VOLUME_INFORMATION",
    "DIRECTORY_CONTROL",
    "FILE_SYSTEM_CONTROL",
    "DEVICE_CONTROL",
    "INTERNAL_DEVICE_CONTROL",
    "SHUTDOWN",
    "LOCK_CONTROL",
    "CLEANUP",
    "CREATE_MAILSLOT",
    "QUERY_SECURITY",
    "SET_SECURITY",
    "POWER",
    "SYSTEM_CONTROL",
    "DEVICE_CHANGE",
    "QUERY_QUOTA",
    "SET_QUOTA",
    "PNP",
)


def function_name(major: int | None) -> str:
    """Name a major function code."""
    if major is None:
        return "IRP_MJ_?"
    return f"IRP_MJ_{_MAJOR_FUNCTIONS[major]}" if major < len(_MAJOR_FUNCTIONS) else f"IRP_MJ_{major:#x}"


def flag_names(flags: int) -> str:
    """Name the bits of IRP.Flags as `BUFFERED_IO+READ_OPERATION`; bits without a name stay a number."""
    names = [name for bit, name in _FLAGS if flags & bit]
    if flags & PAGING_IO:
        names = ["SYNCHRONOUS_PAGING_IO" if name == "INPUT_OPERATION" else name for name in names]
    rest = flags & ~sum(bit for bit, _ in _FLAGS)
    return "+".join(names + ([f"{rest:#x}"] if rest else [])) or "none"


# IO_TYPE_DEVICE, IO_TYPE_DRIVER and IO_TYPE_FILE (WDK, wdm.h).
_DEVICE, _DRIVER, _FILE = 3, 4, 5


@dataclass(frozen=True, slots=True)
class Device:
    """A _DEVICE_OBJECT: virtual address, name, its driver object's name and module; `defect` says why it is none."""

    address: int
    name: str | None = None
    driver: str | None = None
    module: str | None = None
    defect: str | None = None

    def __str__(self) -> str:
        if self.defect is not None:
            return f"device {self.address:#x}? ({self.defect})"
        return self.driver_name + (f" ({self.name})" if self.name else "")

    @property
    def driver_name(self) -> str:
        """The driver object's name, the module's or the device's address where that is unknown."""
        return self.driver or self.module or f"device {self.address:#x}"


@dataclass(frozen=True, slots=True)
class File:
    """A _FILE_OBJECT: virtual address, name and device; `defect` says why it is none."""

    address: int
    name: str | None = None
    device: Device | None = None
    defect: str | None = None

    def __str__(self) -> str:
        if self.defect is not None:
            return f"{self.address:#x}? ({self.defect})"
        name = f" {self.name}" if self.name else " without a name"
        return f"{self.address:#x}{name}" + (f" on {self.device}" if self.device is not None else "")


class Devices:
    """Reads file objects, and device objects, each of which it reads once."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._memory, self._symbols, self._drivers = kernel.memory, kernel.symbols, kernel.drivers
        self._known: dict[int, Device] = {}

    def read_device(self, address: int) -> Device:
        """Read the _DEVICE_OBJECT at a virtual address."""
        device = self._known.get(address)
        if device is None:
            device = self._known[address] = self._read_device(address)
        return device

    def _read_device(self, address: int) -> Device:
        defect = self._wrong_type("_DEVICE_OBJECT", address, _DEVICE)
        if defect is not None:
            return Device(address, defect=defect)
        driver = self._read("_DEVICE_OBJECT", "DriverObject", address)
        if not driver:
            return Device(address, defect="DriverObject is null or unreadable")
        defect = self._wrong_type("_DRIVER_OBJECT", driver, _DRIVER)
        if defect is not None:
            return Device(address, defect=f"its driver object {driver:#x}: {defect}")
        name = read_unicode_string(self._memory, self._symbols, "_DRIVER_OBJECT", "DriverName", driver)
        start = self._read("_DRIVER_OBJECT", "DriverStart", driver)
        module = self._drivers.find_loaded(start) if start else None
        return Device(
            address, object_name(self._memory, self._symbols, address), name, None if module is None else module.label
        )

    def read_file(self, address: int) -> File:
        """Read the _FILE_OBJECT at a virtual address."""
        defect = self._wrong_type("_FILE_OBJECT", address, _FILE)
        if defect is not None:
            return File(address, defect=defect)
        name = read_unicode_string(self._memory, self._symbols, "_FILE_OBJECT", "FileName", address)
        device = self._read("_FILE_OBJECT", "DeviceObject", address)
        return File(address, name, self.read_device(device) if device else None)

    def _read(self, structure: str, path: str, address: int) -> int | None:
        return read_member(self._memory, self._symbols, structure, path, address)

    def _wrong_type(self, structure: str, address: int, wanted: int) -> str | None:
        """Say what is wrong with an I/O object's Type, None when it is right."""
        found = self._read(structure, "Type", address)
        if found == wanted:
            return None
        return "unreadable" if found is None else f"Type is {found}, not {wanted}"


IO_TYPE_IRP = 6
"""_IRP.Type (WDK, wdm.h)."""

STACK_BOUND = 127
"""The highest possible number of stack locations, since StackCount is a CHAR."""


@dataclass(frozen=True, slots=True)
class StackLocation:
    """One IO_STACK_LOCATION; `number` counts as CurrentLocation does: 1 is the lowest driver's."""

    number: int
    major: int | None
    device: Device | None
    completion_routine: Code | None

    @property
    def function(self) -> str:
        """The name of the major function."""
        return function_name(self.major)

    def __str__(self) -> str:
        text = f"{self.function} to {self.device}" if self.device is not None else f"{self.function}, no device"
        routine = self.completion_routine
        return text + (f", CompletionRoutine {routine}" if routine is not None and routine.address else "")


@dataclass(frozen=True, slots=True)
class Irp:
    """An IRP as read from memory; None is a member that could not be read.

    `defects` are values that no completed IRP has. `locations` are those that are not empty, the lowest driver's first;
    `unread` counts those that could not be read.
    """

    address: int
    type: int | None
    size: int | None
    stack_count: int | None
    current_location: int | None
    apc_environment: int | None
    flags: int | None
    user_iosb: int | None
    user_event: int | None
    thread_list_entry: int
    locations: tuple[StackLocation, ...]
    unread: int
    defects: tuple[str, ...]

    @property
    def plausible(self) -> bool:
        """Whether it is an IRP at all, by its Type."""
        return self.type == IO_TYPE_IRP

    @property
    def top(self) -> StackLocation | None:
        """The location of the driver that the request was sent to: the highest location that names a device."""
        return next((each for each in reversed(self.locations) if each.device is not None), None)


class Irps:
    """Reads IRPs by the address of their Tail.Apc."""

    def __init__(self, kernel: Kernel, devices: Devices) -> None:
        symbols = kernel.symbols
        self._memory, self._symbols, self._drivers = kernel.memory, symbols, kernel.drivers
        self._devices = devices
        self._size = symbols.size_of("_IRP")
        self._location_size = symbols.size_of("_IO_STACK_LOCATION")
        self._apc = symbols.member("_IRP", "Tail.Apc")
        self._links = symbols.member("_IRP", "ThreadListEntry.Flink")

    def read_around(self, apc: int) -> Irp | None:
        """Read the IRP whose Tail.Apc is at a virtual address; None where the symbol table lacks _IRP.

        Tail.Apc overlays Tail.Overlay: what the overlay held (Thread, CurrentStackLocation) is gone and is not read.
        """
        if self._apc is None or self._links is None or not self._size or not self._location_size:
            return None
        address = apc - self._apc.offset
        names = ("Type", "Size", "StackCount", "CurrentLocation", "ApcEnvironment", "Flags", "UserIosb", "UserEvent")
        kind, size, count, current, environment, flags, iosb, event = (
            read_member(self._memory, self._symbols, "_IRP", name, address) for name in names
        )
        defects = self._defects(kind, size, count, current)
        locations: list[StackLocation] = []
        unread = 0
        if kind == IO_TYPE_IRP and count is not None and 0 < count <= STACK_BOUND:
            for number in range(1, count + 1):
                location = self._read_location(number, address + self._size + (number - 1) * self._location_size)
                if location is None:
                    unread += 1
                elif location.major or location.device is not None or location.completion_routine is not None:
                    locations.append(location)
        links = address + self._links.offset
        found = tuple(locations)
        return Irp(address, kind, size, count, current, environment, flags, iosb, event, links, found, unread, defects)

    def _defects(self, kind: int | None, size: int | None, count: int | None, current: int | None) -> tuple[str, ...]:
        """Name the values that no IRP has that IopfCompleteRequest has completed."""
        if kind != IO_TYPE_IRP:
            return ("Type is unreadable",) if kind is None else (f"Type is {kind}, not {IO_TYPE_IRP}",)
        if count is None:
            return ("StackCount is unreadable",)
        if not 0 < count <= STACK_BOUND:
            return (f"StackCount is {count}",)
        defects = []
        least = (self._size or 0) + count * (self._location_size or 0)
        if size is None or size < least:
            shown = "unreadable" if size is None else f"{size:#x}"
            defects.append(f"Size is {shown}, less than {least:#x} for {count} stack locations")
        # IopfCompleteRequest counts the location up past the top one (ReactOS ntoskrnl/io/iomgr/irp.c).
        if current != count + 2:
            defects.append(f"CurrentLocation is {'unreadable' if current is None else current}, not {count + 2}")
        return tuple(defects)

    def _read_location(self, number: int, address: int) -> StackLocation | None:
        names = ("MajorFunction", "DeviceObject", "CompletionRoutine")
        major, device, routine = (
            read_member(self._memory, self._symbols, "_IO_STACK_LOCATION", name, address) for name in names
        )
        if major is None and device is None:
            return None
        return StackLocation(
            number,
            major,
            self._devices.read_device(device) if device else None,
            self._drivers.code(routine) if routine else None,
        )
