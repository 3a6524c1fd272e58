"""Physical memory with damage: bytes that many audits share, and what one mutation lays over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from volatility3.framework import exceptions, interfaces

PAGE = 0x1000


class TooManyReadsError(BaseException):
    """The audit reads without end; no `except Exception` on its way may hide that."""


class PatchedLayer(interfaces.layers.DataLayerInterface):
    """A physical layer over bytes, some pages of which are replaced or missing.

    `content` are the bytes without damage. `reads` counts calls; `allowed` is how many there may be. `end` is the size
    in bytes after truncation.
    """

    def __init__(self, context: Any, name: str, content: bytes, allowed: int) -> None:
        super().__init__(context, name, name)
        self.content = content
        self._pages: dict[int, bytes | None] = {}
        self._allowed = allowed
        self.end = len(content)
        self.reads = 0
        blank = bytes(PAGE)
        self._used = {at for at in range(0, len(content), PAGE) if content[at : at + PAGE] != blank}

    def restore(self) -> None:
        """Take all damage back."""
        self._pages.clear()
        self.end = len(self.content)
        self.reads = 0

    def patch(self, address: int, data: bytes) -> None:
        """Replace bytes within the content; of a page that is missing, nothing."""
        while data:
            page, offset = address & -PAGE, address % PAGE
            part, data = data[: PAGE - offset], data[PAGE - offset :]
            old = self._pages.get(page, self.content[page : page + PAGE])
            if old is not None:
                self._pages[page] = old[:offset] + part + old[offset + len(part) :]
            address += len(part)

    def drop(self, page: int) -> None:
        """Let a page be missing."""
        self._pages[page & -PAGE] = None

    def peek(self, address: int, length: int) -> bytes | None:
        """Read without counting, None where something is missing."""
        if address < 0 or address + length > self.end:
            return None
        first, last = address & -PAGE, (address + length - 1) & -PAGE
        touched = [page for page in range(first, last + PAGE, PAGE) if page in self._pages] if self._pages else []
        data = self.content[address : address + length]
        for page in touched:
            replaced = self._pages[page]
            if replaced is None:
                return None
            start, stop = max(page, address), min(page + PAGE, address + length)
            data = data[: start - address] + replaced[start - page : stop - page] + data[stop - address :]
        return data

    @property
    def maximum_address(self) -> int:
        """The last address."""
        return self.end - 1

    @property
    def minimum_address(self) -> int:
        """The first address."""
        return 0

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """Tell whether all of a range is there."""
        return self.peek(offset, length) is not None

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """Read; what is missing raises, or is zeros with `pad`."""
        self.reads += 1
        if self.reads > self._allowed:
            raise TooManyReadsError(f"more than {self._allowed} reads")
        data = self.peek(offset, length)
        if data is not None:
            return data
        if not pad:
            raise exceptions.InvalidAddressException(self.name, offset, "missing")
        return b"".join(self.peek(at, 1) or b"\0" for at in range(offset, offset + length))

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - the interface's parameters
        """Refuse."""
        raise exceptions.LayerException(self.name, "evidence is not written to")

    def _scan_iterator(self, scanner: Any, sections: Any) -> Iterator[Any]:  # noqa: ARG002 - the same
        # Blank pages are left out: they hold nothing that can be found.
        for start, stop in _runs(sorted(self._used.union(self._pages))):
            position = start
            for page in [*(each for each in sorted(self._pages) if self._pages[each] is None), stop]:
                cut = min(page, stop, self.end & -PAGE)
                if position < cut:
                    for chunk in range(position, cut, scanner.chunk_size):
                        size = min(cut - chunk, scanner.chunk_size + scanner.overlap)
                        yield [(self.name, chunk, size)], chunk + size
                position = max(position, cut + PAGE)


def _runs(pages: Iterable[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and runs[-1][1] == page:
            runs[-1] = (runs[-1][0], page + PAGE)
        else:
            runs.append((page, page + PAGE))
    return runs
