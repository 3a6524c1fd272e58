"""Which threads no check can find anything in: one test instead of all of them for nearly every thread."""

from __future__ import annotations

from .. import facts as windows
from ..layout import Layout
from ..model import Facts
from ..thread_members import Glance
from .embedded import usual_bytes

_ENDED = (None, windows.TERMINATED)


class Calm:
    """Tells calm threads of one kernel."""

    def __init__(self, layout: Layout, facts: Facts) -> None:
        self._kernel_head = layout.kernel_head
        self._user_head = layout.user_head
        self._embedded_usual = usual_bytes(layout.embedded_kapcs, layout.pointer_size, facts)

    def __call__(self, address: int, members: Glance, data: bytes) -> bool:
        """Tell whether a thread that every view holds and that starts in a module is one that every check passes.

        False is no finding, only a thread that the checks have to look at; a test holds this against them. What
        SavedApcState of a thread at index 0 holds is not asked here.

        Args:
            address: virtual address of the _ETHREAD.
            members: what was read of the thread.
            data: its bytes.
        """
        return (
            members.apc_kernel_flink == address + self._kernel_head == members.apc_kernel_blink
            and members.apc_user_flink == address + self._user_head == members.apc_user_blink
            and members.apc_state_index == 0
            and members.kernel_apc_pending == 0
            and members.apc_queueable != 0
            and members.saved_process == 0
            and members.process is not None
            and members.apc_process == members.process
            and members.state not in _ENDED
            and not members.suspend_count
            and (members.wait_mode == 0 or not (members.kernel_apc_disable or members.special_apc_disable))
            and self._embedded_usual(address, data)
        )
