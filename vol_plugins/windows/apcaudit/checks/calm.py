"""Which threads no check can find anything in: one test instead of all of them for nearly every thread."""

from __future__ import annotations

from .. import facts as windows
from ..thread_members import Glance, ThreadMembers

_ENDED = (None, windows.TERMINATED)


def is_calm(members: Glance | ThreadMembers, kernel_head: int, user_head: int) -> bool:
    """Tell whether a thread that every view holds and that starts in a module is one that every check passes.

    False is no finding, only a thread that the checks have to look at; a test holds this against them.

    Args:
        members: what was read of the thread.
        kernel_head: virtual address of ApcState.ApcListHead[KernelMode].
        user_head: virtual address of ApcState.ApcListHead[UserMode].
    """
    return (
        members.apc_kernel_flink == kernel_head == members.apc_kernel_blink
        and members.apc_user_flink == user_head == members.apc_user_blink
        and members.apc_state_index == 0
        and members.kernel_apc_pending == 0
        and members.apc_queueable != 0
        and members.saved_process == 0
        and members.process is not None
        and members.apc_process == members.process
        and members.state not in _ENDED
    )
