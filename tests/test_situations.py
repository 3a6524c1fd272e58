"""Every situation of the vocabulary, on every kernel of ours: the findings planted come out, and no others."""

from __future__ import annotations

import pytest

from apcaudit.synthetic import situations
from apcaudit.synthetic.kernels import OWN, load_kernel
from apcaudit.synthetic.situations.situation import BYSTANDER, Situation
from tests.situation_audit import SituationAudit, audit_situations, highest


@pytest.fixture(scope="module", params=OWN)
def audited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SituationAudit:
    """Audit the machine with every situation once a kernel."""
    return audit_situations(load_kernel(request.param), tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("situation", situations.SITUATIONS, ids=lambda each: each.name)
def test_situation(audited: SituationAudit, situation: Situation) -> None:
    """A situation has the codes that were planted and no others; the row's severity is the highest of them."""
    chosen = {each.name: tid for tid, each in situations.tids(audited.kernel).items()}
    if situation.name not in chosen:
        pytest.skip(f"{audited.kernel.name} lacks {', '.join(situation.needs)}")
    tid = chosen[situation.name]
    if not situation.scan:
        assert set(audited.listed[tid]) == set(situation.expected), situation.meaning
        assert highest(audited.listed[tid]) == highest(situation.expected)
    assert set(audited.scanned[tid]) == set(situation.expected), situation.meaning
    assert highest(audited.scanned[tid]) == highest(situation.expected)


def test_bystander_and_idle_threads_are_silent(audited: SituationAudit) -> None:
    """Threads to which nothing has happened have no finding: a bystander, and every processor's idle thread."""
    assert BYSTANDER in audited.listed
    assert audited.others() == {}


def test_garbage_has_no_row(audited: SituationAudit) -> None:
    """What lies in the pool and looks like a thread is none: the scan gives it no row."""
    assert audited.taken_for_threads == ()
