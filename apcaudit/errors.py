"""The base class of the command's errors, which a user sees as one line."""

from __future__ import annotations


class ApcAuditError(Exception):
    """A failure that the user can act on; the text says what is wrong, and what to do."""
