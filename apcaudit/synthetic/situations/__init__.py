"""Situations: one thread each, with what an audit must report of it, gathered in one scene a kernel."""

from __future__ import annotations

from dataclasses import replace

from apcaudit.synthetic.kernels import Kernel, load_kernel
from apcaudit.synthetic.scene import Driver, Process, Scene, Thread, UnloadedDriver
from apcaudit.synthetic.situations import owners
from apcaudit.synthetic.situations.legitimate import LEGITIMATE
from apcaudit.synthetic.situations.legitimate_user_apcs import LOW_USER_APCS, ORDINARY_USER_APCS
from apcaudit.synthetic.situations.of_apcs import OF_APCS
from apcaudit.synthetic.situations.of_threads import OF_THREADS
from apcaudit.synthetic.situations.of_user_apcs import OF_USER_APCS
from apcaudit.synthetic.situations.situation import BYSTANDER, RUNNING, TIED, Situation

__all__ = ("SITUATIONS", "TIED", "USER_SITUATIONS", "of", "scene", "tids")

#: Those of user APCs, whose findings tell what would run.
USER_SITUATIONS: tuple[Situation, ...] = OF_USER_APCS + LOW_USER_APCS + ORDINARY_USER_APCS
SITUATIONS: tuple[Situation, ...] = LEGITIMATE + OF_THREADS + OF_APCS + USER_SITUATIONS

#: UNWIND_INFO of a function that begins with sub rsp, 28h (Microsoft, "x64 exception handling").
UNWIND = bytes.fromhex("0104010004420000")

FIRST_TID = 0x1000

#: Where the driver was that MmUnloadedDrivers remembers; free of everything else in every synthetic kernel.
FORMER_RANGE = {4: (0xBAE00000, 0xBAE08000), 8: (0xFFFFF80033000000, 0xFFFFF80033008000)}


def tids(kernel: Kernel, chosen: tuple[Situation, ...] = SITUATIONS) -> dict[int, Situation]:
    """Give the situations that a kernel can have, by the TID of their thread."""
    possible = [each for each in chosen if each.fits(kernel)]
    return {FIRST_TID + 4 * number: each for number, each in enumerate(possible)}


def scene(kernel: str = "10-19041-x64") -> Scene:
    """Declare the scene for a kernel by name or symbol file."""
    return replace(of(load_kernel(kernel)), kernel=kernel)


def of(kernel: Kernel, situations: tuple[Situation, ...] = SITUATIONS) -> Scene:
    """Declare the machine that has every situation the kernel can have."""
    return machine(kernel, tids(kernel, situations))


def machine(kernel: Kernel, chosen: dict[int, Situation]) -> Scene:
    """Declare the machine that has situations, by the TIDs of their threads."""
    former = FORMER_RANGE[kernel.layout.pointer_size]

    def threads(owner: str) -> tuple[Thread, ...]:
        return tuple(each.thread(tid, former[0]) for tid, each in chosen.items() if each.owner == owner)

    return Scene(
        name="situations",
        description="one thread for every situation of the vocabulary, legitimate and not",
        kernel=kernel.name,
        processes=(
            Process("System", 4, (Thread(tid=BYSTANDER), Thread(tid=TIED, **RUNNING), *threads("System"))),
            *(owners.process(name, kernel, threads(name)) for name in owners.wanted(chosen.values())),
        ),
        drivers=(
            Driver("Bfilter.sys", exports={"ScUnInitExcludePath": 0x1000}),
            Driver("fltMgr.sys", exports={"FltSendMessage": 0x1400}),
            Driver(
                "avhook.sys",
                exports={"AvApcKernelRoutine": 0x1100, "AvApcNormalRoutine": 0x1200},
                # Two functions that keep home space (sub rsp, 28h), as their unwind data say.
                unwind={(0x1100, 0x1180): UNWIND, (0x1200, 0x1280): UNWIND},
            ),
            Driver("Ghost.sys", exports={}, listed=False, driver_object=False),
            Driver("wide.sys"),
        ),
        unloaded=(UnloadedDriver("former.sys", *former),),
        events=tuple(each.event(tid) for tid, each in chosen.items() if each.after is not None),
    )
