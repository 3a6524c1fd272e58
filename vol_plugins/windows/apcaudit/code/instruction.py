"""One machine instruction, as far as the flow of control needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Flow(Enum):
    """Where control goes behind an instruction."""

    NEXT = "the following instruction"
    CALL = "a function, then the following instruction"
    JUMP = "its target"
    BRANCH = "its target or the following instruction"
    RETURN = "the caller"
    STOP = "nowhere"


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction at a virtual address, `size` bytes long.

    A call or jump has a direct `target`, a `slot` in memory that holds it, or a `register`; neither where it is
    computed. `loads` is the register that an instruction fills from a slot at a fixed address, and that slot.
    """

    address: int
    size: int
    flow: Flow = Flow.NEXT
    target: int | None = None
    slot: int | None = None
    register: str | None = None
    loads: tuple[str, int] | None = None

    @property
    def end(self) -> int:
        """The address of the following instruction."""
        return self.address + self.size


Decode = Callable[[int], "Instruction | None"]
"""Decodes the instruction at a virtual address, None where it cannot be read or is none."""
