"""The kernel of an image: the memory, symbols, layout, drivers and processes that every stage of the audit uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from volatility3.framework import interfaces

from . import windows
from .formats.layout import Layout, LayoutError, read_layout
from .formats.text import from_ansi
from .image import Memory
from .image.structures import DisjointObjects, read_member, walk_both_ways
from .image.symbols import KernelSymbols
from .model import Process
from .modules import Drivers, read_drivers

PROCESS_BOUND = 100_000
"""How many processes of the list are followed."""

OBJECTS_KEPT = 1 << 16
"""For how many addresses the result of is_object() is cached."""

_NAME_LENGTH = 16

_PROCESS = bytes([windows.PROCESS_OBJECT])


class Processes:
    """Reads and caches _EPROCESS structures.

    After listed() has been called, `known` has the addresses of the listed processes, `complete` is whether the list
    was read completely, and `overlapping` is how many entries were dropped because they overlap other processes.
    """

    def __init__(self, memory: Memory, symbols: KernelSymbols) -> None:
        self._memory = memory
        self._symbols = symbols
        self._known: dict[int, Process] = {}
        self._objects: dict[int, bool] = {}
        self.known: frozenset[int] = frozenset()
        self.links = self._offset("ActiveProcessLinks.Flink")
        self.thread_list_head = self._offset("ThreadListHead.Flink")
        self._name = self._offset("ImageFileName")
        # Renamed in Windows 10 (public PDBs); x86 kernels have neither.
        names = ("WoW64Process", "Wow64Process")
        self._wow64 = next((name for name in names if symbols.member("_EPROCESS", name) is not None), None)
        self.complete = True
        self._listed: tuple[int, ...] | None = None
        self.overlapping = 0
        system = symbols.address("PsInitialSystemProcess")
        self._system = None if system is None else memory.pointer(system)

    def _offset(self, path: str) -> int:
        member = self._symbols.member("_EPROCESS", path)
        if member is None:
            raise LayoutError(f"the symbol table's _EPROCESS has no {path}")
        return member.offset

    def read(self, address: int) -> Process:
        """Read the _EPROCESS at a virtual address; members that cannot be read are None."""
        process = self._known.get(address)
        if process is None:
            pid = read_member(self._memory, self._symbols, "_EPROCESS", "UniqueProcessId", address)
            data = self._memory.read(address + self._name, _NAME_LENGTH - 1)
            name = None if data is None else from_ansi(data) or None
            process = Process(address, pid, name, self._is_wow64(address))
            self._known[address] = process
        return process

    def _is_wow64(self, address: int) -> bool | None:
        """Return whether a process runs 32-bit code on x64: its WoW64Process pointer is not null; None is unknown."""
        if self._wow64 is None:
            return False if self._memory.bits == 32 else None
        pointer = read_member(self._memory, self._symbols, "_EPROCESS", self._wow64, address)
        return None if pointer is None else bool(pointer)

    def is_object(self, address: int) -> bool:
        """Return whether a process object is at a virtual address, by its dispatcher header or PsActiveProcessHead.

        In a minidump, which contains hardly any process, an unreadable address counts as one.
        """
        found = self._objects.get(address)
        if found is None:
            first = self._memory.read(address, 1)
            found = address in self.known or (self._memory.partial if first is None else first == _PROCESS)
            if len(self._objects) >= OBJECTS_KEPT:
                self._objects.clear()
            self._objects[address] = found
        return found

    def listed(self) -> Iterator[Process]:
        """Yield the processes of PsActiveProcessHead, read once."""
        if self._listed is None:
            self._listed = self._read_list()
        yield from map(self.read, self._listed)

    def _read_list(self) -> tuple[int, ...]:
        head = self._symbols.address("PsActiveProcessHead")
        if head is None:
            self.complete = False
            return ()
        entries, self.complete = walk_both_ways(self._memory, head, PROCESS_BOUND)
        listed = self._without_overlaps([entry - self.links for entry in entries])
        self.overlapping = len(entries) - len(listed)
        self.complete = self.complete and not self.overlapping
        self.known = frozenset(listed)
        return tuple(listed)

    def _without_overlaps(self, addresses: Sequence[int]) -> list[int]:
        """Drop entries that overlap another one; keep those with a process's dispatcher header, then earlier ones."""
        disjoint = DisjointObjects(self._symbols.size_of("_EPROCESS") or 1)
        objects = [address for address in addresses if self._memory.read(address, 1) == _PROCESS]
        kept = {address for address in (*objects, *addresses) if disjoint.add(address)}
        return [address for address in addresses if address in kept]

    def is_system(self, address: int | None) -> bool:
        """Return whether an _EPROCESS is the System process, all of whose threads are system threads.

        PsInitialSystemProcess identifies it even if the process is damaged; else its PID does.
        """
        if not address:
            return False
        return address == self._system or self.read(address).pid == windows.SYSTEM_PID

    def system_threads(self, count: int) -> tuple[int, ...]:
        """Return the addresses of the ThreadListEntry of some threads of System; empty if System is unknown.

        They are the first `count` of the list and, if it is longer or damaged, the last `count` too.
        """
        system = self._system
        if not system or not self.is_object(system):
            system = next((each.address for each in self.listed() if each.pid == windows.SYSTEM_PID), None)
        if system is None:
            return ()
        return walk_both_ways(self._memory, system + self.thread_list_head, count)[0]

    def idle(self) -> Process | None:
        """Return the idle process (PsIdleProcess), which is in no list; None where it is unknown."""
        symbol = self._symbols.address("PsIdleProcess")
        address = None if symbol is None else self._memory.pointer(symbol)
        return self.read(address) if address else None


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
