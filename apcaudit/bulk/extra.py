"""What the extras `bulk` and `cluster` add: imported when it is needed, one line when it is missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from apcaudit.errors import ApcAuditError

_OF_CLUSTER = "distributed"


def load(name: str) -> Any:
    """Import a module of an extra.

    Raises:
        ApcAuditError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ApcAuditError(f"{_missing(name)} ({error})") from error


def need(*names: str) -> None:
    """Make sure that packages of the extras are there, without the time that importing them takes.

    Raises:
        ApcAuditError: one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ApcAuditError(_missing(name))


def _missing(name: str) -> str:
    extra = "cluster" if name == _OF_CLUSTER else "bulk"
    return f"this needs {name.partition('.')[0]}: pip install 'apcaudit[{extra}]'"
