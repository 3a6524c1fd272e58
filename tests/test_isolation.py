"""The process that reads images may be taken over by one: what it says then is that image's, and no other's."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from apcaudit.bulk.isolation import ImageError, Isolation

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
