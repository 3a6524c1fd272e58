"""Names in a driver by its PDB, where vol has a symbol file of that PDB; nothing is ever downloaded."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from volatility3.framework import constants
from volatility3.framework.automagic import symbol_cache
from volatility3.framework.layers import resources

from .. import symbol_file
from ..regular import check_url
from ..symbols import preferred_name
from .names import nearest
from .pe_names import PdbRecord

vollog = logging.getLogger(__name__)

_LOCAL = ("file:", "jar:file:")
"""What a symbol file's location begins with where no network is needed to read it."""


@dataclass(frozen=True, slots=True)
class PdbSymbols:
    """The symbols of a driver, sorted by relative virtual address."""

    addresses: tuple[int, ...]
    names: tuple[str, ...]

    def nearest(self, rva: int) -> tuple[str, int] | None:
        """Return the name at or below a relative virtual address, and the distance in bytes."""
        return nearest(self.addresses, self.names, rva)


def find_symbols(record: PdbRecord) -> PdbSymbols | None:
    """Load the symbols of a PDB, None where vol has no file of them or it cannot be read."""
    location = _location(record)
    if location is None or not location.startswith(_LOCAL):
        return None
    try:
        check_url(location)
        with resources.ResourceAccessor().open(location) as file:
            symbols: dict[str, Any] = symbol_file.load(file)["symbols"]
        by_address: dict[int, list[str]] = {}
        for name, symbol in symbols.items():
            by_address.setdefault(int(symbol["address"]), []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        vollog.info(f"symbol file {location} cannot be used: {error}")
        return None
    addresses = tuple(sorted(by_address))
    return PdbSymbols(addresses, tuple(preferred_name(by_address[address]) for address in addresses))


def _location(record: PdbRecord) -> str | None:
    """Ask vol's own index of symbol files."""
    import sqlite3

    path = os.path.join(constants.CACHE_PATH, constants.IDENTIFIERS_FILENAME)
    if not os.path.isfile(path):
        return None
    identifier = symbol_cache.WindowsIdentifier.generate(record.name, record.guid, record.age)
    try:
        cache: Any = symbol_cache.SqliteCache  # vol's types take it for abstract
        found: str | None = cache(path).find_location(identifier, "windows")
    except sqlite3.Error as error:
        vollog.info(f"vol's index of symbol files cannot be read: {error}")
        return None
    return found
