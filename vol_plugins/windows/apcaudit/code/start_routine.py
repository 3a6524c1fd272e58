"""Reads the code at a thread's start address out of the image, and has it checked."""

from __future__ import annotations

from ..drivers.loaded import Driver, Drivers
from ..memory import PAGE, Memory
from ..model import Finding, Thread
from .checks import check
from .disassembler import LONGEST, MISSING, decoder
from .program import Program, Surroundings, read_program


class StartRoutines:
    """Checks the start routines of threads; `notes` tell what could not be checked."""

    def __init__(self, memory: Memory, drivers: Drivers) -> None:
        self._memory = memory
        self._drivers = drivers
        self._decode = decoder(self._read, memory.bits)
        self._checked: dict[int, tuple[Finding, ...]] = {}
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not followed of start routines that were asked for."""
        return tuple(self._notes)

    def check(self, thread: Thread) -> tuple[Finding, ...]:
        """Return the findings about a system thread's start routine, none where it is the kernel's own."""
        start = thread.members.start_address
        if thread.start_backing is None or not start or start < self._drivers.kernel_start:
            return ()
        driver = self._drivers.holding(start)
        if driver is None or self._drivers.is_kernel(driver):
            return ()
        if self._decode is None:
            if not self._notes:
                self._notes.append(MISSING)
            return ()
        findings = self._checked.get(start)
        if findings is None:
            program = self._program(start, driver)
            name = self._drivers.code(start).text
            self._notes += [f"the start routine {name} is checked in part: {note}" for note in program.notes]
            findings = self._checked[start] = check(program)
        return findings

    def _program(self, start: int, driver: Driver) -> Program:
        assert self._decode is not None
        surroundings = Surroundings(
            self._decode,
            lambda address: driver.base <= address < driver.base + driver.size,
            self._memory.pointer,
            lambda address: frozenset(self._drivers.function_names(address)),
        )
        return read_program(start, surroundings)

    def _read(self, address: int) -> bytes:
        code = self._memory.read(address, LONGEST)
        if code is None:
            code = self._memory.read(address, min(LONGEST, PAGE - address % PAGE))
        return code or b""
