"""Some hundreds of images damaged at random, always the same ones: no audit of them breaks a promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import volatility3.symbols
from volatility3.plugins.windows.apcaudit.image.symbols import KernelSymbols

from fuzz.__main__ import table
from fuzz.minidump import MinidumpSubject
from fuzz.subject import Subject
from fuzz.symbol_file import SymbolFileSubject
from fuzz.trial import attempt
from tests.volatility import alone

SEED = 7

#: Which numbers of mutations each machine is tried with. The kinds of damage take turns, 13 of images and 6 of symbol
#: files; `python -m fuzz` makes thousands.
IMAGES = {"10-19041-x64": range(13), "xp-sp3-x86": range(13, 26)}
SYMBOL_FILES = {"10-19041-x64": range(3, 11), "xp-sp3-x86": range(12, 20)}


@pytest.fixture(scope="module", params=IMAGES)
def subject(request: pytest.FixtureRequest) -> Subject:
    """A machine to damage."""
    return Subject(request.param)


def test_damaged_images(subject: Subject) -> None:
    """Whatever is damaged: the audit ends, raises nothing, blames no other thread, loses nothing and says so."""
    trials = [attempt(subject, SEED, index) for index in IMAGES[subject.name]]
    assert [trial for trial in trials if not trial.good] == []
    assert "reported" in {trial.outcome for trial in trials}
    assert subject.name in table(trials)


def test_a_mutation_can_be_made_again(subject: Subject) -> None:
    """A seed and a number give the same damage each time, whatever was damaged before."""
    other = Subject(subject.name)
    assert [subject.mutation(SEED, at) for at in range(32)] == [other.mutation(SEED, at) for at in range(32)]


@pytest.mark.parametrize("kernel", SYMBOL_FILES)
def test_damaged_symbol_file(kernel: str) -> None:
    """Whatever a kernel's symbol file says: rows or one clear error, and no thread without its queue's end."""
    subject = SymbolFileSubject(kernel)
    trials = [attempt(subject, SEED, index) for index in SYMBOL_FILES[kernel]]
    assert [trial for trial in trials if not trial.good] == []
    assert {"refused", "reported"} <= {trial.outcome for trial in trials}


def test_damaged_minidump(shared: Path, tmp_path: Path) -> None:
    """Mutated copies of a genuine minidump are refused with one clear error, or audited within bounds.

    Other images of the process get their own kernel's names afterwards, from the symbol files that were in the path.
    """
    path = shared / "samples" / "triage_x64.dmp"
    if not path.exists():
        pytest.skip(f"{path.name} is missing")
    sort, folders = KernelSymbols._sort, list(volatility3.symbols.__path__)
    (symbols,) = shared.glob("symbols/windows/*/5278AFF8*.json.xz")
    subject = MinidumpSubject(path, alone(symbols, tmp_path))
    trials = [attempt(subject, SEED, index) for index in range(7)]
    assert [trial for trial in trials if not trial.good] == []
    assert KernelSymbols._sort is sort
    assert list(volatility3.symbols.__path__) == folders
