"""What `pip install 'apcaudit[bulk]'` adds: imported when it is needed, one line when it is missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from apcaudit.errors import ApcAuditError


def load(name: str) -> Any:
    """Import a module of the extra `bulk`.

    Raises:
        ApcAuditError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ApcAuditError(f"this needs {name.partition('.')[0]}: pip install 'apcaudit[bulk]' ({error})") from error


def need(*names: str) -> None:
    """Make sure that packages of the extra are there, without the time that importing them takes.

    Raises:
        ApcAuditError: one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ApcAuditError(f"this needs {name}: pip install 'apcaudit[bulk]'")
