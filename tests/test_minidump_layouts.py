"""x86 minidumps of every Windows from XP to 7, by the layouts of its structures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.model import QueueName

from apcaudit.synthetic import isf
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Bugcheck, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import FLTMGR, HAL
from tests import volatility
from tests.minidump_builder import write_minidump
from tests.minidump_of_image import audit_minidump, minidump_scene

LAYOUTS = volatility.ROOT.parent / "shared" / "layouts"

#: XP SP3, Server 2003 SP2, Vista without and with SP2, 7 without and with SP1: PAE kernels of ours, others by layout.
VERSIONS = (
    "xp-sp3-x86",
    "5.2.3790.3959-x86",
    "6.0.6000.16386-x86",
    "6.0.6002.18005-x86",
    "6.1.7600.16385-x86",
    "6.1.7601.17514-x86",
    "7-sp1-x86",
)


@pytest.mark.parametrize("version", VERSIONS)
def test_x86(version: str, tmp_path: Path) -> None:
    """Thread, attachment, lists, drivers and start routine are those of the machine, with and without the KAPC."""
    own = not version[0].isdigit() or version == "7-sp1-x86"
    file = LAYOUTS / f"{version}.json.xz"
    if not own and not file.exists():
        pytest.skip(f"{file.name} is missing")
    kernel = load_kernel(version if own else file)
    folder = None
    if not own:
        folder = tmp_path
        isf.write_derived(kernel, folder)
    running = Thread(
        8,
        start="fltmgr+0x1200",
        state="Running",
        running_on=0,
        attached_to="svchost.exe",
        kernel_apc_pending=True,
        kernel_apcs=(Apc(label="queued"),),
        stack=("nt!KeBugCheck+0x14",),
    )
    processes = (
        Process("System", 4, (running, Thread(12)), parent=0),
        Process("svchost.exe", 1000, (Thread(1004, start=0x1000, system=False),)),
    )
    image = build(
        Scene("x86", "0x6", version, processes, (HAL, FLTMGR), bugcheck=Bugcheck(0x6), crashing_thread=8), kernel
    )
    apc = image.address_of["apc:queued"]
    scene = minidump_scene(image, 8)
    for memory, routine in (({}, None), ({apc: image.read(apc, 0x30)}, "nt!IopCompleteRequest")):
        found = audit_minidump(write_minidump(replace(scene, memory=memory)), kernel, folder)
        assert found.layer.defects == ()
        audited = found.of[8]
        assert audited.thread.address == image.address_of["thread:8"]
        assert audited.thread.members.apc_state_index == 1
        assert str(audited.thread.attached) == "svchost.exe (1000)"
        (queue,) = audited.thread.queues
        assert (queue.name, [each.address for each in queue.apcs]) == (QueueName.KERNEL, [apc])
        found_routine = queue.apcs[0].kernel_routine
        assert (None if found_routine is None else str(found_routine)) == routine
        assert found.codes(8) == {"detach-bugcheck": "critical"}
        assert str(audited.start).casefold() == "fltmgr+0x1200"
        drivers = {each.name: each.base for each in found.audit.kernel.drivers.drivers}
        assert {name: drivers[name] for name in ("hal.dll", "fltMgr.sys")} == {
            name: image.address_of[f"driver:{name}"] for name in ("hal.dll", "fltMgr.sys")
        }
