"""Damaged user spaces make what user APCs would run unknown: no finding is made up, and what is lost is said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import process_time

import pytest
from volatility3.plugins.windows.apcaudit.audit import Audit, Selection

from apcaudit.synthetic import libraries, situations
from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Process, Thread
from apcaudit.synthetic.situations import owners
from apcaudit.synthetic.situations.situation import Situation
from apcaudit.synthetic.user import Region, UserImage, UserSpace
from apcaudit.synthetic.user_adversaries import FORWARDED_IN_CIRCLES
from tests import volatility
from tests.situation_audit import ORDER, codes_of
from tests.user_damage import damage, damage_exports, pids_of
from tests.views_image import audited

KERNELS = ("xp-sp3-x86", "7-sp1-x64", "10-19041-x64")

#: Seconds that a damaged machine of twenty programs may take; it takes a quarter of one.
PATIENCE = 20

#: What of each process is not known, by what was done to it.
SAID = {
    owners.EARLY: "its VADs were not read whole",
    owners.INJECTED: "its VADs were not read whole",
    owners.PAGED_OUT: "its VADs were not read whole",
    owners.PATCHED: "its page tables cannot be read",
    owners.EARLY_FOR_PRODUCT: "the header or names in the exports of an image that it maps cannot be read",
    owners.HOOKED: "its page tables cannot be read",
    owners.MANAGED: "the VAD tree leads to user space",
}
#: The same where exports lie, which all processes share.
SAID_OF_EXPORTS = dict.fromkeys(
    (owners.BEACON, owners.WRITTEN, owners.LOADED, owners.EARLY_FOR_PRODUCT), "the exports of an image that it maps"
)

#: What reads user space.
ROOM = "volatility3.plugins.windows.apcaudit.user"

APC = Apc("nt!IopDeallocateApc", pool_tag=b"PsAp")

Damage = Callable[[Image, dict[str, int]], None]


@pytest.mark.parametrize(("how", "said"), [(damage, SAID), (damage_exports, SAID_OF_EXPORTS)], ids=["trees", "exports"])
@pytest.mark.parametrize("name", KERNELS)
def test_nothing_is_made_up(name: str, how: Damage, said: dict[str, str], tmp_path: Path) -> None:
    """Every finding is one that the undamaged machine has, no more severe; one that is lost is of a process named."""
    kernel = load_kernel(name)
    image = build(situations.of(kernel, situations.USER_SITUATIONS), kernel)
    how(image, pids_of(image))
    found, notes = _audit(image, tmp_path)
    planted = situations.tids(kernel, situations.USER_SITUATIONS)
    assert {each.name: _made_up(each, found[tid]) for tid, each in planted.items() if _made_up(each, found[tid])} == {}
    lost = {each.owner for tid, each in planted.items() if found[tid] != each.expected}
    assert {owner for owner in lost if not any(owner in note for note in notes)} == set()
    for owner, why in said.items():
        assert [note for note in notes if f" {owner} " in note and why in note], owner


def test_exports_that_forward_to_each_other(tmp_path: Path) -> None:
    """A function of such a DLL is judged as any other: no name is followed anywhere."""
    kernel = load_kernel("10-19041-x64")
    thread = Thread(0x1004, start="ntdll+0x1100", user_apcs=(replace(APC, normal_routine="circle1+0x1200"),))
    space = UserSpace((*libraries.system(kernel), *FORWARDED_IN_CIRCLES))
    audits = audited(kernel.name, tmp_path, (), others=(Process("circles.exe", 0x1000, (thread,), space=space),))
    target = audits.target(0x1004)
    assert target is not None
    assert (target.place.text, target.place.why) == ("circle1+0x1200", None)
    assert audits.codes(0x1004) == {}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kapc_that_a_third_state_holds_too(name: str, tmp_path: Path) -> None:
    """A _KAPC_STATE on the thread's own stack whose list holds a KAPC of SavedApcState hides nothing of it."""
    kernel = load_kernel(name)
    other = Process("other.exe", 200, (Thread(204, start=0x401000),))
    queued = Apc("nt!IopDeallocateApc", "memory:code", mode="user", environment=0, label="queued")
    victim = Thread(0x904, start="ntdll+0x1100", attached_to="other.exe", saved_user_apcs=(queued,))
    space = UserSpace((UserImage("victim.exe"), *libraries.system(kernel)), (Region("code"),))
    process = Process("victim.exe", 0x900, (victim,), space=space)
    alone = audited(name, tmp_path, (), others=(process, other))
    base = alone.of[0x904].thread.members.stack_base
    assert base

    def plant(image: Image) -> None:
        memory, state = image.memory, base - 0x280
        entry = image.address_of["apc:queued"] + memory.offset("_KAPC", "ApcListEntry")
        for index in range(2):
            memory.link(state + memory.offset("_KAPC_STATE", f"ApcListHead[{index}]"), [entry] if index else [])
        memory.write(state, "_KAPC_STATE", "Process", image.address_of["process:other.exe"])

    threads = (replace(victim, stack_base=base),)
    both = audited(name, tmp_path, (), others=(replace(process, threads=threads), other), changes=(plant,))
    address = both.image.address_of["apc:queued"]
    held = [apc.nested for queue in both.of[0x904].thread.queues for apc in queue.apcs if apc.address == address]
    assert sorted(held) == [False, True]
    targets = [found.target(0x904) for found in (alone, both)]
    assert [target and target.place.text for target in targets] == ["private rwx"] * 2
    assert "user-apc-private-code" in both.codes(0x904)


@pytest.mark.parametrize("queued", [False, True], ids=["no user APC", "a user APC"])
def test_user_space_costs_nothing_without_user_apcs(
    queued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that reads user space is even imported where no user APC is queued, whatever else is."""
    for name in [each for each in sys.modules if each.startswith(ROOM)]:
        monkeypatch.delitem(sys.modules, name)
    kernel = load_kernel("10-19041-x64")
    user = (replace(APC, normal_routine="ntdll!NtDelayExecution"),) if queued else ()
    kernel_apc = Apc("nt!EmpCheckErrataList", normal_routine="nt!EmpCheckErrataList", mode="kernel")
    thread = Thread(0x1004, start="ntdll+0x1100", kernel_apcs=(kernel_apc,), user_apcs=user)
    space = UserSpace(libraries.system(kernel))
    audited(kernel.name, tmp_path, (), others=(Process("idle.exe", 0x1000, (thread,), space=space),))
    assert any(each.startswith(ROOM) for each in sys.modules) is queued


def _made_up(situation: Situation, codes: dict[str, str]) -> dict[str, str]:
    none = ORDER.index("info")
    return {
        code: severity
        for code, severity in codes.items()
        if ORDER.index(severity) > ORDER.index(situation.expected.get(code, ORDER[none]))
    }


def _audit(image: Image, folder: Path) -> tuple[dict[int | None, dict[str, str]], list[str]]:
    """Audit all threads, in the time that is allowed; return their codes by TID, and the notes."""
    path = folder / "image.dmp"
    image.write_dump(path)
    plugin = volatility.construct(path, "windows.apcaudit.ApcAudit", cache=volatility.CACHE, kernel=image.kernel)
    audit = Audit(plugin.context, plugin.config["kernel"])
    start = process_time()
    codes = {each.thread.members.tid: codes_of(each) for each in audit.run(Selection(clean_too=True))}
    assert process_time() - start < PATIENCE
    return codes, [note for note in audit.notes if "what user APCs" in note]
