"""What debuggers start from: KUSER_SHARED_DATA, KdVersionBlock, the debugger data block, KiBugCheckData."""

from __future__ import annotations

from apcaudit.synthetic.machine import SYSTEM_TIME, Machine

#: KDDEBUGGER_DATA64 (wdbgexts.h), which no public PDB describes: offset and the variable whose address it holds.
_DATA_BLOCK: tuple[tuple[int, str], ...] = (
    (0x48, "PsLoadedModuleList"),
    (0x50, "PsActiveProcessHead"),
    (0x58, "PspCidTable"),
    (0x88, "KiBugCheckData"),
    (0x98, "ObpRootDirectoryObject"),
    (0xA0, "ObpTypeObjectType"),
    (0xC0, "MmPfnDatabase"),
    (0x1C8, "MmHighestUserAddress"),
    (0x1D0, "MmSystemRangeStart"),
    (0x1D8, "MmUserProbeAddress"),
    (0x208, "NtBuildLab"),
    (0x218, "KiProcessorBlock"),
    (0x220, "MmUnloadedDrivers"),
    (0x228, "MmLastUnloadedDriver"),
    (0x268, "CmNtCSDVersion"),
)
_LIST, _OWNER_TAG, _SIZE, _KERNEL_BASE = 0x0, 0x10, 0x14, 0x18
_DATA_BLOCK_SIZE = 0x340
#: ... and of the structure offsets that it holds as 16-bit numbers: offset, type, member (no member: the size).
_OFFSETS: tuple[tuple[int, str, str], ...] = (
    (0x298, "_KTHREAD", "NextProcessor"),
    (0x29A, "_KTHREAD", "Teb"),
    (0x29C, "_KTHREAD", "KernelStack"),
    (0x29E, "_KTHREAD", "InitialStack"),
    (0x2A0, "_KTHREAD", "ApcState.Process"),
    (0x2A2, "_KTHREAD", "State"),
    (0x2A8, "_EPROCESS", ""),
    (0x2AA, "_EPROCESS", "Peb"),
    (0x2AC, "_EPROCESS", "InheritedFromUniqueProcessId"),
    (0x2AE, "_EPROCESS", "Pcb.DirectoryTableBase"),
    (0x2B0, "_KPRCB", ""),
    (0x2B4, "_KPRCB", "CurrentThread"),
    (0x2BE, "_KPRCB", "Number"),
    (0x2C0, "_ETHREAD", ""),
)

#: NT_PRODUCT_TYPE NtProductWinNt (winnt.h).
_WORKSTATION = 1


def place(machine: Machine) -> None:
    """Write all of them."""
    _shared_data(machine)
    _versions(machine)
    _data_block(machine)
    _bugcheck(machine)


def _shared_data(machine: Machine) -> None:
    memory, kernel = machine.memory, machine.kernel
    address = machine.ranges.shared_data
    memory.space.map(address, 1)
    # The page that user mode reads at its own fixed address.
    memory.space.alias(0x7FFE0000, address)
    name = "_KUSER_SHARED_DATA"
    memory.write(address, name, "NtSystemRoot", "C:\\Windows".encode("utf-16-le"))
    memory.write(address, name, "NtProductType", _WORKSTATION)
    memory.write(address, name, "ProductTypeIsValid", 1)
    memory.write(address, name, "NtMajorVersion", kernel.version[0])
    memory.write(address, name, "NtMinorVersion", kernel.version[1])
    memory.write(address, name, "NtBuildNumber", kernel.version[2], optional=True)
    memory.write(address, name, "SystemTime.LowPart", SYSTEM_TIME & 0xFFFFFFFF)
    memory.write(address, name, "SystemTime.High1Time", SYSTEM_TIME >> 32)
    memory.write(address, name, "SystemTime.High2Time", SYSTEM_TIME >> 32)


def _versions(machine: Machine) -> None:
    memory, kernel = machine.memory, machine.kernel
    block = machine.variable("KdVersionBlock", memory.size("_DBGKD_GET_VERSION64"))
    # MajorVersion 15 is a free build, its lowest byte the protocol's.
    for path, value in (
        ("MajorVersion", 0xF),
        ("MinorVersion", kernel.version[2]),
        ("MachineType", 0x8664 if kernel.is_64bit else 0x14C),
        ("KernBase", _extended(kernel.base)),
        ("PsLoadedModuleList", _extended(kernel.address("PsLoadedModuleList"))),
    ):
        memory.write(block, "_DBGKD_GET_VERSION64", path, value)
    memory.space.write(machine.variable("NtBuildLab", 0x80), kernel.build_lab.encode() + b"\0")
    if kernel.has("NtBuildNumber"):
        memory.write_scalar(machine.variable("NtBuildNumber", 4), 4, 0xF0000000 | kernel.version[2])
    if kernel.has("CmNtCSDVersion"):
        packs = {2600: 3, 7601: 1}
        memory.write_scalar(machine.variable("CmNtCSDVersion", 4), 4, packs.get(kernel.version[2], 0) << 8)
    machine.set_pointer("MmSystemRangeStart", machine.ranges.system_range)
    machine.set_pointer("MmHighestUserAddress", 0x7FFFFFEFFFF if kernel.is_64bit else 0x7FFEFFFF)


def _extended(address: int) -> int:
    """Extend a 32-bit kernel address's sign to 64 bits, as debugger structures hold it."""
    return address | 0xFFFFFFFF00000000 if address >> 31 == 1 else address


def _data_block(machine: Machine) -> None:
    memory, kernel = machine.memory, machine.kernel
    block = machine.variable("KdDebuggerDataBlock", _DATA_BLOCK_SIZE)
    memory.write_scalar(block + _LIST, 8, _extended(block))
    memory.write_scalar(block + _LIST + 8, 8, _extended(block))
    memory.space.write(block + _OWNER_TAG, b"KDBG")
    memory.write_scalar(block + _SIZE, 4, _DATA_BLOCK_SIZE)
    memory.write_scalar(block + _KERNEL_BASE, 8, _extended(kernel.base))
    for offset, symbol in _DATA_BLOCK:
        if kernel.has(symbol):
            memory.write_scalar(block + offset, 8, _extended(kernel.address(symbol)))
    for offset, type_name, member in _OFFSETS:
        if not member:
            memory.write_scalar(block + offset, 2, memory.size(type_name))
        elif memory.has(type_name, member):
            memory.write_scalar(block + offset, 2, memory.offset(type_name, member))


def _bugcheck(machine: Machine) -> None:
    memory, bugcheck = machine.memory, machine.scene.bugcheck
    data = machine.variable("KiBugCheckData", 5 * memory.pointer_size)
    if bugcheck is None:
        return
    values = [bugcheck.code, *(machine.resolve(each) for each in bugcheck.parameters)]
    for position, value in enumerate(values):
        memory.write_pointer(data + position * memory.pointer_size, value)
    if bugcheck.driver is not None and machine.kernel.has("KiBugCheckDriver"):
        # Points to a UNICODE_STRING with the blamed driver's name.
        text = machine.pool.allocate(memory.size("_UNICODE_STRING"), b"Dbgk")
        machine.pool.unicode_string(text, bugcheck.driver)
        machine.set_pointer("KiBugCheckDriver", text)
