"""The IRP that a KAPC is embedded in: what it says of the request, and what contradicts that it is one."""

from __future__ import annotations

from dataclasses import dataclass

from ..drivers.loaded import Drivers
from ..memory import Memory
from ..model import Code
from ..structures import read_member
from ..symbols import KernelSymbols
from .devices import Device, Devices
from .irp_names import function_name

IO_TYPE_IRP = 6
"""_IRP.Type (WDK, wdm.h)."""

STACK_BOUND = 127
"""The most stack locations there can be: StackCount is a CHAR."""


@dataclass(frozen=True, slots=True)
class StackLocation:
    """One IO_STACK_LOCATION; `number` counts from 1, the lowest driver's, as CurrentLocation does."""

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
    """An IRP as it stands in memory; None is what could not be read. `defects` say what no completed IRP has.

    `locations` are those that hold anything, the lowest driver's first; `unread` counts those that could not be read.
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
        """Whether there is an IRP at all: its Type is right."""
        return self.type == IO_TYPE_IRP

    @property
    def top(self) -> StackLocation | None:
        """The location of the driver that the request was sent to: the highest that names a device."""
        return next((each for each in reversed(self.locations) if each.device is not None), None)


class Irps:
    """Reads IRPs by the address of their Tail.Apc."""

    def __init__(self, memory: Memory, symbols: KernelSymbols, drivers: Drivers, devices: Devices) -> None:
        self._memory = memory
        self._symbols = symbols
        self._drivers = drivers
        self._devices = devices
        self._size = symbols.size_of("_IRP")
        self._location_size = symbols.size_of("_IO_STACK_LOCATION")
        self._apc = symbols.member("_IRP", "Tail.Apc")
        self._links = symbols.member("_IRP", "ThreadListEntry.Flink")

    def around(self, apc: int) -> Irp | None:
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
                location = self._location(number, address + self._size + (number - 1) * self._location_size)
                if location is None:
                    unread += 1
                elif location.major or location.device is not None or location.completion_routine is not None:
                    locations.append(location)
        links = address + self._links.offset
        found = tuple(locations)
        return Irp(address, kind, size, count, current, environment, flags, iosb, event, links, found, unread, defects)

    def _defects(self, kind: int | None, size: int | None, count: int | None, current: int | None) -> tuple[str, ...]:
        """Say what no IRP that IopfCompleteRequest has completed would have."""
        if kind != IO_TYPE_IRP:
            return ("Type is unreadable",) if kind is None else (f"Type is {kind}, not {IO_TYPE_IRP}",)
        if count is None:
            return ("StackCount is unreadable",)
        if not 0 < count <= STACK_BOUND:
            return (f"StackCount is {count}",)
        defects = []
        least = (self._size or 0) + count * (self._location_size or 0)
        if size is None or size < least:
            said = "unreadable" if size is None else f"{size:#x}"
            defects.append(f"Size is {said}, less than {least:#x} for {count} stack locations")
        # IopfCompleteRequest counts the location up past the top one (ReactOS ntoskrnl/io/iomgr/irp.c).
        if current != count + 2:
            defects.append(f"CurrentLocation is {'unreadable' if current is None else current}, not {count + 2}")
        return tuple(defects)

    def _location(self, number: int, address: int) -> StackLocation | None:
        names = ("MajorFunction", "DeviceObject", "CompletionRoutine")
        major, device, routine = (
            read_member(self._memory, self._symbols, "_IO_STACK_LOCATION", name, address) for name in names
        )
        if major is None and device is None:
            return None
        return StackLocation(
            number,
            major,
            self._devices.device(device) if device else None,
            self._drivers.code(routine) if routine else None,
        )
