"""Looks up the kernel's symbols: sizes and members of structures, addresses and names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from volatility3.framework import interfaces
from volatility3.framework.layers import resources

from .. import windows
from ..formats import symbol_file
from ..formats.files import check_url
from ..formats.layout import Member
from ..formats.symbol_file import MALFORMED, IsfTypes
from ..formats.symbol_file import PRODUCER as BORROWED
from ..formats.text import choose_name, nearest


class KernelSymbols:
    """The structures and symbols of a kernel module in vol's context.

    `file` is the symbol file's name with its folder; `borrowed_from` names the file that its missing types come from.
    """

    def __init__(self, context: interfaces.context.ContextInterface, module_name: str) -> None:
        module = context.modules[module_name]
        self.table_name: str = module.symbol_table_name
        table: Any = context.symbol_space[self.table_name]
        layer: Any = context.layers[module.layer_name]
        self.base: int = canonical(int(module.offset), layer.bits_per_register)
        # For example `ntkrnlmp.pdb/<GUID>-<age>.json.xz`.
        url: str = table.config.get("isf_url", "") or ""
        self.file = "/".join(url.split("/")[-2:])
        # vol/borrowing.py records in the producer's name from which file it took missing types. To volatility3 2.5.2
        # the table of a kernel does not tell who made it.
        producer: str = getattr(getattr(table, "producer", None), "name", None) or ""
        self.borrowed_from = producer.removeprefix(BORROWED) if producer.startswith(BORROWED) else None
        self._document = _document(table)
        # vol's symbol table applies this mask to addresses; 0 means no mask.
        self._symbol_mask: int = table.config.get("symbol_mask", 0) or -1
        self._types = IsfTypes(self._document)
        self._members: dict[tuple[str, str], Member | None] = {}
        self._sorted: tuple[list[int], list[list[str]]] | None = None

    def size_of(self, structure: str) -> int | None:
        """Return the size of a structure in bytes, None when the table does not have it."""
        return self._types.size_of(structure)

    def member(self, structure: str, path: str) -> Member | None:
        """Find a member by dotted path; members of anonymous structures and unions are found too.

        Args:
            structure: name of the structure, for example `_ETHREAD`.
            path: for example `Tcb.ApcState.ApcListHead[0].Flink`; an index selects an array's element.
        """
        key = (structure, path)
        if key not in self._members:
            self._members[key] = self._types.member(structure, path)
        return self._members[key]

    def has_type(self, structure: str) -> bool:
        """Return whether the table has a structure."""
        return self._types.size_of(structure) is not None

    def members_of_type(self, structure: str, wanted: str) -> dict[str, int]:
        """Return name and offset in bytes of the direct members whose type is the wanted structure."""
        return self._types.members_of_type(structure, wanted)

    def constants(self, enumeration: str) -> Mapping[str, int]:
        """Return the constants of an enumeration by name; empty where the table lacks it."""
        found = self._document.get("enums", {}).get(enumeration)
        constants = found.get("constants") if isinstance(found, Mapping) else None
        if not isinstance(constants, Mapping):
            return {}
        return {str(name): value for name, value in constants.items() if isinstance(value, int)}

    def address(self, symbol: str) -> int | None:
        """Return the virtual address of a symbol; None where the table lacks it."""
        found = self._document["symbols"].get(symbol)
        offset = None if found is None else self._offset(found)
        return None if offset is None else self.base + offset

    def nearest(self, address: int) -> tuple[str, int] | None:
        """Return the nearest symbol at or below a virtual address, and the distance in bytes.

        Where the linker folded several functions, preferred_name() chooses among their names.
        """
        found = self._nearest(address)
        return None if found is None else (preferred_name(found[0]), found[1])

    def names_at(self, address: int) -> tuple[str, ...]:
        """Return every symbol at exactly this virtual address."""
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
    """Return the JSON document of vol's symbol table; creating vol's templates for each type would cost far more."""
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
    """Choose among the names of folded functions: one that can be an APC routine's, else by text.choose_name()."""
    meant = [name for name in names if any(part in name for part in windows.APC_NAME_PARTS)]
    return min(meant) if meant else choose_name(names)
