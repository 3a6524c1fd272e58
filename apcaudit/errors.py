"""The root of the command's errors: what a user is told in one line."""

from __future__ import annotations


class ApcAuditError(Exception):
    """A failure that the user can do something about; its text says what."""
