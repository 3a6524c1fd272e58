"""The low stub: the page below 1 MB through which x64 processors leave real mode, with the kernel's page table root.

Source: A. Ionescu, "Getting Physical With USB Type-C" (Recon 2017): HalpLowStub and PROCESSOR_START_BLOCK, of which
public PDBs have no layout; stock Volatility knows it as `method_low_stub_offset`.
"""

from __future__ import annotations

import struct

from apcaudit.synthetic.machine import Machine
from apcaudit.synthetic.pages import PAGE

#: Physical address of the page; Windows takes a free one, often this.
ADDRESS = 0x13000

#: A near jump in real mode over the block, to the code behind it.
_JUMP = 0x06FDE9
#: PROCESSOR_START_BLOCK of x64: offset, format, name. ProcessorState, at 0x90, begins with Cr0, Cr2 and Cr3.
_START_BLOCK = ((0x0, "<I", "Jmp"), (0x4, "<I", "CompletionFlag"), (0x70, "<Q", "LmTarget"), (0xA0, "<Q", "Cr3"))


def place(machine: Machine) -> None:
    """Write the page, on x64."""
    memory, kernel = machine.memory, machine.kernel
    if not kernel.is_64bit:
        return
    values = {"Jmp": _JUMP, "CompletionFlag": 1, "LmTarget": kernel.base + PAGE, "Cr3": memory.space.mode.root}
    page = bytearray(PAGE)
    for offset, form, name in _START_BLOCK:
        struct.pack_into(form, page, offset, values[name])
    memory.space.fixed[ADDRESS] = bytes(page)
