"""The stop code and parameters of a machine that crashed, from its dump header or from nt!KiBugCheckData."""

from __future__ import annotations

from .memory import Memory
from .model import BugCheck
from .symbols import KernelSymbols

_VALUES = 5  # KiBugCheckData is ULONG_PTR[5]: the code and its parameters (symbol in every public PDB)


def read_bugcheck(memory: Memory, symbols: KernelSymbols) -> BugCheck | None:
    """Return why the machine stopped, None where it was running or the image does not tell."""
    symbol = symbols.address("KiBugCheckData")
    data = None if symbol is None else memory.read(symbol, _VALUES * memory.pointer_size)
    if data is None:
        return None
    size = memory.pointer_size
    values = [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]
    code = values[0] & 0xFFFFFFFF
    return BugCheck(code, tuple(values[1:]), "nt!KiBugCheckData") if code else None
