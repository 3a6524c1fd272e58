"""Drawing a chain: boxes in six columns and lines between them, in units of SVG's user space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from apcaudit.bulk.records import HIDDEN
from apcaudit.reports.chain import NO_MODULE, Chain, Link, Routine
from apcaudit.text import fold, visible

_COLUMNS = 6
"""Image, thread, origin, KAPC, routine, driver: who queued it stands beside the thread, since it is the answer."""

_WIDTH, _GAP, _TOP = 186, 26, 2
_LINE, _HEAD, _FOOT, _LANE_GAP = 15, 24, 9, 14
_CHARACTERS = 25
"""How many monospaced characters of 11 pixels fit into a line of a box."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box: its heading, its lines (y, text), and the whole text, shown as its tooltip."""

    x: int
    y: int
    height: int
    heading: str
    lines: tuple[tuple[int, str], ...]
    whole: str
    suspect: bool
    width: int = _WIDTH


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chain's drawing; `text` describes it for screen readers."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    paths: tuple[str, ...]
    text: str


class _Pen:
    """Places boxes and lines; `y` is where the next lane begins."""

    def __init__(self) -> None:
        self.boxes: list[Box] = []
        self.paths: list[str] = []
        self.y = _TOP

    def box(self, column: int, y: int, heading: str, texts: list[tuple[str, int]], *, suspect: bool = False) -> Box:
        """Draw a box with texts, each given with its greatest number of lines."""
        shown = [line for text, most in texts for line in fold(str(visible(text)), _CHARACTERS, most)]
        lines = tuple((y + _HEAD + _LINE * (index + 1) - 4, line) for index, line in enumerate(shown))
        whole = "\n".join(text for text, _ in texts)
        made = Box(_x(column), y, _HEAD + _LINE * len(shown) + _FOOT, heading, lines, whole, suspect)
        self.boxes.append(made)
        return made

    def line(self, start: Box, end: Box) -> None:
        """Draw a line from a box's right side to the left side of another, at the height of their headings."""
        x1, y1, x2, y2 = start.x + start.width, start.y + 14, end.x, end.y + 14
        middle = x1 + _GAP // 2
        self.paths.append(f"M{x1} {y1}H{x2}" if y1 == y2 else f"M{x1} {y1}H{middle}V{y2}H{x2}")


def draw(chain: Chain) -> Drawing:
    """Draw a chain: image and thread once, then a lane for each KAPC."""
    pen = _Pen()
    thread = chain.thread
    others = len(chain.images) - 1
    texts = [(chain.image, 3)] + ([(f"and {others} more", 1)] if others else [])
    image = pen.box(0, _TOP, "Image", texts)
    about = [(f"{thread.process or 'process unknown'} ({_known(thread.pid)})", 2), (f"TID {_known(thread.tid)}", 1)]
    about += [(thread.state, 2)] if thread.state else []
    about += [(f"attached to {thread.attached}", 2)] if thread.attached else []
    owner = pen.box(1, _TOP, "Thread", [*about, (f"{thread.thread:#x}", 1)])
    pen.line(image, owner)
    for link in chain.links:
        _lane(pen, link, owner)
    height = max(box.y + box.height for box in pen.boxes) + 2
    text = "; ".join(_sentence(chain))
    return Drawing(_x(_COLUMNS) - _GAP + 4, height, tuple(pen.boxes), tuple(pen.paths), text)


def _lane(pen: _Pen, link: Link, owner: Box) -> None:
    top, bottom = pen.y, pen.y
    start = owner
    if link.apc is not None and link.apc.origin:
        start = pen.box(2, top, "Origin", [(link.apc.origin, 6)])
        pen.line(owner, start)
        bottom = top + start.height
    if link.apc is not None:
        texts = [(f"{link.apc.queue} queue", 1), (link.apc.kind or "kind unknown", 1), (f"{link.apc.apc:#x}", 1)]
        apc = pen.box(3, top, f"KAPC {link.apc.position}", texts)
        pen.line(start, apc)
        bottom = max(bottom, top + apc.height)
        start = apc
    for routine in link.routines:
        code = pen.box(4, pen.y, routine.role, [(routine.text, 3)], suspect=routine.driver.name is None)
        driver = pen.box(5, pen.y, "Driver", [*_driver(routine)], suspect=routine.driver.suspect)
        pen.line(start, code)
        pen.line(code, driver)
        pen.y += max(code.height, driver.height) + _LANE_GAP
    pen.y = max(pen.y, bottom + _LANE_GAP)


def _driver(routine: Routine) -> Iterator[tuple[str, int]]:
    if routine.driver.name is None:
        yield NO_MODULE, 1
        return
    yield routine.driver.name, 2
    if routine.driver.suspect and routine.driver.status:
        yield {HIDDEN: "hidden: in no list"}.get(routine.driver.status, routine.driver.status), 1


def _sentence(chain: Chain) -> Iterator[str]:
    thread = chain.thread
    yield f"Image {chain.image}, thread {thread.thread:#x} of {thread.process or 'unknown'} (TID {_known(thread.tid)})"
    for link in chain.links:
        routines = ", ".join(
            f"{each.role} {each.text} {NO_MODULE if each.driver.name is None else 'of ' + each.driver.name}"
            for each in link.routines
        )
        if link.apc is None:
            yield routines
        else:
            origin = f"origin {link.apc.origin}, " if link.apc.origin else ""
            yield f"{origin}KAPC {link.apc.apc:#x}, queue {link.apc.queue}, {routines}"


def _x(column: int) -> int:
    return 2 + column * (_WIDTH + _GAP)


def _known(number: int | None) -> str:
    return "unknown" if number is None else str(number)
