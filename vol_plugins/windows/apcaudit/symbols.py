"""The kernel's symbol table as the audit asks it: members, sizes, addresses and names."""

from __future__ import annotations

import re
from typing import Any

from volatility3.framework import exceptions, interfaces

from . import facts as windows
from .borrowing.merge import PRODUCER as BORROWED
from .drivers.names import nearest
from .layout import STRUCTURE_BOUND, Member, is_number

_STEP = re.compile(r"(\w+)(?:\[(\d+)\])?$")

_DEEPEST = 8
"""How deep anonymous structures are looked into: genuine ones nest two or three deep, a file may nest one in itself."""


class KernelSymbols:
    """Structures and symbols of the kernel module of a context."""

    def __init__(self, context: interfaces.context.ContextInterface, module_name: str) -> None:
        self._space = context.symbol_space
        self._module = context.modules[module_name]
        self.table_name: str = self._module.symbol_table_name
        layer: Any = context.layers[self._module.layer_name]
        self.base: int = canonical(int(self._module.offset), layer.bits_per_register)
        # The name of the symbol file and of the folder that holds it: `ntkrnlmp.pdb/<GUID>-<age>.json.xz`.
        url: str = self._space[self.table_name].config.get("isf_url", "") or ""
        self.file = "/".join(url.split("/")[-2:])
        # A file whose missing types were taken from another (borrowing/) says so as its producer.
        producer: str = self._space[self.table_name].producer.name or ""
        self.borrowed_from = producer.removeprefix(BORROWED) if producer.startswith(BORROWED) else None
        self._members: dict[tuple[str, str], Member | None] = {}
        self._sorted: tuple[list[int], list[list[str]]] | None = None

    def size_of(self, structure: str) -> int | None:
        """Return the size of a structure in bytes, None when the table does not have it or gives it none."""
        template = self._template(structure)
        return int(template.size) if template is not None and template.size > 0 else None

    def member(self, structure: str, path: str) -> Member | None:
        """Find a member by dotted path; anonymous structures and unions are looked through.

        Args:
            structure: name of the C structure, `_ETHREAD` say.
            path: `Tcb.ApcState.ApcListHead[0].Flink` say; an index steps into an array.
        """
        key = (structure, path)
        if key not in self._members:
            self._members[key] = self._lookup(structure, path)
        return self._members[key]

    def _lookup(self, structure: str, path: str) -> Member | None:
        template = self._template(structure)
        offset = 0
        for step in path.split("."):
            match = _STEP.match(step)
            if template is None or match is None:
                return None
            found = self._find(template, match[1])
            if found is None:
                return None
            offset += found[0]
            template = found[1]
            if match[2] is not None:
                if "count" not in template.vol:
                    return None
                element = self._resolve(template.vol.subtype)
                if int(match[2]) >= template.vol.count or element is None:
                    return None
                offset += int(match[2]) * element.size
                template = element
        return None if template is None else _describe(template, offset)

    def has_type(self, structure: str) -> bool:
        """Tell whether the table has a structure."""
        return self._template(structure) is not None

    def members_of_type(self, structure: str, wanted: str) -> dict[str, int]:
        """Return name and offset in bytes of the direct members whose type is the wanted structure."""
        template = self._template(structure)
        if template is None:
            return {}
        suffix = "!" + wanted
        members = template.vol.members.items()
        return {name: int(offset) for name, (offset, kind) in members if kind.vol.type_name.endswith(suffix)}

    def address(self, symbol: str) -> int | None:
        """Return the virtual address of a symbol, None when the table does not have it."""
        try:
            return self.base + int(self._module.get_symbol(symbol).address)
        except exceptions.SymbolError:
            return None

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
        table = self._space[self.table_name]
        by_address: dict[int, list[str]] = {}
        for name in table.symbols:
            by_address.setdefault(int(table.get_symbol(name).address), []).append(name)
        addresses = sorted(by_address)
        return addresses, [by_address[address] for address in addresses]

    def _template(self, structure: str) -> Any:
        try:
            return self._space.get_type(f"{self.table_name}!{structure}")
        except exceptions.SymbolError:
            return None

    def _resolve(self, template: Any) -> Any:
        """Turn a reference to a structure into the structure; other templates are themselves."""
        if hasattr(template, "size") or "members" in template.vol:
            return template
        return self._template(template.vol.type_name.rpartition("!")[2])

    def _find(self, template: Any, name: str, depth: int = 0) -> tuple[int, Any] | None:
        members = template.vol.members if template is not None and "members" in template.vol else {}
        if name in members:
            offset, kind = members[name]
            return int(offset), self._resolve_or_self(kind)
        for anonymous, (offset, kind) in members.items():
            if (
                depth < _DEEPEST
                and anonymous.startswith(("unnamed", "u", "__unnamed"))
                and "unnamed" in kind.vol.type_name
            ):
                inner = self._find(self._resolve_or_self(kind), name, depth + 1)
                if inner is not None:
                    return int(offset) + inner[0], inner[1]
        return None

    def _resolve_or_self(self, template: Any) -> Any:
        if type(template).__name__ == "ReferenceTemplate":
            return self._template(template.vol.type_name.rpartition("!")[2])
        return template


def _describe(template: Any, offset: int) -> Member | None:
    """Turn an integer, pointer, enumeration or bit field into a Member; None for one that no kernel can have."""
    vol = template.vol
    if "start_bit" in vol:
        size = vol.base_type.vol.data_format.length
        member = Member(offset, size, False, vol.start_bit, vol.end_bit - vol.start_bit)
    elif "data_format" in vol:
        member = Member(offset, vol.data_format.length, bool(vol.data_format.signed))
    elif "base_type" in vol:
        member = Member(offset, vol.base_type.vol.data_format.length)
    else:
        # Of a structure or an array, the bytes.
        size = int(template.size)
        return Member(offset, size) if offset >= 0 and 0 < size <= STRUCTURE_BOUND else None
    return member if is_number(member) else None


def canonical(address: int, bits: int) -> int:
    """Sign-extend vol's 48-bit form of a 64-bit address; 32-bit addresses are themselves."""
    if bits == 64 and address & (1 << 47):
        return address | 0xFFFF000000000000
    return address


def preferred_name(names: list[str]) -> str:
    """Choose among the names of folded code the one that an APC routine can mean, else the first by alphabet."""
    meant = [name for name in names if any(part in name for part in windows.APC_NAME_PARTS)]
    return min(meant or names)
