"""Parsing and checking arguments of the commands over many images; each error is one line."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

from apcaudit.bulk import store
from apcaudit.errors import ApcAuditError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_LEAST = 512 << 20
"""The least limit of memory in bytes: Python, vol and its libraries alone take 350 MiB of address space."""


def whole(text: str) -> int:
    """Parse a whole number from 1 on."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return number


def seconds(text: str) -> float:
    """Parse a time in seconds, above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return number


def size(text: str) -> int:
    """Parse a limit of memory such as 4G or 512M; return bytes."""
    found = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give it as 4G or 512M")
    number = int(found[1]) * _UNITS[found[2].upper()]
    if number < _LEAST:
        raise argparse.ArgumentTypeError(f"{text!r} is too little to read any image: give {_LEAST >> 20}M or more")
    return number


def check_folders(option: str, folders: Iterable[str | Path]) -> None:
    """Check that the paths of an option are folders.

    Raises:
        ApcAuditError: one is not.
    """
    for each in folders:
        if not Path(each).is_dir():
            wrong = "is no folder" if Path(each).exists() else "no such folder"
            raise ApcAuditError(f"{each}: {wrong} ({option})")


def check_no_results(paths: Iterable[str]) -> None:
    """Check that no path of images is a folder of results.

    Raises:
        ApcAuditError: a path is a folder of results.
    """
    for each in paths:
        if _holds_results(Path(each)):
            raise ApcAuditError(
                f"{each} holds results of `apcaudit scan`, and this takes images: see what is in them with"
                f" `apcaudit report {each} -o report.html`"
            )


def check_results(path: Path) -> None:
    """Check that a path is a folder of results.

    Raises:
        ApcAuditError: it is no folder, or holds no results.
    """
    if path.is_dir():
        if _holds_results(path):
            return
        wrong = "holds no results"
    else:
        wrong = "is no folder of results" if path.exists() else "no such folder of results"
    raise ApcAuditError(f"{path}: {wrong}: give the one that `apcaudit scan IMAGES -o RESULTS` has made")


def _holds_results(path: Path) -> bool:
    """Tell whether a folder holds results: a folder named like an image's, or one with a table in it."""
    # Not Path.is_dir, which raises where a link's target may not be looked up; the image's own row reports that.
    folders = (each for each in path.glob("[!.]*") if os.path.isdir(each))
    return any(store.IMAGE.fullmatch(each.name) or next(each.glob("*.parquet"), None) for each in folders)
