"""Signals: SIGTERM and SIGHUP end a command as Ctrl-C does, with its cleanup, which no further signal interrupts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Sent by Ctrl-C; by `kill` and at a shutdown; when a terminal is closed."""


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Raise KeyboardInterrupt in the body at the first of these signals; later ones are ignored.

    A signal that is ignored stays ignored, as `nohup` and shells set it for background processes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {each: handler for each in numbers if (handler := signal.getsignal(each)) not in (signal.SIG_IGN, None)}

    def end(_number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
