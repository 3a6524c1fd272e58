"""The stop code and parameters of a machine that crashed, from its dump header and from nt!KiBugCheckData."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from volatility3.framework import exceptions, interfaces

from .memory import Memory
from .minidump.crash_header import DUMP_HEADER64_SIZE, MINIDUMP_BUGCHECK_BIT, CrashHeader, parse_crash_header
from .model import BugCheck
from .symbols import KernelSymbols

HEADER = "dump header"
KERNEL = "nt!KiBugCheckData"

_VALUES = 5  # KiBugCheckData is ULONG_PTR[5]: the code and its parameters (symbol in every public PDB)


def find_crash_header(context: interfaces.context.ContextInterface, layer_name: str) -> CrashHeader | None:
    """Return the crash dump header of the file below a layer, None where the image is no crash dump."""
    pending = [layer_name]
    while pending:
        layer: Any = context.layers[pending.pop(0)]
        header = getattr(layer, "crash_header", None)
        if isinstance(header, CrashHeader):
            return header
        pending.extend(layer.dependencies)
        if not layer.dependencies:
            try:
                data: bytes = layer.read(0, min(DUMP_HEADER64_SIZE, layer.maximum_address + 1))
            except exceptions.InvalidAddressException:
                continue
            header = parse_crash_header(data)
            if header is not None:
                return header
    return None


def read_bugcheck(
    memory: Memory, symbols: KernelSymbols, header: CrashHeader | None
) -> tuple[BugCheck | None, str | None]:
    """Return why the machine stopped, and in a sentence how the sources of that differ.

    Args:
        memory: the image.
        symbols: the kernel's.
        header: that of the crash dump file, None where the image is none.

    Returns:
        None for the bugcheck where the machine was running or the image does not tell.
    """
    return combined(_of_kernel(memory, symbols), _of_header(header))


def combined(kernel: BugCheck | None, header: BugCheck | None) -> tuple[BugCheck | None, str | None]:
    """Make one statement of the kernel's and the header's; a code of 0 says that the machine had not stopped.

    The kernel's own variable decides where the two differ: tools that copy a running machine's memory write headers
    with codes of their own.
    """
    if kernel is None or header is None:
        known = kernel or header
        return (known if known is not None and known.code else None), None
    if (kernel.code, kernel.parameters) == (header.code, header.parameters):
        return (replace(kernel, source=f"{HEADER} and {KERNEL}") if kernel.code else None), None
    if not kernel.code and not header.code:
        return None, None
    difference = f"the {HEADER} says {_text(header)}, {KERNEL} {_text(kernel)}: the latter is believed"
    if not kernel.code:
        return None, f"{difference}, so the machine was running"
    return replace(kernel, source=f"{KERNEL}; the {HEADER} says {_text(header)}"), difference


def _text(bugcheck: BugCheck) -> str:
    return f"{bugcheck.code:#x} ({', '.join(f'{value:#x}' for value in bugcheck.parameters)})"


def _of_kernel(memory: Memory, symbols: KernelSymbols) -> BugCheck | None:
    symbol = symbols.address("KiBugCheckData")
    data = None if symbol is None else memory.read(symbol, _VALUES * memory.pointer_size)
    if data is None:
        return None
    size = memory.pointer_size
    values = [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]
    return BugCheck(values[0] & 0xFFFFFFFF & ~MINIDUMP_BUGCHECK_BIT, tuple(values[1:]), KERNEL)


def _of_header(header: CrashHeader | None) -> BugCheck | None:
    return None if header is None else BugCheck(header.stop_code, header.bugcheck_parameters, HEADER)
