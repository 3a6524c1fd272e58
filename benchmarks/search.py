"""The plain alternative to a scan: search a file for two byte strings, as fast as Python's own search goes.

Run as `python -m benchmarks.search find|re IMAGE`; prints a JSON object of numbers. It decodes nothing and knows no
structure: what it takes is what reading and searching must take.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

#: Pool tags, which `--scan` must find too (Microsoft's pooltag.txt; KAPC is what many drivers use).
NEEDLES = (b"Thre", b"KAPC")

#: Bytes read at once: beyond it, larger reads gain nothing.
CHUNK = 1 << 22
_OVERLAP = max(map(len, NEEDLES)) - 1


def _by_find(buffer: bytearray, needle: bytes, start: int, end: int) -> int:
    return buffer.count(needle, start, end)


def _by_re(buffer: bytearray, needle: bytes, start: int, end: int) -> int:
    return sum(1 for _ in re.compile(re.escape(needle)).finditer(buffer, start, end))


#: Which is faster depends on Python's version and on the bytes.
WAYS: dict[str, Callable[[bytearray, bytes, int, int], int]] = {"find": _by_find, "re": _by_re}


def search(way: str, path: Path) -> dict[str, float]:
    """Count the occurrences of the byte strings in a file."""
    count = WAYS[way]
    buffer = bytearray(_OVERLAP + CHUNK)
    hits = size = 0
    start = time.perf_counter()
    with path.open("rb", buffering=0) as stream:
        target = memoryview(buffer)[_OVERLAP:]
        while read := stream.readinto(target):
            end = _OVERLAP + read
            for needle in NEEDLES:
                # A string that ends in the overlap was counted with the chunk before.
                hits += count(buffer, needle, _OVERLAP + 1 - len(needle), end)
            buffer[:_OVERLAP] = buffer[end - _OVERLAP : end]
            size += read
    return {"seconds": time.perf_counter() - start, "bytes": size, "hits": hits}


if __name__ == "__main__":
    print(json.dumps(search(sys.argv[1], Path(sys.argv[2]))))
