"""Which rules hit the drivers that a thread depends on, and which of them in its start routine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

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
        self._hits: dict[tuple[int, Start], tuple[RuleHit, ...]] = {}
        self._starts: dict[int, set[Start]] = {}
        self._marked: dict[int, Unit] | None = None
        self._shown: set[int] = set()
        self._overdue = 0
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be scanned, and hits in drivers that no thread given by `of` starts in."""
        alone = [
            f"YARA: {', '.join(sorted({hit.rule for hit in self._hits[base, _NOWHERE]}))} in {unit.name} at {base:#x},"
            " where no listed thread starts"
            for base, unit in (self._marked or {}).items()
            if base not in self._shown
        ]
        return (*self._notes, *self._units.notes, *alone)

    def compile(self) -> None:
        """Compile the rules, if there are any to be compiled.

        Raises:
            RuleError: some of them cannot be used.
        """
        if not self._tried and (self.options.own or self.options.defaults):
            self._tried = True
            self._rules = compile_rules(self.options)

    def marks(self, address: int) -> bool:
        """Tell whether a start address lies in a driver that is hit, where every driver is to be scanned."""
        if not self.options.every_driver:
            return False
        if self._marked is None:
            self._marked = self._scan_all()
        driver = self._drivers.at(address)
        return driver is not None and driver.base in self._marked

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
        if start is not None and thread.members.system_thread:
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

    def _scan(self, unit: Unit, start: Start) -> tuple[RuleHit, ...]:
        rules = self._ready()
        if rules is None:
            return ()
        seen = start if rules.wants_start else _NOWHERE
        starts = self._starts.setdefault(unit.base, set())
        if seen not in starts and len(starts) >= STARTS_BOUND:
            seen = _NOWHERE
        hits = self._hits.get((unit.base, seen))
        if hits is not None:
            return hits
        starts.add(seen)
        data, values = self._units.data(unit), externals(self._units.known(unit), seen)
        return self._keep(unit, seen, lambda: rules.scan(data, values))

    def _keep(self, unit: Unit, start: Start, scan: Callable[[], list[RuleHit]]) -> tuple[RuleHit, ...]:
        """Scan a unit and remember what hit, nothing where the engine gives up, which is noted."""
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
        self._hits[unit.base, start] = hits
        return hits

    def _scan_all(self) -> dict[int, Unit]:
        """Scan every module, reading the next ones while the engine, which needs no Python, has the one before."""
        rules = self._ready()
        if rules is None:
            return {}
        from concurrent.futures import Future, ThreadPoolExecutor

        marked: dict[int, Unit] = {}
        pending: deque[tuple[Unit, Future[list[RuleHit]]]] = deque()

        def finish(waiting: int) -> None:
            while len(pending) > waiting:
                unit, future = pending.popleft()
                if self._keep(unit, _NOWHERE, future.result):
                    marked[unit.base] = unit

        with ThreadPoolExecutor(WORKERS) as pool:
            for driver in self._drivers.drivers:
                if self._rules is None:
                    break
                unit = Unit(driver.base, driver.size, driver)
                if not self._worth(unit):
                    continue
                self._starts.setdefault(unit.base, set()).add(_NOWHERE)
                values = externals(self._units.known(unit), _NOWHERE)
                pending.append((unit, pool.submit(rules.scan, self._units.data(unit), values)))
                finish(WORKERS)
            finish(0)
        return marked


def _hit(hit: RuleHit, unit: Unit, start: Start) -> YaraHit:
    """Tie a rule's hit to a unit; it is in the start routine where a string of it overlaps that."""
    inside = [place for place, length in hit.places if place < start.rva + start.size and place + length > start.rva]
    place = min(inside) if inside else min((place for place, _ in hit.places), default=None)
    return YaraHit(hit.rule, unit.name, bool(inside), None if place is None else unit.base + place)
