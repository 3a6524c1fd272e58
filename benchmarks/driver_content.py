"""What drivers of the benchmark consist of: sizes as they spread on a machine, bytes that look like code and names."""

from __future__ import annotations

import random

from benchmarks.rule_set import OPCODES, PLANTED, text

SIZES = (*(0x20000,) * 60, *(0x80000,) * 25, *(0x300000,) * 10, *(0x800000,) * 4, 0x2800000)
"""Sizes in bytes of a hundred drivers: most are small, a few are as large as Ntfs and tcpip, one drives graphics."""

_LEAST = min(SIZES)

_POOL = 1 << 20
_PIECE = 1 << 16
#: Out of a hundred pieces of an image, how many are code, names, numbers and zeros.
_KINDS = (60, 3, 12, 25)
#: Of how many names one could as well stand in a rule; the others are of Windows itself.
_RARE = 20
_WINDOWS = ("ExAllocatePoolWithTag", "IofCompleteRequest", "KeSetEvent", "RtlInitUnicodeString", "DbgPrint")


def sizes(part: int = 1) -> tuple[int, ...]:
    """Give the sizes, or a part of each, but none below the smallest."""
    return tuple(max(_LEAST, size // part) for size in SIZES)


class Content:
    """Makes the bytes of one image after the other, the same each time."""

    def __init__(self) -> None:
        self._chance = random.Random(1)  # noqa: S311 - the same bytes each time are wanted
        self._pools = (self._code(), self._names(), self._chance.randbytes(_POOL), bytes(_POOL))

    def of(self, size: int) -> bytes:
        """Make so many bytes; what the rule `planted` looks for is among them."""
        pieces: list[bytes] = [b"\0" + PLANTED[0] + b"\0", PLANTED[1]]
        left = size - sum(map(len, pieces))
        while left > 0:
            (pool,) = self._chance.choices(self._pools, _KINDS)
            start = self._chance.randrange(_POOL - _PIECE)
            pieces.append(pool[start : start + min(left, _PIECE)])
            left -= len(pieces[-1])
        return b"".join(pieces)

    def _code(self) -> bytes:
        openings = [bytes.fromhex(each) for each in OPCODES]
        made = bytearray()
        while len(made) < _POOL:
            made += self._chance.choice(openings) + self._chance.randbytes(self._chance.randrange(5))
        return bytes(made[:_POOL])

    def _names(self) -> bytes:
        made = bytearray()
        while len(made) < _POOL:
            rare = self._chance.randrange(_RARE) == 0
            name = text(self._chance).replace("\\\\", "\\") if rare else self._chance.choice(_WINDOWS)
            made += name.encode(self._chance.choice(("ascii", "utf-16-le"))) + b"\0\0"
        return bytes(made[:_POOL])
