"""The processes of PsActiveProcessHead, and any other _EPROCESS by its address."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import facts as windows
from .layout import LayoutError
from .memory import Memory
from .model import Process
from .structures import Apart, both_ways, read_member
from .symbols import KernelSymbols
from .text import from_ansi

PROCESS_BOUND = 100_000
"""How many processes of the list are followed."""

OBJECTS_KEPT = 1 << 16
"""Of how many addresses it is remembered whether a process object is there."""

_NAME_LENGTH = 16

_PROCESS = bytes([windows.PROCESS_OBJECT])


class Processes:
    """Reads _EPROCESS structures, each once.

    Once the list has been read, `known` are the addresses of those listed, `complete` is whether it closed, and
    `overlapping` how many of its entries are left out, since they lie in others' memory.
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
        # Spelt otherwise since 10 (public PDBs); x86 kernels have neither.
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

    def at(self, address: int) -> Process:
        """Return the process whose _EPROCESS is at a virtual address; what cannot be read of it is None."""
        process = self._known.get(address)
        if process is None:
            pid = read_member(self._memory, self._symbols, "_EPROCESS", "UniqueProcessId", address)
            data = self._memory.read(address + self._name, _NAME_LENGTH - 1)
            name = None if data is None else from_ansi(data) or None
            process = Process(address, pid, name, self._is_wow64(address))
            self._known[address] = process
        return process

    def _is_wow64(self, address: int) -> bool | None:
        """Tell whether a process runs 32-bit code on x64: its pointer to what WoW64 keeps is set."""
        if self._wow64 is None:
            return False if self._memory.bits == 32 else None
        pointer = read_member(self._memory, self._symbols, "_EPROCESS", self._wow64, address)
        return None if pointer is None else bool(pointer)

    def is_object(self, address: int) -> bool:
        """Tell whether a process object is at a virtual address: its dispatcher header says so, or the list does.

        In a minidump also where nothing can be read: it holds hardly any process.
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
        """Yield the processes of PsActiveProcessHead."""
        if self._listed is None:
            self._listed = self._read_list()
        yield from map(self.at, self._listed)

    def _read_list(self) -> tuple[int, ...]:
        head = self._symbols.address("PsActiveProcessHead")
        if head is None:
            self.complete = False
            return ()
        entries, self.complete = both_ways(self._memory, head, PROCESS_BOUND)
        listed = self._apart([entry - self.links for entry in entries])
        self.overlapping = len(entries) - len(listed)
        self.complete = self.complete and not self.overlapping
        self.known = frozenset(listed)
        return tuple(listed)

    def _apart(self, addresses: Sequence[int]) -> list[int]:
        """Leave out what lies in another's memory: of two such, what looks less like a process, or comes later."""
        apart = Apart(self._symbols.size_of("_EPROCESS") or 1)
        objects = [address for address in addresses if self._memory.read(address, 1) == _PROCESS]
        kept = {address for address in (*objects, *addresses) if apart.takes(address)}
        return [address for address in addresses if address in kept]

    def is_system(self, address: int | None) -> bool:
        """Tell the System process, whose threads are system threads whatever their own flag says.

        The kernel's own variable names it, also where the process itself is damaged; else its PID does.
        """
        if not address:
            return False
        return address == self._system or self.at(address).pid == windows.SYSTEM_PID

    def system_threads(self, count: int) -> tuple[int, ...]:
        """Return the addresses of the ThreadListEntry of some threads of System, none where System is unknown.

        They are the first and, where the list is longer or damaged, the last, so many of each.
        """
        system = self._system
        if not system or not self.is_object(system):
            system = next((each.address for each in self.listed() if each.pid == windows.SYSTEM_PID), None)
        if system is None:
            return ()
        return both_ways(self._memory, system + self.thread_list_head, count)[0]

    def idle(self) -> Process | None:
        """Return the idle process, which no list holds; None where the image does not tell it."""
        symbol = self._symbols.address("PsIdleProcess")
        address = None if symbol is None else self._memory.pointer(symbol)
        return self.at(address) if address else None
