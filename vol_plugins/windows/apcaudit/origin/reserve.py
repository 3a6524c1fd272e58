"""Reserve objects of user APCs: the object that holds a KAPC, and the processes that have a handle to it."""

from __future__ import annotations

from dataclasses import dataclass

from ..image.structures import read_member
from ..kernel import Kernel
from ..model import Process
from ..threads.kernel_views import Objects, read_handle_table

HOLDERS_BOUND = 64
"""For how many reserve objects all handle tables are searched."""

PROCESSES_BOUND = 4096
"""In how many processes' handle tables."""


@dataclass(frozen=True, slots=True)
class Reserve:
    """A reserve object by the virtual address of its body, its first member, and who has a handle to it.

    `holders` is None where they were not looked for, `complete` whether every handle table could be read.
    """

    body: int
    in_use: int | None
    holders: tuple[Process, ...] | None
    complete: bool


class Reserves:
    """Reads reserve objects; handle tables are read once, for the first of them."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._tables: list[tuple[Process, Objects]] | None = None
        self._complete = True
        self._asked: dict[int, Reserve] = {}
        header = kernel.symbols.member("_OBJECT_HEADER", "Body")
        self._header = 0 if header is None else header.offset

    def around(self, kapc: int) -> Reserve:
        """Return the reserve object whose KAPC this is.

        Its body is { LONG InUse; KAPC }, with the KAPC at the alignment of a pointer (decompilations of
        PspUserApcReserveKernelRoutine, 7 to 11).
        """
        body = kapc - self._kernel.memory.pointer_size
        found = self._asked.get(body)
        if found is None:
            data = self._kernel.memory.read(body, 4)
            in_use = None if data is None else int.from_bytes(data, "little")
            holders = self._holders(body) if len(self._asked) < HOLDERS_BOUND and self._header else None
            found = self._asked[body] = Reserve(body, in_use, holders, self._complete)
        return found

    def _holders(self, body: int) -> tuple[Process, ...]:
        if self._tables is None:
            self._tables = self._read_tables()
        header = body - self._header
        return tuple(process for process, objects in self._tables if objects.has(header))

    def _read_tables(self) -> list[tuple[Process, Objects]]:
        kernel = self._kernel
        found: list[tuple[Process, Objects]] = []
        for process in kernel.processes.listed():
            if len(found) >= PROCESSES_BOUND:
                self._complete = False
                break
            table = read_member(kernel.memory, kernel.symbols, "_EPROCESS", "ObjectTable", process.address)
            objects, complete = read_handle_table(kernel, table) if table else (Objects(), table is not None)
            self._complete = self._complete and complete
            found.append((process, objects))
        return found
