"""The process that reads images may be taken over by one: what it says then is that image's, and no other's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apcaudit.bulk.isolation import ImageError, Isolation, StoppedError
from apcaudit.bulk.outcome import Settings
from apcaudit.bulk.readers import Readers
from tests.bulk_images import put_index, write
from tests.conftest import ROOT

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
        (('{"progress": [1]}\n', ENDED), "the process that reads images gave no answer that can be read"),
        (('{"progress": "1 of 2"}\n', '{"progress": "2 of 2"}\n', DONE, ENDED), 1),
    ],
)
def test_an_answer_is_of_its_request(says: tuple[str, ...], first: object, isolation: Isolation) -> None:
    """Whatever comes of a request, the next one gets its own answer."""
    assert ask(isolation, *says) == first
    assert ask(isolation, '{"done": "own"}\n', ENDED) == "own"
    isolation.close()


@pytest.mark.parametrize(
    ("said", "header"),
    [('{"bits": 64}', {"bits": 64}), ("null", None), ('"x"', None), ("[1]", None)],
)
def test_what_a_header_tells_of_a_failure(said: str, header: object, isolation: Isolation) -> None:
    """A failure may bring what the image's headers tell; anything else in its place is nothing."""
    shown: list[str] = []
    says = ('{"stage": "open"}\n', '{"progress": "1 of 2"}\n', f'{{"failed": "why", "header": {said}}}\n', ENDED)
    with pytest.raises(ImageError) as raised:
        isolation.ask({"says": says}, time.monotonic() + 20, shown.append)
    isolation.close()
    assert (raised.value.stage, raised.value.header) == ("open", header)
    assert shown == ["open", "1 of 2"]


def test_who_does_not_end_has_not_answered(isolation: Isolation) -> None:
    """A process that answers and then goes on is killed when the time is over, and its image has failed."""
    assert ask(isolation, DONE, seconds=0.5) == "it took longer than --timeout allows"


@pytest.mark.parametrize(
    ("stage", "opening", "timeout", "said"),
    [
        ("open", 1, 20, "volatility3 did not open it in 1 s"),
        ("audit", 0.5, 1, "it took longer than --timeout allows"),
    ],
)
def test_opening_has_a_limit_of_its_own(
    stage: str, opening: float, timeout: float, said: str, isolation: Isolation
) -> None:
    """An image that vol opens without end is given up long before --timeout; an audit has all of that time."""
    says = ['{"stage": "open"}\n', f'{{"stage": "{stage}"}}\n']
    with pytest.raises(ImageError, match=said):
        isolation.ask({"says": says}, time.monotonic() + timeout, lambda _: None, opening=opening)


def test_without_fork(tmp_path: Path) -> None:
    """Where there is no fork, each request has a process of its own, and gets the same answer as with it."""
    image, cache = write(tmp_path / "seed.dmp", "seed"), put_index(tmp_path / "cache")
    asked = {"do": "audit", "file": str(image), "image": "", "scan": False, "rules": None, "skip_broken_rules": False}
    answers = []
    for forks in (False, True):
        isolation = Isolation((), cache, offline=True, forks=forks)
        answers.append(isolation.ask({"memory": 4 << 30, **asked}, time.monotonic() + 60, lambda _: None))
        isolation.close()
    assert answers[0]["findings"]
    assert answers[0] == answers[1]


#: Is ready, says that it has begun when it is asked, and then does what does not end.
STUCK = """
import os, re, signal, subprocess, sys, time
from apcaudit.bulk import processes
processes.adopt()
open('ready', 'w').close()
request = sys.stdin.readline()
sys.stdout.write('{"stage": "audit"}\\n')
sys.stdout.flush()
"""

#: What a process may do that does not end: each line is one way.
WAYS = {
    "a FIFO that nobody writes to": "os.mkfifo('fifo'); open('fifo').read()",
    "a device that gives nothing": "open(os.openpty()[1], 'rb').read()",
    "code in C that holds Python's lock": "re.match('(a|a)*b', 'a' * 60)",
    "no heed of SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "lines without end": '[print(\'{"stage": "audit"}\', flush=True) for _ in iter(int, 1)]',
    # Slowly: what is written at once comes to the bound of an answer first.
    "a line without end": "[time.sleep(0.001) or sys.stdout.write('x' * 4096) for _ in iter(int, 1)]",
    "a child": "subprocess.run(['sleep', '600'])",
    "a child that has left": "subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)",
    "a child whose parent has ended": "os.fork() or (os.setsid(), os.fork() and os._exit(0)); time.sleep(600)",
}


def processes_in(folder: Path) -> set[int]:
    """Return the processes whose working directory is a folder, by /proc; of one that has ended nobody is told."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").resolve(strict=True) == folder:
                found.add(int(entry.name))
    return found


@dataclass(frozen=True)
class Ended:
    """How a request ended whose time was over: what was raised, the stages, the seconds, and who was left then."""

    error: ImageError | None
    stages: list[str]
    seconds: float
    left: set[int]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Ended]]:
    """Let the time of all ways be over at once, each in a process and a folder of its own: most only wait for it."""
    folders = {way: tmp_path_factory.mktemp("way") for way in WAYS}
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(WAYS)) as executor:
        patch.setenv("PYTHONPATH", str(ROOT))
        made = {way: stuck(way, folder) for way, folder in folders.items()}
        while not all((folder / "ready").exists() for folder in folders.values()):
            time.sleep(0.01)
        asked = {way: executor.submit(ask_stuck, made[way], folders[way]) for way in WAYS}
        yield lambda way: asked[way].result()


def stuck(way: str, folder: Path) -> Isolation:
    """Start a process that will do what does not end, in a folder that nobody else works in."""
    isolation = Isolation((), folder / "cache", offline=True)
    isolation._command = [sys.executable, "-c", f"import os; os.chdir({str(folder)!r})\n{STUCK}{WAYS[way]}"]
    isolation.start()
    return isolation


def ask_stuck(isolation: Isolation, folder: Path) -> Ended:
    """Ask it until its time is over."""
    stages: list[str] = []
    error = None
    started = time.monotonic()
    try:
        isolation.ask({}, started + 1.5, stages.append)
    except ImageError as raised:
        error = raised
    return Ended(error, stages, time.monotonic() - started, processes_in(folder))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process that leaves its group is not found")
@pytest.mark.parametrize("way", WAYS)
def test_the_time_ends_whatever_is_done(way: str, ended: Callable[[str], Ended]) -> None:
    """When the time is over the process has ended and all that it has started, and the image has failed for that."""
    done = ended(way)
    assert "took longer than --timeout" in str(done.error)
    assert done.stages[:1] == ["audit"]
    assert done.seconds < 15
    assert done.left == set()


def test_an_answer_without_end(isolation: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is longer than any answer is none, and no more of it is taken."""
    monkeypatch.setattr("apcaudit.bulk.isolation._LONGEST", 1000)
    assert (
        ask(isolation, f'{{"done": "{"x" * 2000}"}}\n', ENDED)
        == "the process that reads images gave no answer that can be read"
    )


def test_the_next_image_has_its_own_time(isolation: Isolation) -> None:
    """When the time of an image that has ended is over, nothing happens to the process, which reads the next one."""
    assert ask(isolation, DONE, ENDED) == 1
    process, request = isolation._process, {"says": (DONE, ENDED)}
    over = time.monotonic() + 1.5
    assert isolation.ask(request, over, lambda _: None) == 1
    time.sleep(over - time.monotonic() + 0.2)
    assert isolation.ask(request, time.monotonic() + 20, lambda _: None) == 1
    assert isolation._process is process
    isolation.close()


def test_a_number_that_is_free_again_is_left_alone(isolation: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is killed by the number of a process that was seen to have ended: it may be another one's by now."""
    ask(isolation, DONE, ENDED)
    process = isolation._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    killed: list[int] = []
    for name in ("kill", "killpg"):
        monkeypatch.setattr(os, name, lambda number, _: killed.append(number))
    isolation.close()
    assert killed == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process that leaves its group is not found")
def test_nothing_outlives_its_image(tmp_path: Path) -> None:
    """What a process that read an image has left behind ends with it, though it has a session of its own."""
    script = f"""
import os, sys, time
os.chdir({str(tmp_path)!r})
from apcaudit.bulk import processes
processes.adopt()
reader = os.fork()
if reader == 0:
    os.fork() or (os.setsid(), os.fork() and os._exit(0), time.sleep(600))
    time.sleep(0.5)
    os._exit(0)
os.waitpid(reader, 0)
processes.end_children()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert processes_in(tmp_path) == set()


def test_who_is_stopped_gets_no_process(tmp_path: Path) -> None:
    """Once the processes are stopped, no thread that is left gets one; after that, the next scan does."""
    readers, settings = Readers(), Settings(tmp_path / "results", (tmp_path,), offline=True, cache=tmp_path)
    readers.stop()
    with pytest.raises(StoppedError), readers.acquire(settings):
        pass
    readers.reopen()
    with readers.acquire(settings) as isolation:
        isolation.close()
