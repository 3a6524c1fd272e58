"""Which views hold a thread: its process's list, the CID table, the processors, the scan, a minidump's header."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from ..model import View
from .cid_table import CidTable
from .processors import Processor

_ORDER = (View.LIST, View.CID, View.CPU, View.SCAN, View.DUMP)
_LIST, _CID, _CPU, _SCAN, _DUMP = (1 << bit for bit in range(5))

# Every combination once, so that a thread costs a look-up and no set.
_SETS = tuple(frozenset(view for bit, view in enumerate(_ORDER) if mask >> bit & 1) for mask in range(1 << len(_ORDER)))


class Views:
    """The views other than the process lists, read in bulk, so that listed threads stream with what else holds them."""

    def __init__(
        self,
        cid: CidTable,
        processors: tuple[Processor, ...] = (),
        dumped: tuple[int, ...] = (),
        scanned: Mapping[int, int] | None = None,
    ) -> None:
        self.cid = cid
        self._objects = cid.objects
        self._scanned: AbstractSet[int] = scanned.keys() if scanned is not None else frozenset()
        self.running = {each.current: each for each in processors if each.current}
        self.idle = frozenset(each.idle for each in processors if each.idle)
        following = {each.next for each in processors if each.next}
        self._few: dict[int, int] = dict.fromkeys(following | self.idle | set(self.running), _CPU)
        for address in dumped:
            self._few[address] = self._few.get(address, 0) | _DUMP
        usual = _LIST | (_CID if cid.objects else 0) | (_SCAN if self._scanned else 0)
        self.usual = _SETS[usual]
        self.named: AbstractSet[int] = self._few.keys()

    def of(self, address: int, tid: int | None, *, listed: bool) -> frozenset[View]:
        """Return the views that hold the thread at a virtual address."""
        mask = _LIST if listed else 0
        if tid is not None and self._objects.get(tid) == address:
            mask |= _CID
        if address in self._few:
            mask |= self._few[address]
        if address in self._scanned:
            mask |= _SCAN
        return _SETS[mask]

    def others(self, seen: AbstractSet[int]) -> Iterator[tuple[int, int | None]]:
        """Yield (address, ID that the CID table gives it) of what other views call a thread and nobody has seen."""
        by_address = {address: cid for cid, address in self._objects.items() if address not in seen}
        for address in (*self._few, *self._scanned):
            if address not in seen:
                by_address.setdefault(address, 0)
        for address in sorted(by_address):
            yield address, by_address[address] or None
