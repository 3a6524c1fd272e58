"""The garbage collector while an audit runs: it need not look through what vol holds again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Let the collector look only at what is made from now on.

    A symbol table is hundreds of thousands of objects, none of them garbage: one look through them takes as long as
    reading some thousand threads, and the rows of an audit bring one about. Where somebody else has frozen objects
    already, nothing is changed, since they could not be frozen again by themselves.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
