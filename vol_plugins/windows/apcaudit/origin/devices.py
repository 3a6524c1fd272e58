"""Device, driver and file objects by address: their names, and the module that a driver object stands for."""

from __future__ import annotations

from dataclasses import dataclass

from ..drivers.loaded import Drivers
from ..memory import Memory
from ..object_names import object_name
from ..structures import read_member, read_unicode_string
from ..symbols import KernelSymbols

# IO_TYPE_DEVICE, IO_TYPE_DRIVER and IO_TYPE_FILE (WDK, wdm.h).
_DEVICE, _DRIVER, _FILE = 3, 4, 5


@dataclass(frozen=True, slots=True)
class Device:
    """A _DEVICE_OBJECT: virtual address, names, the driver's module; `defect` says why it is not believed."""

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
    """A _FILE_OBJECT: virtual address, name and device; `defect` says why it is not believed."""

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
    """Reads device and file objects, devices each once."""

    def __init__(self, memory: Memory, symbols: KernelSymbols, drivers: Drivers) -> None:
        self._memory = memory
        self._symbols = symbols
        self._drivers = drivers
        self._known: dict[int, Device] = {}

    def device(self, address: int) -> Device:
        """Read the _DEVICE_OBJECT at a virtual address."""
        device = self._known.get(address)
        if device is None:
            device = self._known[address] = self._device(address)
        return device

    def _device(self, address: int) -> Device:
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
        module = self._drivers.at(start) if start else None
        return Device(
            address, object_name(self._memory, self._symbols, address), name, None if module is None else module.label
        )

    def file(self, address: int) -> File:
        """Read the _FILE_OBJECT at a virtual address."""
        defect = self._wrong_type("_FILE_OBJECT", address, _FILE)
        if defect is not None:
            return File(address, defect=defect)
        name = read_unicode_string(self._memory, self._symbols, "_FILE_OBJECT", "FileName", address)
        device = self._read("_FILE_OBJECT", "DeviceObject", address)
        return File(address, name, self.device(device) if device else None)

    def _read(self, structure: str, path: str, address: int) -> int | None:
        return read_member(self._memory, self._symbols, structure, path, address)

    def _wrong_type(self, structure: str, address: int, wanted: int) -> str | None:
        """Say what is wrong with an I/O object's Type, None when it is right."""
        found = self._read(structure, "Type", address)
        if found == wanted:
            return None
        return "unreadable" if found is None else f"Type is {found}, not {wanted}"
