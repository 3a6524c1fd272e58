"""Reads the code at a thread's start address out of the image, and has it checked."""

from __future__ import annotations

from ..drivers.loaded import Driver, Drivers
from ..memory import PAGE, Memory
from ..model import Finding, Thread
from .checks import check
from .instruction import LONGEST, Decoder, Instruction
from .program import DriverCode, Reader

MISSING = (
    "the code at the start addresses of suspect threads is not checked: capstone is not installed"
    " (pip install capstone)"
)


class StartRoutines:
    """Checks the start routines of threads; `notes` tell what could not be checked."""

    def __init__(self, memory: Memory, drivers: Drivers) -> None:
        self._memory = memory
        self._drivers = drivers
        self._checked: dict[int, tuple[Finding, ...]] = {}
        self._notes: dict[str, None] = {}
        try:
            import capstone.x86

            self._decoder: Decoder | None = Decoder(capstone, memory.bits)
        except ImportError:
            self._decoder = None  # a checkout with vol alone

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
        if self._decoder is None:
            self._notes[MISSING] = None
            return ()
        if start not in self._checked:
            program = Reader(self._code(driver)).read(start)
            self._checked[start] = check(program)
            name = self._drivers.code(start).text
            self._notes |= {f"the start routine {name} is checked in part: {note}": None for note in program.notes}
        return self._checked[start]

    def _code(self, driver: Driver) -> DriverCode:
        return DriverCode(
            range(driver.base, driver.base + driver.size),
            self._decode,
            self._memory.pointer,
            lambda address: frozenset(self._drivers.function_names(address)),
        )

    def _decode(self, address: int) -> Instruction | None:
        code = self._memory.read(address, LONGEST)
        if code is None:
            code = self._memory.read(address, min(LONGEST, PAGE - address % PAGE))
        assert self._decoder is not None
        return self._decoder.decode(address, code) if code else None
