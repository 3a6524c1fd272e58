"""Every situation of the vocabulary, on every kernel of ours: the findings planted come out, and no others."""

from __future__ import annotations

import pytest

from apcaudit.synthetic import situations
from apcaudit.synthetic.kernels import OWN, load_kernel
from apcaudit.synthetic.situations.situation import BYSTANDER
from tests.situation_audit import SituationAudit, audit_situations


@pytest.fixture(scope="module", params=OWN)
def audited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SituationAudit:
    """Audit the machine with every situation once a kernel."""
    return audit_situations(load_kernel(request.param), tmp_path_factory.mktemp(request.param))


def test_every_situation(audited: SituationAudit) -> None:
    """A situation has the codes that were planted, each with its own severity, and no others; the text says why."""
    assert audited.listed is not None
    assert audited.differences() == {}


def test_every_situation_is_on_some_kernel() -> None:
    """No situation is left out everywhere."""
    planted = {each.name for name in OWN for each in situations.tids(load_kernel(name)).values()}
    assert {each.name for each in situations.SITUATIONS} == planted


def test_bystander_and_idle_threads_are_silent(audited: SituationAudit) -> None:
    """Threads to which nothing has happened have no finding: a bystander, and every processor's idle thread."""
    assert BYSTANDER in (audited.listed or {})
    assert BYSTANDER in audited.scanned
    assert audited.others() == {}


def test_a_list_that_leads_into_another_threads(audited: SituationAudit) -> None:
    """The list that was tied into another is broken; its KAPC is the other's, and the other's head is no KAPC."""
    expected = {"list-broken": "high", "duplicate-apc": "high", "thread-mismatch": "high"}
    assert audited.listed is not None
    assert audited.listed[situations.TIED] == audited.scanned[situations.TIED] == expected


def test_garbage_has_no_row(audited: SituationAudit) -> None:
    """What lies in the pool and looks like a thread is none: the scan gives it no row."""
    assert audited.taken_for_threads == ()
