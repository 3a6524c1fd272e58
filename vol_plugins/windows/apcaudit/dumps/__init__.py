"""The code and parameters of the bugcheck, from the dump header and from nt!KiBugCheckData."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from volatility3.framework import exceptions, interfaces

from ..formats.crash_header import DUMP_HEADER64_SIZE, MINIDUMP_BUGCHECK_BIT, CrashHeader, parse_crash_header
from ..formats.crash_header import HEADER as HEADER
from ..image import Memory, PartialLayer
from ..image.symbols import KernelSymbols
from ..model import BugCheck

KERNEL = "nt!KiBugCheckData"

_VALUES = 5  # KiBugCheckData is ULONG_PTR[5]: the code and its parameters (symbol in every public PDB)


def find_crash_header(context: interfaces.context.ContextInterface, layer_name: str) -> CrashHeader | None:
    """Return the header of the crash dump below a layer; None where the image is not a crash dump."""
    pending = [layer_name]
    while pending:
        layer: Any = context.layers[pending.pop(0)]
        if isinstance(layer, PartialLayer):
            return layer.crash_header
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
    """Return the bugcheck, and a sentence on how the dump header and KiBugCheckData differ, if they do.

    Args:
        memory: the image.
        symbols: the kernel's symbols.
        header: the crash dump's header; None where the image is not a crash dump.

    Returns:
        The bugcheck is None where the machine was running or neither source could be read.
    """
    kernel = _of_kernel(memory, symbols)
    if header is not None and header.is_live:
        running = f"this is a live kernel dump, made for {header.stop_code:#x}: the machine was not stopped by it"
        return reconcile(kernel, None)[0], running
    return reconcile(kernel, _of_header(header))


def reconcile(kernel: BugCheck | None, header: BugCheck | None) -> tuple[BugCheck | None, str | None]:
    """Combine the bugcheck of the kernel and that of the header; a code of 0 means that the machine was running.

    Where the two differ, the kernel's variable is believed: tools that acquire memory of a running machine write their
    own codes into the header.
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
