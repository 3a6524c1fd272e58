"""Packages of the extras `bulk` and `cluster`: imported when needed, one line of error when missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from apcaudit.errors import ApcAuditError


def load(name: str) -> Any:
    """Import a module of an extra.

    Raises:
        ApcAuditError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ApcAuditError(f"{_missing([name])} ({error})") from error


def need(*names: str) -> None:
    """Check that packages of the extras are installed, without importing them, which takes time.

    Raises:
        ApcAuditError: some are not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ApcAuditError(_missing(missing))


def _missing(names: list[str]) -> str:
    # Not this project's own name: it is on no package index, where anybody could register it.
    packages = [name.partition(".")[0] for name in names]
    return f"this needs {' and '.join(packages)}: pip install {' '.join(packages)}"
