"""The kernel of an image: the memory, symbols, layout, drivers and processes that every stage of the audit uses."""

from __future__ import annotations

from dataclasses import dataclass

from volatility3.framework import interfaces

from .formats.layout import Layout, read_layout
from .image.memory import Memory
from .image.processes import Processes
from .image.structures import read_member
from .image.symbols import KernelSymbols
from .modules.loaded import Drivers, read_drivers


@dataclass(frozen=True, slots=True)
class Kernel:
    """Access to the kernel of one image; `layout` has the offsets of _ETHREAD's and _KAPC's members."""

    memory: Memory
    symbols: KernelSymbols
    layout: Layout
    drivers: Drivers
    processes: Processes

    def read(self, structure: str, path: str, address: int) -> int | None:
        """Read an integer or pointer member of a structure; None where the type lacks it or memory cannot be read."""
        return read_member(self.memory, self.symbols, structure, path, address)


def read_kernel(context: interfaces.context.ContextInterface, module_name: str) -> Kernel:
    """Create the Kernel of a module in vol's context, and read its module list.

    Raises:
        LayoutError: the symbol table lacks structures or members that the audit cannot do without.
    """
    symbols = KernelSymbols(context, module_name)
    layout = read_layout(symbols.member, symbols.size_of, symbols.members_of_type)
    memory = Memory(context, context.modules[module_name].layer_name)
    return Kernel(memory, symbols, layout, read_drivers(memory, symbols), Processes(memory, symbols))
