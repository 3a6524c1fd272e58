"""Does to every user space of the machine of user APCs something else."""

from __future__ import annotations

from apcaudit.synthetic import user_adversaries as adversaries
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.situations import owners

#: How many VADs a process has more than were planted, by vadinfo.
MORE = {owners.BEACON: 60, owners.WRITTEN: 100}


def pids_of(image: Image) -> dict[str, int]:
    """Return the IDs of the processes that have a user space, by name."""
    return {each.name: each.pid for each in image.scene.processes if each.space is not None}


def damage(image: Image, pids: dict[str, int]) -> None:
    """Damage VAD trees, page tables, and the name of a file."""
    adversaries.cyclic_vads(image, pids[owners.EARLY])
    adversaries.crossing_vads(image, pids[owners.INJECTED], pids[owners.PROTECTED])
    adversaries.vads_nowhere(image, pids[owners.PAGED_OUT])
    adversaries.degenerate_vads(image, pids[owners.BEACON], MORE[owners.BEACON])
    adversaries.many_vads(image, pids[owners.WRITTEN], MORE[owners.WRITTEN])
    adversaries.lying_vads(image, pids[owners.LOADED])
    adversaries.untagged_vads(image, pids[owners.UNLOADED])
    adversaries.nameless_file(image, "\\Windows\\System32\\user32.dll")
    adversaries.page_out_table(image, pids[owners.PATCHED], image.resolve("kernel32!SleepEx"))
    adversaries.table_in_circles(image, pids[owners.EARLY_FOR_PRODUCT], image.resolve("ntdll!LdrLoadDll"))
    adversaries.unreadable_space(image, pids[owners.HOOKED])
    adversaries.no_space(image, pids[owners.HOOKED_TOO])
    adversaries.vads_in_user_space(image, pids[owners.MANAGED], image.address_of["memory:stub0"])


def damage_exports(image: Image, pids: dict[str, int]) -> None:
    """Damage the exports of two DLLs that all processes map."""
    adversaries.endless_exports(image, pids[owners.BEACON], "ntdll")
    adversaries.names_in_circles(image, pids[owners.BEACON], "kernel32")
