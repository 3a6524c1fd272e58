"""SIGTERM and SIGHUP end a command as Ctrl-C does: in order, and undisturbed while it ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C; who asks a process to end, as `kill` and a machine that shuts down; a terminal that was closed."""


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Raise KeyboardInterrupt when this process is asked to end, once: what is asked after that is happening already.

    A signal that is ignored stays so, as `nohup` and shells want it for what they start in the background.
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
