"""Which rules hit the drivers that a thread depends on, and which of them in its start routine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from ..drivers.loaded import Drivers
from ..memory import Memory
from ..model import Thread, YaraHit
from .engines import TIME_LIMIT, RuleHit, ScanError, TimeLimitError
from .externals import Start, externals
from .options import RuleError, RuleOptions
from .rules import Rules, compile_rules
from .units import Unit, Units

STARTS_BOUND = 32
"""For how many different starts a unit is scanned anew; each costs a whole scan."""

WORKERS = 2
"""How many units are scanned at once where all of them are."""

LARGE = 16 << 20
"""Size in bytes from which on a unit waits until a worker is free before it is read."""

EVERY_BOUND = 4 << 30
"""How many bytes of drivers are scanned where all of them are: ten times what a large machine loads."""

APCS_BOUND = 16
"""Of how many APCs of a thread the drivers are scanned."""

OVERDUE_BOUND = 3
"""How many units may take the whole TIME_LIMIT before no more are scanned: such rules would take hours."""

_NOWHERE = Start()


class Signatures:
    """Scans what threads depend on, each unit once; rules that ask for the start see it once a start."""

    def __init__(self, memory: Memory, drivers: Drivers, options: RuleOptions) -> None:
        self.options = options
        self._drivers = drivers
        self._units = Units(memory, drivers)
        self._rules: Rules | None = None
        self._tried = False
        self._skipped: str | None = None
        self._hits: dict[tuple[int, int, Start], tuple[RuleHit, ...]] = {}  # by part, unit and start
        self._starts: dict[int, set[Start]] = {}
        self._marked: dict[int, tuple[Unit, list[str]]] | None = None
        self._marking: dict[int, bool] = {}
        self._shown: set[int] = set()
        self._overdue = 0
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be scanned, and hits that no thread shows."""
        return (*self.skipped_rules, *self._notes, *self._units.notes, *self.hits_alone)

    @property
    def skipped_rules(self) -> tuple[str, ...]:
        """Tell which rule files were passed by, also where no driver had to be scanned."""
        if not self.options.skip_broken:
            return ()
        self._ready()
        return () if self._skipped is None else (self._skipped,)

    @property
    def hits_alone(self) -> tuple[str, ...]:
        """Tell of hits in drivers that no thread given by `of` starts in."""
        return tuple(
            f"YARA: {', '.join(rules)} in {unit.name} at {unit.base:#x}, where no listed thread starts"
            for unit, rules in (self._marked or {}).values()
            if unit.base not in self._shown
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

    def marks(self, address: int) -> bool:
        """Tell whether a start address lies in a driver that is hit, where every driver is to be scanned."""
        if not self.options.every_driver:
            return False
        if self._marked is None:
            self._marked = self._scan_all()
        known = self._marking.get(address)
        if known is None:
            driver = self._drivers.at(address)
            unit = None if driver is None else Unit(driver.base, driver.size, driver)
            # A rule may hit only where it sees the start.
            known = unit is not None and (
                unit.base in self._marked or bool(self._scan(unit, self._units.start(unit, address)))
            )
            self._marking[address] = known
        return known

    def of(self, thread: Thread) -> tuple[YaraHit, ...] | None:
        """Scan what a thread depends on: the driver it starts in, and those of its APCs' routines.

        Returns:
            The hits, those in the start routine first, or None where nothing was scanned.
        """
        if self._ready() is None:
            return None
        if self.options.every_driver and self._marked is None:
            self._marked = self._scan_all()
        found: dict[tuple[str, int], YaraHit] = {}
        scanned: set[int] = set()
        for unit, start in self._wanted(thread):
            if unit.base in scanned:
                continue
            scanned.add(unit.base)
            self._shown.add(unit.base)
            for hit in self._scan(unit, start):
                made = _hit(hit, unit, start)
                known = found.get((hit.rule, unit.base))
                if known is None or made.at_start > known.at_start:
                    found[hit.rule, unit.base] = made
        if not scanned:
            return None
        return tuple(sorted(found.values(), key=lambda hit: (not hit.at_start, hit.rule, hit.unit)))

    def _ready(self) -> Rules | None:
        """Compile the shipped rules when they are first needed; those of the user have been by then."""
        if not self._tried:
            try:
                self.compile()
            except RuleError as error:
                self._notes.append(f"drivers are not scanned by YARA: {error}")
        return self._rules

    def _wanted(self, thread: Thread) -> Iterator[tuple[Unit, Start]]:
        start = thread.members.start_address
        if start is not None and thread.start_backing is not None:
            unit = self._units.at(start)
            if unit is not None and self._worth(unit):
                yield unit, self._units.start(unit, start)
        apcs = [apc for queue in thread.queues for apc in queue.apcs][:APCS_BOUND]
        for apc in apcs:
            for routine in (apc.kernel_routine, apc.rundown_routine, apc.normal_routine):
                unit = self._units.at(routine.address) if routine is not None and routine.address else None
                if unit is not None and self._worth(unit):
                    yield unit, _NOWHERE

    def _worth(self, unit: Unit) -> bool:
        """Tell whether to scan a unit: the rules that ship have nothing to say of the kernel itself."""
        if unit.driver is None or self.options.own or self.options.every_driver:
            return True
        return not self._drivers.is_kernel(unit.driver)

    def _scan(self, unit: Unit, start: Start) -> list[RuleHit]:
        """Scan a unit by every part of the rules, by those that cannot ask for a start only once."""
        rules = self._ready()
        hits: list[RuleHit] = []
        for number, part in enumerate(() if rules is None else rules.parts):
            seen = self._bounded(unit, start) if part.wants_start else _NOWHERE
            found = self._hits.get((number, unit.base, seen))
            if found is None:
                data, values = self._units.data(unit), externals(self._units.known(unit), seen)
                found = self._keep(number, unit, seen, partial(part.scan, data, values))
            hits += found
        return hits

    def _bounded(self, unit: Unit, start: Start) -> Start:
        """Return a start, or none where a unit has been scanned for as many as are."""
        starts = self._starts.setdefault(unit.base, set())
        if start not in starts and len(starts) >= STARTS_BOUND:
            return _NOWHERE
        starts.add(start)
        return start

    def _keep(self, number: int, unit: Unit, start: Start, scan: Callable[[], list[RuleHit]]) -> tuple[RuleHit, ...]:
        """Scan a unit by a part of the rules and remember what hit; where the engine gives up, nothing and a note."""
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
        self._hits[number, unit.base, start] = hits
        return hits

    def _scan_all(self) -> dict[int, tuple[Unit, list[str]]]:
        """Scan every driver, reading the next ones while the engine, which needs no Python, has the one before."""
        rules = self._ready()
        if rules is None:
            return {}
        from concurrent.futures import Future, ThreadPoolExecutor

        found: dict[Unit, set[str]] = {}
        pending: deque[tuple[int, Unit, Future[list[RuleHit]]]] = deque()

        def finish(waiting: int) -> None:
            while len(pending) > waiting:
                number, unit, future = pending.popleft()
                found.setdefault(unit, set()).update(
                    hit.rule for hit in self._keep(number, unit, _NOWHERE, future.result)
                )

        with ThreadPoolExecutor(WORKERS) as pool:
            # The largest first: the workers end at about the same time, and what one gives back the next fits into.
            for unit in sorted(self._everywhere(), key=lambda unit: -unit.size):
                if self._rules is None:
                    break
                self._starts.setdefault(unit.base, set()).add(_NOWHERE)
                data, values = self._units.read(unit), externals(self._units.known(unit), _NOWHERE)
                for number, part in enumerate(rules.parts):
                    pending.append((number, unit, pool.submit(part.scan, data, values)))
                # Some wait, so that no worker does; of images that fill memory, none.
                finish(2 * WORKERS if unit.size < LARGE else WORKERS)
            finish(0)
        hit = sorted((unit for unit, names in found.items() if names), key=lambda unit: unit.base)
        return {unit.base: (unit, sorted(found[unit])) for unit in hit}

    def _everywhere(self) -> list[Unit]:
        """List the drivers that are scanned where all are: as many as the bound lets."""
        units: list[Unit] = []
        passed_by: list[str] = []
        claimed = 0
        for driver in self._drivers.everywhere():
            if claimed + driver.size > EVERY_BOUND:
                passed_by.append(driver.label)
                continue
            claimed += driver.size
            units.append(Unit(driver.base, driver.size, driver))
        if passed_by:
            self._notes.append(f"YARA: not scanned, since they claim too many bytes: {', '.join(passed_by)}")
        return units


def _hit(hit: RuleHit, unit: Unit, start: Start) -> YaraHit:
    """Tie a rule's hit to a unit; it is in the start routine where a string of it overlaps that."""
    inside = [place for place, length in hit.places if place < start.rva + start.size and place + length > start.rva]
    place = min(inside) if inside else min((place for place, _ in hit.places), default=None)
    return YaraHit(hit.rule, unit.name, bool(inside), None if place is None else unit.base + place)
