"""Which threads no check can find anything in: one test instead of all of them for nearly every thread."""

from __future__ import annotations

from .. import facts as windows
from ..model import Thread

_ENDED = (None, windows.TERMINATED)


def is_calm(thread: Thread) -> bool:
    """Tell whether a thread with quiet APC lists and a start in a module is one that every check passes.

    False is no finding, only a thread that the checks have to look at; a test holds this against them.
    """
    members = thread.members
    return (
        members.apc_state_index == 0
        and members.kernel_apc_pending == 0
        and members.apc_queueable != 0
        and members.saved_process == 0
        and members.process is not None
        and members.apc_process == members.process
        and members.state not in _ENDED
        and thread.processor is None
        and thread.absence is None
        and thread.owner_listed is not False
    )
