"""Packages of the extras `bulk` and `cluster`: imported when needed, one line of error when missing."""

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
    """Check that packages of the extras are installed, without importing them, which takes time.

    Raises:
        ApcAuditError: one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ApcAuditError(_missing(name))


def _missing(name: str) -> str:
    extra = "cluster" if name == _OF_CLUSTER else "bulk"
    return f"this needs {name.partition('.')[0]}: pip install 'apcaudit[{extra}]'"
