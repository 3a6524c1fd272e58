"""The one test that spares nearly every thread all the others must spare none that they would report."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volatility3.plugins.windows.apcaudit.checks import RULES, Prefilter, check_thread
from volatility3.plugins.windows.apcaudit.formats.layout import Decoder, EmbeddedKapc, Layout
from volatility3.plugins.windows.apcaudit.members import PrefilterMembers, ThreadMembers
from volatility3.plugins.windows.apcaudit.model import Absence, Backing, BugCheck, Thread

from tests.situations_pure import (
    APC_SIZE,
    KERNEL_HEAD,
    NO_OP,
    OTHER,
    OWNER,
    ROUTINES,
    THREAD,
    USER_HEAD,
    WINDOWS_11_24H2,
    thread,
)

FLAG = (0, 1, None)
COUNTER = (0, -1, 2, None)
PROCESS = (0, OWNER.address, OTHER.address, None)
MEMBERS: dict[str, tuple[int | None, ...]] = {
    "state": (*range(11), None),
    "wait_irql": COUNTER,
    "apc_queueable": FLAG,
    "apc_state_index": (0, 0, 0, 1, 2, None),
    "kernel_apc_disable": COUNTER,
    "special_apc_disable": COUNTER,
    "terminated": FLAG,
    "system_thread": FLAG,
    "process": PROCESS,
    "apc_process": PROCESS,
    "saved_process": PROCESS,
    "kernel_apc_in_progress": FLAG,
    "kernel_apc_pending": (0, 0, 1, None),
    "user_apc_pending": FLAG,
    "wait_mode": FLAG,
    "wait_reason": (6, 15, 5, None),
    "wait_state": (0, 1, 4, None),
    "suspend_count": (0, 0, 1, None),
    "suspend_apc_type": (18, 18, 0, None),
    "suspend_apc_size": (0x58, 0x58, 0x30, None),
    "suspend_apc_thread": (THREAD, THREAD, 0, None),
    "suspend_apc_kernel": (NO_OP, NO_OP, ROUTINES["KiSchedulerApcTerminate"], 0x1234, None),
    "suspend_apc_rundown": (NO_OP, NO_OP, 0, None),
    "suspend_apc_normal": (ROUTINES["KiSchedulerApc"], 0x1234, None),
    "suspend_apc_inserted": FLAG,
    "teb_apc_type": (0, 18, None),
    "teb_apc_size": (0, 0x58, None),
    "teb_apc_thread": (0, THREAD, 8, None),
    "teb_apc_kernel": (0, NO_OP, 0x1234, None),
    "teb_apc_rundown": (0, 0x1234, None),
    "teb_apc_normal": (0, ROUTINES["KiUpdateTebApc"], 0x1234, None),
}
"""Members that checks depend on, and the values that they are tried with; what is ordinary stands there more often."""

# Where a thread of 11 (26100) has its KAPCs, and these their members (public PDB).
KAPCS = tuple(
    EmbeddedKapc(name, at, at + 0x58, at, at + 2, at + 8, at + 0x20)
    for name, at in (("SchedulerApc", 0x288), ("UpdateTebApc", 0x720))
)
LAYOUT = Layout(
    pointer_size=8,
    thread=Decoder((), 0),
    prefilter=Decoder((), 0),
    apc=Decoder((), APC_SIZE),
    apc_list_entry=0x10,
    kernel_head=KERNEL_HEAD - THREAD,
    user_head=USER_HEAD - THREAD,
    saved_kernel_head=0x258,
    saved_user_head=0x268,
    thread_list_entry=0x538,
    state_kernel_head=0x0,
    state_user_head=0x10,
    state_process=0x20,
    embedded={kapc.start: kapc.member for kapc in KAPCS},
    embedded_kapcs=KAPCS,
    has_state_pointer=False,
    lacks=frozenset(),
)
PREFILTER = Prefilter(LAYOUT, WINDOWS_11_24H2)


def prefilter_members(members: ThreadMembers) -> PrefilterMembers:
    return PrefilterMembers(*(getattr(members, name) for name in PrefilterMembers._fields))


def thread_bytes(members: ThreadMembers) -> bytes:
    """Lay the embedded KAPCs into an _ETHREAD; a member that could not be read is zero there."""
    data = bytearray(0x800)
    for kapc, prefix in zip(KAPCS, ("suspend_apc", "teb_apc"), strict=True):
        values = {name: getattr(members, f"{prefix}_{name}") or 0 for name in ("type", "size", "thread")}
        data[kapc.type], data[kapc.size] = values["type"], values["size"]
        data[kapc.thread : kapc.thread + 8] = values["thread"].to_bytes(8, "little")
        routines = (getattr(members, f"{prefix}_{name}") or 0 for name in ("kernel", "rundown", "normal"))
        data[kapc.routines : kapc.routines + 24] = b"".join(each.to_bytes(8, "little") for each in routines)
    return bytes(data)


CODES = (None, 0x1, 0x6, 0x20)


@given(
    members=st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in MEMBERS.items()}),
    processor=st.sampled_from([None, None, 0]),
    absence=st.sampled_from([None, None, Absence("list")]),
    listed=st.sampled_from([None, True, True, False]),
    code=st.sampled_from(CODES),
)
def test_calm_threads_have_no_findings(
    members: dict[str, Any], processor: int | None, absence: Absence | None, listed: bool | None, code: int | None
) -> None:
    """A thread with quiet lists that is calm passes every check, whatever its other members say."""
    base = thread()
    subject = Thread(
        base.address,
        base.members._replace(**members),
        base.owner,
        start_backing=Backing.MODULE,
        processor=processor,
        absence=absence,
        owner_listed=listed,
    )
    bugcheck = None if code is None else BugCheck(code, (0, 0, 0, 0), "nt!KiBugCheckData")
    facts = replace(WINDOWS_11_24H2, bugcheck=bugcheck)
    usual = processor is None and absence is None and listed is not False
    # A thread on the list of another process is none that every view holds.
    usual = usual and subject.members.process == OWNER.address
    calm = PREFILTER(subject.address, prefilter_members(subject.members), thread_bytes(subject.members))
    assert not (usual and calm) or check_thread(subject, facts) == ()


#: The codes that a thread with nothing queued may have, by the registry.
WHEN_IDLE = {rule.code for rule in RULES if rule.when_idle}


@pytest.mark.parametrize("waits", [{}, {"wait_mode": 1, "wait_reason": 6}], ids=["ordinary", "in a user wait"])
def test_every_pair_of_members(waits: dict[str, int]) -> None:
    """Whatever two members of a thread with nothing queued say, the prefilter leaves out no finding.

    What is found on such a thread is what the registry says may be found there.
    """
    base = thread()
    singles = [{name: value} for name, values in MEMBERS.items() for value in dict.fromkeys(values)]
    pairs = [one | other for one, other in itertools.combinations(singles, 2) if one.keys() != other.keys()]
    missed: dict[str, dict[str, int | None]] = {}
    codes: set[str] = set()
    for members in (*singles, *(() if waits else pairs)):
        subject = replace(base, members=base.members._replace(**waits | members), start_backing=Backing.MODULE)
        found = {finding.code for finding in check_thread(subject, WINDOWS_11_24H2)}
        codes |= found
        if (
            found
            and subject.members.process == OWNER.address
            and PREFILTER(subject.address, prefilter_members(subject.members), thread_bytes(subject.members))
        ):
            missed.update(dict.fromkeys(found, members))
    assert missed == {}
    assert codes
    assert codes <= WHEN_IDLE


def test_an_ordinary_thread_is_calm() -> None:
    """A waiting thread with nothing queued is calm: otherwise nothing is spared."""
    ordinary = thread().members
    assert PREFILTER(THREAD, prefilter_members(ordinary), thread_bytes(ordinary))
