"""Loaded images: the kernel's own, drivers, PsLoadedModuleList, driver and device objects, MmUnloadedDrivers."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from apcaudit.synthetic import ntsymbols, pe
from apcaudit.synthetic.assembly import assemble
from apcaudit.synthetic.intermediate import Pdb
from apcaudit.synthetic.machine import BOOT_TIME, Machine, Module, SceneError
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.scene import Driver

#: LDRP_ENTRY_PROCESSED and what else Windows sets in a loaded driver's entry.
_LDR_FLAGS = 0x09104000

#: _UNLOADED_DRIVER, which most public PDBs lack: pointer size -> (size, start, end, time), a UNICODE_STRING first.
#: Source: Volatility's unloadedmodules-x86.json and unloadedmodules-x64.json.
_UNLOADED = {4: (0x18, 0x8, 0xC, 0x10), 8: (0x28, 0x10, 0x18, 0x20)}
#: MI_UNLOADED_DRIVERS: entries in the table.
_UNLOADED_COUNT = 50

#: DEVICE_TYPE FILE_DEVICE_UNKNOWN (wdm.h), and the I/O manager's object type numbers.
_FILE_DEVICE_UNKNOWN = 0x22
_IO_TYPE_DEVICE, _IO_TYPE_DRIVER = 3, 4

#: Prefixes of functions that kernels export, and exceptions to them.
_EXPORTED = ("Ex", "Io", "Iof", "Ke", "Mm", "Nt", "Ob", "Ps", "Rtl", "Zw")
_NOT_EXPORTED = frozenset(
    {
        "KeBalanceSetManager",
        "KeEnableOptionalXStateFeaturesApc",
        "KeSpecialUserApcKernelRoutine",
        "KeSwapProcessOrStack",
        "PsExitSpecialApc",
    }
)

#: Variables that kernels export, and the first version that does (export tables of XP SP3 to 11).
_EXPORTED_VARIABLES: dict[str, ntsymbols.Version] = {
    "IoDeviceObjectType": ntsymbols.XP,
    "IoDriverObjectType": ntsymbols.XP,
    "IoFileObjectType": ntsymbols.XP,
    "KeNumberProcessors": ntsymbols.XP,
    "MmHighestUserAddress": ntsymbols.XP,
    "MmSystemRangeStart": ntsymbols.XP,
    "MmUserProbeAddress": ntsymbols.XP,
    "NtBuildNumber": ntsymbols.XP,
    "PsInitialSystemProcess": ntsymbols.XP,
    "PsLoadedModuleList": ntsymbols.WINDOWS_10,
    "PsProcessType": ntsymbols.XP,
    "PsThreadType": ntsymbols.XP,
}


def place_kernel(machine: Machine) -> None:
    """Lay out the kernel's image: headers with its PDB record, exports, and the first bytes of functions."""
    kernel, space = machine.kernel, machine.memory.space
    exports = {}
    if kernel.own:
        names = {name for name, *_ in ntsymbols.FUNCTIONS}
        exports = {
            name: rva
            for name, rva in kernel.addresses.items()
            if name in names and name not in _NOT_EXPORTED and name[:2] in _EXPORTED and not name[2].islower()
        }
        exports |= {
            name: kernel.addresses[name]
            for name, first in _EXPORTED_VARIABLES.items()
            if first <= kernel.version and kernel.has(name)
        }
    image = pe.PeImage(
        "ntoskrnl.exe",
        kernel.image_size,
        kernel.is_64bit,
        kernel.pdb,
        kernel.version,
        kernel.base,
        exports,
        # Of a real kernel only the addresses are known, not its sections.
        data=ntsymbols.VARIABLES_START if kernel.own else kernel.image_size - 4 * PAGE,
        all_code=not kernel.own,
    )
    for rva, data in pe.lay_out(image).items():
        space.map(kernel.base + rva, len(data))
        space.write(kernel.base + rva, data)
    machine.modules["ntoskrnl"] = Module("ntoskrnl.exe", kernel.base, kernel.image_size, exports)
    machine.address_of["nt"] = kernel.base


def place_drivers(machine: Machine) -> None:
    """Lay out the scene's drivers: images first, then imports, which need the others' exports."""
    at = machine.ranges.drivers
    for driver in machine.scene.drivers:
        base = driver.base if driver.base is not None else at
        if driver.base is None:
            # Drivers do not lie side by side: what is between them belongs to no module.
            at += -(-driver.size // PAGE) * PAGE + 0x10000
        module = Module(driver.name, base, driver.size, dict(driver.exports))
        machine.modules[driver.stem.lower()] = module
        machine.address_of[f"driver:{driver.name}"] = base
    for driver in machine.scene.drivers:
        _place_image(machine, driver)
    for driver in machine.scene.drivers:
        if driver.driver_object:
            _place_driver_object(machine, driver)


def _place_image(machine: Machine, driver: Driver) -> None:
    module, space = machine.modules[driver.stem.lower()], machine.memory.space
    imports = {}
    for name, functions in driver.imports.items():
        file_name = "ntoskrnl.exe" if name == "nt" else name
        stem = "nt" if name == "nt" else name.rpartition(".")[0]
        imports[file_name] = {each: machine.resolve(f"{stem}!{each}") for each in functions}
    digest = hashlib.sha256(driver.name.encode()).hexdigest().upper()
    bare = pe.PeImage(
        driver.name,
        driver.size,
        machine.kernel.is_64bit,
        Pdb(f"{driver.stem}.pdb", "A9C0DE" + digest[:26], 1),
        machine.kernel.version,
        module.base,
        driver.exports,
        imports,
        unwind=driver.unwind,
    )
    slots = {name: module.base + rva for name, rva in pe.import_slots(bare).items()}
    code = {
        rva: assemble(piece, module.base + rva, is_64bit=machine.kernel.is_64bit, slots=slots, resolve=machine.resolve)
        for rva, piece in driver.code.items()
    }
    image = replace(bare, code=code)
    # All but INIT, which is the last page, stays in memory.
    space.map(module.base, driver.size - PAGE)
    for rva, data in pe.lay_out(image).items():
        if rva + len(data) > driver.size - PAGE:
            raise SceneError(f"{driver.name}: {rva:#x} lies outside of the image's code")
        space.write(module.base + rva, data)


def place_code(machine: Machine) -> None:
    """Write the scene's own pieces of code."""
    for address, code in machine.scene.code.items():
        at = machine.resolve(address)
        data = assemble(code, at, is_64bit=machine.kernel.is_64bit, slots={}, resolve=machine.resolve)
        machine.memory.space.map(at, len(data))
        machine.memory.space.write(at, data)


def place_module_list(machine: Machine) -> None:
    """Make PsLoadedModuleList: the kernel, then the listed drivers in the scene's order."""
    memory = machine.memory
    entry_type = "_LDR_DATA_TABLE_ENTRY"
    if memory.layout.has_type("_KLDR_DATA_TABLE_ENTRY"):
        entry_type = "_KLDR_DATA_TABLE_ENTRY"
    listed = [("ntoskrnl", "\\SystemRoot\\system32\\ntoskrnl.exe")]
    listed += [
        (driver.stem.lower(), f"\\SystemRoot\\System32\\drivers\\{driver.name}")
        for driver in machine.scene.drivers
        if driver.listed
    ]
    links = []
    for stem, path in listed:
        module = machine.modules[stem]
        entry = machine.pool.allocate(memory.size(entry_type), b"MmLd")
        module.entry = entry
        memory.write(entry, entry_type, "DllBase", module.base)
        memory.write(entry, entry_type, "EntryPoint", module.base + PAGE)
        memory.write(entry, entry_type, "SizeOfImage", module.size)
        memory.write(entry, entry_type, "Flags", _LDR_FLAGS)
        memory.write(entry, entry_type, "LoadCount", 1, optional=True)
        memory.write(entry, entry_type, "TimeDateStamp", pe.TIME_DATE_STAMP, optional=True)
        machine.pool.string(entry, entry_type, "FullDllName", path)
        machine.pool.string(entry, entry_type, "BaseDllName", module.name)
        links.append(entry + memory.offset(entry_type, "InLoadOrderLinks"))
        machine.address_of[f"module:{module.name}"] = entry
    memory.link(machine.variable("PsLoadedModuleList", 16), links)


def _place_driver_object(machine: Machine, driver: Driver) -> None:
    memory, pool = machine.memory, machine.pool
    module = machine.modules[driver.stem.lower()]
    size = memory.size("_DRIVER_OBJECT")
    extension_size = memory.size("_DRIVER_EXTENSION")
    extra = -(-extension_size // pool.alignment) * pool.alignment
    name = f"\\Driver\\{driver.stem}"
    # The extension's end has to be the block's: before Windows 8 scanners subtract both sizes, rounded once.
    rounded = -(-(size + extension_size) // pool.alignment) * pool.alignment - extra
    body = pool.place_object("Driver", rounded, name=name, extra=extra)
    extension = body + -(-size // memory.pointer_size) * memory.pointer_size
    module.driver_object = body
    machine.address_of[f"driver-object:{driver.name}"] = body
    memory.write(body, "_DRIVER_OBJECT", "Type", _IO_TYPE_DRIVER)
    memory.write(body, "_DRIVER_OBJECT", "Size", size)
    memory.write(body, "_DRIVER_OBJECT", "DriverStart", module.base)
    memory.write(body, "_DRIVER_OBJECT", "DriverSize", module.size)
    memory.write(body, "_DRIVER_OBJECT", "DriverSection", 0)
    memory.write(body, "_DRIVER_OBJECT", "DriverExtension", extension)
    memory.write(body, "_DRIVER_OBJECT", "DriverInit", module.base + module.size - PAGE)
    pool.string(body, "_DRIVER_OBJECT", "DriverName", name)
    memory.write(extension, "_DRIVER_EXTENSION", "DriverObject", body)
    pool.string(extension, "_DRIVER_EXTENSION", "ServiceKeyName", driver.stem)
    for major in range(0x1C):
        memory.write(body, "_DRIVER_OBJECT", f"MajorFunction[{major}]", module.base + 2 * PAGE)
    previous = 0
    for device_name in driver.devices:
        device = _place_device(machine, body, device_name)
        memory.write(device, "_DEVICE_OBJECT", "NextDevice", previous)
        module.devices[device_name] = device
        machine.address_of[f"device:{device_name or driver.stem}"] = device
        previous = device
    memory.write(body, "_DRIVER_OBJECT", "DeviceObject", previous)


def _place_device(machine: Machine, driver_object: int, name: str) -> int:
    memory = machine.memory
    size = memory.size("_DEVICE_OBJECT")
    device = machine.pool.place_object("Device", size, name=name or None)
    memory.write(device, "_DEVICE_OBJECT", "Type", _IO_TYPE_DEVICE)
    memory.write(device, "_DEVICE_OBJECT", "Size", size)
    memory.write(device, "_DEVICE_OBJECT", "ReferenceCount", 1)
    memory.write(device, "_DEVICE_OBJECT", "DriverObject", driver_object)
    memory.write(device, "_DEVICE_OBJECT", "DeviceType", _FILE_DEVICE_UNKNOWN)
    memory.write(device, "_DEVICE_OBJECT", "StackSize", 1)
    return device


def place_unloaded(machine: Machine) -> None:
    """Fill MmUnloadedDrivers."""
    memory = machine.memory
    size, start, end, time = _UNLOADED[memory.pointer_size]
    table = machine.pool.allocate(size * _UNLOADED_COUNT, b"MmDT")
    for position, driver in enumerate(machine.scene.unloaded):
        entry = table + position * size
        machine.pool.unicode_string(entry, driver.name)
        memory.write_pointer(entry + start, driver.start)
        memory.write_pointer(entry + end, driver.end)
        memory.write_scalar(entry + time, 8, BOOT_TIME + (position + 1) * 600_000_000)
    machine.set_pointer("MmUnloadedDrivers", table)
    machine.set_pointer("MmLastUnloadedDriver", len(machine.scene.unloaded))
