"""The kernel's symbol table as the audit asks it: members, sizes, addresses and names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from volatility3.framework import interfaces
from volatility3.framework.layers import resources

from . import facts as windows
from . import symbol_file
from .borrowing.merge import PRODUCER as BORROWED
from .drivers.names import familiar, nearest
from .isf_types import MALFORMED, IsfTypes
from .layout import Member
from .regular import check_url


class KernelSymbols:
    """Structures and symbols of the kernel module of a context."""

    def __init__(self, context: interfaces.context.ContextInterface, module_name: str) -> None:
        module = context.modules[module_name]
        self.table_name: str = module.symbol_table_name
        table: Any = context.symbol_space[self.table_name]
        layer: Any = context.layers[module.layer_name]
        self.base: int = canonical(int(module.offset), layer.bits_per_register)
        # The name of the symbol file and of the folder that holds it: `ntkrnlmp.pdb/<GUID>-<age>.json.xz`.
        url: str = table.config.get("isf_url", "") or ""
        self.file = "/".join(url.split("/")[-2:])
        # A file whose missing types were taken from another (borrowing/) says so as its producer.
        producer: str = table.producer.name or ""
        self.borrowed_from = producer.removeprefix(BORROWED) if producer.startswith(BORROWED) else None
        self._document = _document(table)
        # What vol's own table does to the addresses that it gives; 0 is nothing.
        self._symbol_mask: int = table.config.get("symbol_mask", 0) or -1
        self._types = IsfTypes(self._document)
        self._members: dict[tuple[str, str], Member | None] = {}
        self._sorted: tuple[list[int], list[list[str]]] | None = None

    def size_of(self, structure: str) -> int | None:
        """Return the size of a structure in bytes, None when the table does not have it."""
        return self._types.size_of(structure)

    def member(self, structure: str, path: str) -> Member | None:
        """Find a member by dotted path; anonymous structures and unions are looked through.

        Args:
            structure: name of the C structure, `_ETHREAD` say.
            path: `Tcb.ApcState.ApcListHead[0].Flink` say; an index steps into an array.
        """
        key = (structure, path)
        if key not in self._members:
            self._members[key] = self._types.member(structure, path)
        return self._members[key]

    def has_type(self, structure: str) -> bool:
        """Tell whether the table has a structure."""
        return self._types.size_of(structure) is not None

    def members_of_type(self, structure: str, wanted: str) -> dict[str, int]:
        """Return name and offset in bytes of the direct members whose type is the wanted structure."""
        return self._types.members_of_type(structure, wanted)

    def constants(self, enumeration: str) -> Mapping[str, int]:
        """Return the constants of an enumeration by name, none where the table does not have it."""
        found = self._document.get("enums", {}).get(enumeration)
        constants = found.get("constants") if isinstance(found, Mapping) else None
        if not isinstance(constants, Mapping):
            return {}
        return {str(name): value for name, value in constants.items() if isinstance(value, int)}

    def address(self, symbol: str) -> int | None:
        """Return the virtual address of a symbol, None when the table does not have it."""
        found = self._document["symbols"].get(symbol)
        offset = None if found is None else self._offset(found)
        return None if offset is None else self.base + offset

    def nearest(self, address: int) -> tuple[str, int] | None:
        """Return the name of the symbol at or below a virtual address, and the distance in bytes.

        Where folded code gives several names, the one that an APC routine can mean wins.
        """
        found = self._nearest(address)
        return None if found is None else (preferred_name(found[0]), found[1])

    def names_at(self, address: int) -> tuple[str, ...]:
        """Return every symbol whose address is exactly this virtual address."""
        found = self._nearest(address)
        return tuple(found[0]) if found is not None and not found[1] else ()

    def _nearest(self, address: int) -> tuple[list[str], int] | None:
        if self._sorted is None:
            self._sorted = self._sort()
        return nearest(*self._sorted, address - self.base)

    def _sort(self) -> tuple[list[int], list[list[str]]]:
        by_address: dict[int, list[str]] = {}
        for name, symbol in self._document["symbols"].items():
            offset = self._offset(symbol)
            if offset is not None:
                by_address.setdefault(offset, []).append(name)
        addresses = sorted(by_address)
        return addresses, [by_address[address] for address in addresses]

    def _offset(self, symbol: Mapping[str, Any]) -> int | None:
        try:
            return int(symbol["address"]) & self._symbol_mask
        except MALFORMED:
            return None


def _document(table: Any) -> Mapping[str, Any]:
    """Return what vol has read from a table's symbol file: a template for each type asked for would cost far more."""
    held = getattr(getattr(table, "_delegate", None), "_json_object", None)
    if isinstance(held, Mapping):
        return held
    check_url(table.config["isf_url"])
    with resources.ResourceAccessor().open(table.config["isf_url"]) as file:
        document: Mapping[str, Any] = symbol_file.load(file)
    return document


def canonical(address: int, bits: int) -> int:
    """Sign-extend vol's 48-bit form of a 64-bit address; 32-bit addresses are themselves."""
    if bits == 64 and address & (1 << 47):
        return address | 0xFFFF000000000000
    return address


def preferred_name(names: list[str]) -> str:
    """Choose among the names of folded code the one that an APC routine can mean, else the one that a reader knows."""
    meant = [name for name in names if any(part in name for part in windows.APC_NAME_PARTS)]
    return min(meant) if meant else familiar(names)
