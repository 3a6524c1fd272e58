"""Which views hold a thread: its process's list, the CID table, the processors, the scan, a minidump's header."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from ..facts import ID_STEP
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
        self._has_objects = bool(cid.objects)
        self._met = bytearray(cid.objects.ids // ID_STEP)
        self._others_met: set[int] = set()
        self._scanned: AbstractSet[int] = scanned.keys() if scanned is not None else frozenset()
        self.running = {each.current: each for each in processors if each.current}
        self.idle = frozenset(each.idle for each in processors if each.idle)
        following = {each.next for each in processors if each.next}
        self._few: dict[int, int] = dict.fromkeys(following | self.idle | set(self.running), _CPU)
        for address in dumped:
            self._few[address] = self._few.get(address, 0) | _DUMP
        usual = _LIST | (_CID if self._has_objects else 0) | (_SCAN if self._scanned else 0)
        self.usual = _SETS[usual]
        self.named: AbstractSet[int] = self._few.keys()

    def meet(self, address: int, tid: int | None, *, listed: bool) -> frozenset[View] | None:
        """Return the views that hold the thread at a virtual address, None when it has been met before.

        A thread that stands under its ID is remembered by one byte, others by their addresses.
        """
        mask = _LIST if listed else 0
        if tid is not None and self._objects.get(tid) == address:
            mask |= _CID
            index = tid // ID_STEP
            if self._met[index]:
                return None
            self._met[index] = 1
        elif address in self._others_met:
            return None
        else:
            self._others_met.add(address)
        if address in self._few:
            mask |= self._few[address]
        if address in self._scanned:
            mask |= _SCAN
        return _SETS[mask]

    def scanned(self, address: int) -> bool:
        """Tell whether the scan found the thread at a virtual address."""
        return address in self._scanned

    def met(self, address: int, cid: int | None) -> bool:
        """Tell whether the thread at a virtual address, under an ID in the CID table or in none, has been met."""
        return address in self._others_met or (cid is not None and bool(self._met[cid // ID_STEP]))

    def others(self) -> Iterator[tuple[int, int | None]]:
        """Yield (address, ID that the CID table gives it) of what other views call a thread and nobody has met."""
        met, others_met = self._met, self._others_met
        by_address = {
            address: cid
            for cid, address in self._objects.items()
            if not met[cid // ID_STEP] and address not in others_met
        }
        left = {each for each in (*self._few, *self._scanned) if each not in others_met and each not in by_address}
        if left:
            # What was met under its ID is not among the addresses remembered: it is found in the table.
            left -= {address for cid, address in self._objects.items() if address in left and met[cid // ID_STEP]}
        by_address.update(dict.fromkeys(left, 0))
        for address in sorted(by_address):
            yield address, by_address[address] or None
