"""Situations that are findings about an APC or about the list that holds it."""

from __future__ import annotations

from dataclasses import replace

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Apc
from apcaudit.synthetic.situations.moved import move, move_to_stack
from apcaudit.synthetic.situations.situation import (
    BYSTANDER,
    FORMER,
    NORMAL,
    PROGRAM,
    RUNNING,
    SERVICE,
    SPECIAL,
    TIED,
    USER,
    Situation,
)


def _queued(*apcs: Apc) -> dict[str, object]:
    return {**RUNNING, "kernel_apcs": apcs}


def _entry(image: Image, tid: int, position: int = 0) -> int:
    apc = image.address_of[f"apc:{tid}:kernel_apcs:{position}"]
    return apc + image.memory.offset("_KAPC", "ApcListEntry")


def _head(image: Image, tid: int) -> int:
    return image.address_of[tid] + image.memory.offset("_ETHREAD", "Tcb.ApcState.ApcListHead[0]")


def _set_flink(image: Image, entry: int, value: int) -> None:
    image.memory.write_pointer(entry, value)


def _set_blink(image: Image, entry: int, value: int) -> None:
    image.memory.write_pointer(entry + image.memory.pointer_size, value)


def _close_without_head(image: Image, tid: int) -> None:
    """Replay two insertions that raced: the second entry links back to the first and not to the head."""
    _set_flink(image, _entry(image, tid, 1), _entry(image, tid, 0))


def _lose_back_link(image: Image, tid: int) -> None:
    """Replay an entry overwritten by a write of one pointer past the end of what precedes its Blink."""
    _set_blink(image, _entry(image, tid), _entry(image, tid) ^ 0x40)


def _point_nowhere(image: Image, tid: int) -> None:
    """Replay the freeing of the second entry's page."""
    _set_flink(image, _entry(image, tid), image.kernel.base - 0x400000)


def _misalign(image: Image, tid: int) -> None:
    """Replay a stray increment of a link."""
    _set_flink(image, _entry(image, tid), _entry(image, tid) + 1)


def _hang_on_second_list(image: Image, tid: int) -> None:
    """Replay KeInsertQueueApc of a KAPC that is already queued: it is linked into the user list as well."""
    entry = _entry(image, tid)
    user = _head(image, tid) + 2 * image.memory.pointer_size
    image.memory.link(user, [entry])


def _tie_to_other_list(image: Image, tid: int) -> None:
    """Replay a driver that hangs a queued KAPC on another thread's list: that list leads into this one."""
    _set_flink(image, _head(image, TIED), _entry(image, tid))


#: Where the HAL's heap lies (x64: to Windows 10 1607), and KUSER_SHARED_DATA as the kernel sees it (WDK).
_HAL_HEAP = {4: 0xFFD01000, 8: 0xFFFFFFFFFFD01000}
_SHARED_DATA = {4: 0xFFDF0000, 8: 0xFFFFF78000000000}

OF_APCS: tuple[Situation, ...] = (
    Situation(
        "kernel-routine-unbacked",
        "KernelRoutine in memory of no module",
        _queued(replace(SPECIAL, kernel_routine="Ghost+0x1200")),
        {"routine-unbacked": "high"},
    ),
    Situation(
        "rundown-routine-unbacked",
        "RundownRoutine in memory of no module",
        _queued(replace(SPECIAL, rundown_routine="Ghost+0x1200")),
        {"routine-unbacked": "high"},
    ),
    Situation(
        "normal-routine-unbacked",
        "NormalRoutine of a kernel-mode APC in memory of no module",
        _queued(replace(NORMAL, normal_routine="Ghost+0x1200")),
        {"routine-unbacked": "high"},
    ),
    Situation(
        "routine-unloaded",
        "KernelRoutine in the former range of an unloaded driver",
        _queued(replace(SPECIAL, kernel_routine=FORMER)),
        {"routine-unbacked": "high", "routine-unloaded": "critical"},
    ),
    Situation(
        "kernel-routine-in-user-space",
        "KernelRoutine is a user address",
        _queued(replace(SPECIAL, kernel_routine=0x7FF10000)),
        {"routine-user-address": "critical"},
    ),
    Situation(
        "kernel-routine-null",
        "KernelRoutine is null",
        _queued(replace(SPECIAL, kernel_routine=0)),
        {"routine-user-address": "critical"},
    ),
    Situation(
        "normal-routine-in-user-space",
        "NormalRoutine of a kernel-mode APC is a user address",
        _queued(replace(NORMAL, normal_routine=0x7FF10000)),
        {"routine-user-address": "critical"},
    ),
    Situation(
        "user-apc-to-kernel",
        "a user APC would run a kernel address in user mode",
        {"user_apcs": (replace(USER, normal_routine="avhook!AvApcNormalRoutine"),)},
        {"kernel-normal-in-user-apc": "high"},
    ),
    Situation(
        "user-mode-on-kernel-list",
        "a user-mode APC on the kernel list",
        _queued(replace(SPECIAL, mode="user")),
        {"mode-mismatch": "high"},
    ),
    Situation(
        "other-thread",
        "KAPC.Thread is another thread",
        _queued(replace(SPECIAL, thread=BYSTANDER)),
        {"thread-mismatch": "high"},
    ),
    Situation("wrong-type", "no KAPC's Type", _queued(replace(SPECIAL, type=0x13)), {"bad-object": "high"}),
    Situation("wrong-size", "no KAPC's Size", _queued(replace(SPECIAL, size=0x20)), {"bad-object": "high"}),
    Situation(
        "not-inserted",
        "linked, but Inserted is 0",
        _queued(replace(SPECIAL, inserted=False)),
        {"not-inserted": "medium"},
    ),
    Situation(
        "other-environment",
        "queued for the attached environment on the list of a thread that is not attached",
        _queued(replace(SPECIAL, environment=1)),
        {"environment-mismatch": "medium"},
    ),
    Situation(
        "special-behind-normal",
        "a special kernel APC behind a normal one",
        _queued(NORMAL, SPECIAL),
        {"order-violation": "medium"},
    ),
    Situation(
        "on-two-lists",
        "the same KAPC on the kernel and on the user list",
        _queued(SPECIAL),
        {"duplicate-apc": "high", "mode-mismatch": "high", "list-broken": "high"},
        after=_hang_on_second_list,
    ),
    Situation(
        "cycle",
        "the list closes without its head",
        _queued(SPECIAL, SPECIAL),
        {"list-cycle": "high"},
        after=_close_without_head,
    ),
    Situation(
        "blink-elsewhere",
        "a Blink does not come back",
        _queued(SPECIAL, SPECIAL),
        {"list-broken": "high"},
        after=_lose_back_link,
    ),
    Situation(
        "flink-unmapped",
        "a Flink leads to unmapped memory",
        _queued(SPECIAL, SPECIAL),
        {"list-broken": "high"},
        after=_point_nowhere,
    ),
    Situation(
        "flink-misaligned", "a Flink is misaligned", _queued(SPECIAL, SPECIAL), {"list-broken": "high"}, after=_misalign
    ),
    Situation(
        "apc-on-stack",
        "the KAPC lies on the thread's own kernel stack",
        _queued(replace(SPECIAL, label="on-stack")),
        {"apc-outside-pool": "high"},
        after=lambda image, tid: move_to_stack(image, tid, "on-stack"),
    ),
    Situation(
        "apc-in-hal-heap",
        "the KAPC lies in the HAL's heap, as that of the public exploits' first stage does",
        _queued(replace(SPECIAL, label="in-hal-heap")),
        {"apc-outside-pool": "high"},
        after=lambda image, tid: move(image, tid, "in-hal-heap", _HAL_HEAP[image.memory.pointer_size]),
    ),
    Situation(
        "apc-in-shared-data",
        "the KAPC lies in the page that the kernel shares with all programs",
        _queued(replace(SPECIAL, label="in-shared-data")),
        {"apc-outside-pool": "high"},
        after=lambda image, tid: move(image, tid, "in-shared-data", _SHARED_DATA[image.memory.pointer_size] + 0xC00),
    ),
    Situation(
        "routine-in-shared-data",
        "KernelRoutine lies in the page that the kernel shares with all programs",
        _queued(replace(SPECIAL, label="routine-in-shared-data")),
        {"routine-unbacked": "high"},
        after=lambda image, _: image.memory.write(
            image.address_of["apc:routine-in-shared-data"],
            "_KAPC",
            "KernelRoutine",
            _SHARED_DATA[image.memory.pointer_size] + 0x800,
        ),
    ),
    Situation(
        "routine-in-headers",
        "KernelRoutine in the headers of a loaded driver",
        _queued(replace(SPECIAL, kernel_routine="avhook+0x400")),
        {"routine-not-code": "high"},
    ),
    Situation(
        "routine-in-data",
        "NormalRoutine of a kernel APC in a driver's data",
        _queued(replace(NORMAL, normal_routine="avhook+0x6000")),
        {"routine-not-code": "high"},
    ),
    Situation(
        "routine-in-init",
        "RundownRoutine in a driver's INIT, which was discarded when it had started",
        _queued(replace(SPECIAL, rundown_routine="avhook+0x7100")),
        {"routine-not-code": "high"},
    ),
    Situation(
        "routine-within-function",
        "KernelRoutine in the middle of a driver's function",
        _queued(replace(SPECIAL, kernel_routine="avhook!AvApcKernelRoutine+0x20")),
        {"routine-not-code": "medium"},
        x64=True,
    ),
    Situation(
        "wow64-encoded-in-native-process",
        "a user APC of a 64-bit program has a NormalRoutine encoded as those of 32-bit programs are",
        {**PROGRAM, "user_apcs": (replace(USER, normal_routine=-(0x77A51234 << 2) & 0xFFFFFFFFFFFFFFFF),)},
        {"kernel-normal-in-user-apc": "high", "user-apc-wow64": "high"},
        owner=SERVICE,
        x64=True,
    ),
    Situation(
        "on-another-threads-list",
        "the same KAPC on the list of another thread too, which is walked first",
        {**RUNNING, "kernel_apcs": (SPECIAL,)},
        {"duplicate-apc": "high"},
        after=_tie_to_other_list,
    ),
)
