"""Scanning with YARA: which drivers and memory are scanned for a thread, and the hits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from ..findings import YaraHit
from ..kernel import Kernel
from ..model import Thread
from .options import RuleError, RuleOptions
from .rules import TIME_LIMIT, RuleHit, Rules, ScanError, Start, TimeLimitError, compile_rules, externals
from .units import RUN as RUN
from .units import Unit, UnitReader

if TYPE_CHECKING:
    from ..user.spaces import UserSpaces

STARTS_BOUND = 32
"""For how many different starts a unit is scanned again; each costs a whole scan."""

WORKERS = 2
"""How many units are scanned at once when all drivers are scanned."""

LARGE = 16 << 20
"""Units of this size in bytes and above are read only when a worker is free."""

EVERY_BOUND = 4 << 30
"""How many bytes are scanned when all drivers are: ten times what a large machine loads."""

APCS_BOUND = 16
"""For how many APCs of a thread the drivers of their routines are scanned."""

OVERDUE_BOUND = 3
"""How many scans may reach TIME_LIMIT before scanning ends: such rules would take hours."""

_NOWHERE = Start()


class Signatures:
    """Scans the drivers that threads depend on, each once; rules that use a thread's start once per start."""

    def __init__(self, kernel: Kernel, options: RuleOptions, spaces: Callable[[], UserSpaces] | None = None) -> None:
        self.options = options
        self._drivers = kernel.drivers
        self._units = UnitReader(kernel, spaces)
        self._rules: Rules | None = None
        self._tried = False
        self._skipped: str | None = None
        self._hits: dict[tuple[int, tuple[int, int], Start], tuple[RuleHit, ...]] = {}  # by part, unit and start
        self._starts: dict[tuple[int, int], set[Start]] = {}
        self._hit_drivers: dict[int, tuple[Unit, list[str]]] | None = None
        self._hit_at: dict[int, bool] = {}
        self._units_of_threads: set[int] = set()
        self._overdue = 0
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be scanned, and hits in drivers of no listed thread."""
        return (*self.skipped_rules, *self._notes, *self._units.notes, *self.hits_without_thread)

    @property
    def skipped_rules(self) -> tuple[str, ...]:
        """Which rule files were skipped; the rules are compiled for this if no driver had to be scanned."""
        if not self.options.skip_broken:
            return ()
        self._compile_once()
        return () if self._skipped is None else (self._skipped,)

    @property
    def hits_without_thread(self) -> tuple[str, ...]:
        """Hits in drivers that were scanned for no thread given to scan_thread."""
        return tuple(
            f"YARA: {', '.join(rules)} in {unit.name} at {unit.base:#x}, where no listed thread starts"
            for unit, rules in (self._hit_drivers or {}).values()
            if unit.base not in self._units_of_threads
        )

    def compile(self) -> None:
        """Compile the rules, if there are any to be compiled.

        Raises:
            RuleError: some of them cannot be used.
        """
        if not self._tried and (self.options.own or self.options.defaults):
            self._tried = True
            self._rules = compile_rules(self.options)
            self._skipped = self._rules.note

    def is_hit_at(self, address: int) -> bool:
        """Tell whether a start address lies in a driver with a hit; always False unless every driver is scanned."""
        if not self.options.every_driver:
            return False
        if self._hit_drivers is None:
            self._hit_drivers = self._scan_all()
        known = self._hit_at.get(address)
        if known is None:
            driver = self._drivers.find_loaded(address)
            unit = None if driver is None else Unit(driver.base, driver.size, driver)
            # A rule may need the thread's start to hit.
            known = unit is not None and (
                unit.base in self._hit_drivers or bool(self._scan(unit, self._units.describe_start(unit, address)))
            )
            self._hit_at[address] = known
        return known

    def scan_thread(self, thread: Thread) -> tuple[YaraHit, ...] | None:
        """Scan what a thread depends on: the drivers of its start and its APCs' routines, and its user APCs' targets.

        Returns:
            The hits, those in the start routine first, or None where nothing was scanned.
        """
        if self._compile_once() is None:
            return None
        if self.options.every_driver and self._hit_drivers is None:
            self._hit_drivers = self._scan_all()
        found: dict[tuple[str, tuple[int, int]], YaraHit] = {}
        scanned: set[tuple[int, int]] = set()
        for unit, start in self._find_units(thread):
            if unit.key in scanned:
                continue
            scanned.add(unit.key)
            self._units_of_threads.add(unit.base)
            for hit in self._scan(unit, start):
                made = _hit(hit, unit, start)
                known = found.get((hit.rule, unit.key))
                if known is None or made.at_start > known.at_start:
                    found[hit.rule, unit.key] = made
        if not scanned:
            return None
        return tuple(sorted(found.values(), key=lambda hit: (not hit.at_start, hit.rule, hit.unit)))

    def _compile_once(self) -> Rules | None:
        """Compile the rules when they are first needed; None where there are none or they cannot be used."""
        if not self._tried:
            try:
                self.compile()
            except RuleError as error:
                self._notes.append(f"drivers are not scanned by YARA: {error}")
        return self._rules

    def _find_units(self, thread: Thread) -> Iterator[tuple[Unit, Start]]:
        start = thread.members.start_address
        if start is not None and thread.start_backing is not None:
            unit = self._units.find(start)
            if unit is not None and self._is_to_scan(unit):
                yield unit, self._units.describe_start(unit, start)
        apcs = [apc for queue in thread.queues for apc in queue.apcs][:APCS_BOUND]
        for apc in apcs:
            for routine in (apc.kernel_routine, apc.rundown_routine, apc.normal_routine):
                unit = self._units.find(routine.address) if routine is not None and routine.address else None
                if unit is not None and self._is_to_scan(unit):
                    yield unit, _NOWHERE
            target = thread.target(apc)
            for place in () if target is None else target.places:
                unit = self._units.find_target(place, thread.process_of(apc))
                if unit is not None:
                    yield unit, self._units.describe_start(unit, place.address)

    def _is_to_scan(self, unit: Unit) -> bool:
        """Tell whether to scan a unit: the rules that ship are not meant for the kernel itself."""
        if unit.driver is None or self.options.own or self.options.every_driver:
            return True
        return not self._drivers.is_kernel(unit.driver)

    def _scan(self, unit: Unit, start: Start) -> list[RuleHit]:
        """Scan a unit with every part of the rules; with parts that cannot use a start, only once."""
        rules = self._compile_once()
        hits: list[RuleHit] = []
        for number, part in enumerate(() if rules is None else rules.parts):
            seen = self._within_bound(unit, start) if part.wants_start else _NOWHERE
            found = self._hits.get((number, unit.key, seen))
            if found is None:
                data, values = self._units.read_and_keep(unit), externals(self._units.describe(unit), seen)
                found = self._scan_and_keep(number, unit, seen, partial(part.scan, data, values))
            hits += found
        return hits

    def _within_bound(self, unit: Unit, start: Start) -> Start:
        """Return the start, or none where the unit has been scanned for STARTS_BOUND starts."""
        starts = self._starts.setdefault(unit.key, set())
        if start not in starts and len(starts) >= STARTS_BOUND:
            return _NOWHERE
        starts.add(start)
        return start

    def _scan_and_keep(
        self, number: int, unit: Unit, start: Start, scan: Callable[[], list[RuleHit]]
    ) -> tuple[RuleHit, ...]:
        """Scan a unit with a part of the rules and keep the hits; if the engine fails, no hits and a note."""
        hits: tuple[RuleHit, ...] = ()
        try:
            hits = tuple(scan())
        except TimeLimitError:
            self._overdue += 1
            if self._overdue == OVERDUE_BOUND:
                self._rules = None
                self._notes.append(f"YARA: no more is scanned after {OVERDUE_BOUND} scans that were not finished")
            self._notes.append(f"YARA: {unit.name} was not scanned to its end, {TIME_LIMIT} seconds are the limit")
        except ScanError as error:
            self._notes.append(f"YARA: {unit.name} could not be scanned: {error}")
        self._hits[number, unit.key, start] = hits
        return hits

    def _scan_all(self) -> dict[int, tuple[Unit, list[str]]]:
        """Scan every driver; while the engine scans, which releases Python's lock, the next drivers are read."""
        rules = self._compile_once()
        if rules is None:
            return {}
        from concurrent.futures import Future, ThreadPoolExecutor

        found: dict[Unit, set[str]] = {}
        pending: deque[tuple[int, Unit, Future[list[RuleHit]]]] = deque()

        def finish(waiting: int) -> None:
            while len(pending) > waiting:
                number, unit, future = pending.popleft()
                found.setdefault(unit, set()).update(
                    hit.rule for hit in self._scan_and_keep(number, unit, _NOWHERE, future.result)
                )

        with ThreadPoolExecutor(WORKERS) as pool:
            # The largest first: the workers end at about the same time, and each unit fits into memory freed before.
            for unit in sorted(self._list_all(), key=lambda unit: -unit.size):
                if self._rules is None:
                    break
                self._starts.setdefault(unit.key, set()).add(_NOWHERE)
                data, values = self._units.read(unit), externals(self._units.describe(unit), _NOWHERE)
                for number, part in enumerate(rules.parts):
                    pending.append((number, unit, pool.submit(part.scan, data, values)))
                # A few read units wait, so that no worker does; large ones are not read ahead, to save memory.
                finish(2 * WORKERS if unit.size < LARGE else WORKERS)
            finish(0)
        hit = sorted((unit for unit, names in found.items() if names), key=lambda unit: unit.base)
        return {unit.base: (unit, sorted(found[unit])) for unit in hit}

    def _list_all(self) -> list[Unit]:
        """List the drivers to scan when all are, up to EVERY_BOUND bytes."""
        units: list[Unit] = []
        passed_by: list[str] = []
        claimed = 0
        for driver in self._drivers.all_drivers():
            if claimed + driver.size > EVERY_BOUND:
                passed_by.append(driver.label)
                continue
            claimed += driver.size
            units.append(Unit(driver.base, driver.size, driver))
        if passed_by:
            self._notes.append(f"YARA: not scanned, since they claim too many bytes: {', '.join(passed_by)}")
        return units


def _hit(hit: RuleHit, unit: Unit, start: Start) -> YaraHit:
    """Make the hit in a unit; it is in the start routine where one of its strings overlaps that function."""
    inside = [place for place, length in hit.places if place < start.rva + start.size and place + length > start.rva]
    place = min(inside) if inside else min((place for place, _ in hit.places), default=None)
    return YaraHit(hit.rule, unit.name, bool(inside), None if place is None else unit.base + place)
