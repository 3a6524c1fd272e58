"""The process that reads images may be taken over by one: what it says then is that image's, and no other's."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from apcaudit.bulk.isolation import ImageError, Isolation, StoppedError
from apcaudit.bulk.outcome import Settings
from apcaudit.bulk.readers import Readers

#: Answers each request with the lines that belong to it, as a process that an image has taken over might.
PROCESS = """
import json, sys
for request in sys.stdin:
    for line in json.loads(request)["says"]:
        sys.stdout.write(line)
    sys.stdout.flush()
"""


@pytest.fixture
def isolation(tmp_path: Path) -> Isolation:
    """An isolation whose process says what the request tells it to."""
    made = Isolation((), tmp_path, offline=True)
    made._command = [sys.executable, "-c", PROCESS]
    return made


def ask(isolation: Isolation, *says: str, seconds: float = 20) -> Any:
    try:
        return isolation.ask({"says": says}, time.monotonic() + seconds, lambda _: None)
    except ImageError as error:
        return str(error)
    finally:
        if seconds < 20:
            isolation.close()


DONE, FORGED, FAILED, ENDED = '{"done": 1}\n', '{"done": 2}\n', '{"failed": "why"}\n', '{"ended": true}\n'


@pytest.mark.parametrize(
    ("says", "first"),
    [
        ((DONE, ENDED), 1),
        ((FAILED, ENDED), "why"),
        # Answers of its own making beside its own.
        ((DONE, FORGED, ENDED), 1),
        # It died after it had answered, which its parent says.
        ((DONE, FAILED, ENDED), 1),
        (("no answer\n", ENDED), "the process that reads images gave no answer that can be read"),
        (("[]\n", ENDED), "the process that reads images gave no answer that can be read"),
        (('{"stage": 1}\n', ENDED), "the process that reads images gave no answer that can be read"),
    ],
)
def test_an_answer_is_of_its_request(says: tuple[str, ...], first: object, isolation: Isolation) -> None:
    """Whatever comes of a request, the next one gets its own answer."""
    assert ask(isolation, *says) == first
    assert ask(isolation, '{"done": "own"}\n', ENDED) == "own"
    isolation.close()


def test_who_does_not_end_has_not_answered(isolation: Isolation) -> None:
    """A process that answers and then goes on is killed when the time is over, and its image has failed."""
    assert ask(isolation, DONE, seconds=0.5) == "its time was over (--timeout)"


#: Answers only when somebody has made the file that the request names.
WAITING = """
import json, os, sys, time
for request in sys.stdin:
    sys.stdout.write('{"stage": "audit"}\\n')
    sys.stdout.flush()
    while not os.path.exists(json.loads(request)["until"]):
        time.sleep(0.001)
    sys.stdout.write('{"done": 1}\\n{"ended": true}\\n')
    sys.stdout.flush()
"""


class Held:
    """A timer that never goes off by itself: the test does what it would do, when it wants to."""

    made: ClassVar[list[Held]] = []
    daemon = False

    def __init__(self, interval: float, function: Callable[[], None]) -> None:
        self.interval, self.function = interval, function
        self.made.append(self)

    def start(self) -> None:
        """Begin to wait."""

    def cancel(self) -> None:
        """Come too late: the thread of the timer is past the moment where it looks whether it was cancelled."""


def test_a_late_timer_is_of_its_own_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that goes off when its image has ended leaves the process alone, which reads the next image."""
    monkeypatch.setattr(threading, "Timer", Held)
    monkeypatch.setattr(Held, "made", [])
    isolation = Isolation((), tmp_path, offline=True)
    isolation._command = [sys.executable, "-c", WAITING]
    goes_on = tmp_path / "goes on"
    request, deadline = {"until": str(goes_on)}, time.monotonic() + 60
    goes_on.touch()
    assert isolation.ask(request, deadline, lambda _: None) == 1
    goes_on.unlink()

    def late(_: str) -> None:
        Held.made[0].function()
        goes_on.touch()

    assert isolation.ask(request, deadline, late) == 1
    # The timer of the image that is being read does end it.
    goes_on.unlink()
    with pytest.raises(ImageError, match="time was over"):
        isolation.ask(request, deadline, lambda _: Held.made[2].function())


def test_who_is_stopped_gets_no_process(tmp_path: Path) -> None:
    """Once the processes are stopped, no thread that is left gets one; after that, the next scan does."""
    readers, settings = Readers(), Settings(tmp_path / "results", (tmp_path,), offline=True, cache=tmp_path)
    readers.stop()
    with pytest.raises(StoppedError), readers.lend(settings):
        pass
    readers.reopen()
    with readers.lend(settings) as isolation:
        isolation.close()
