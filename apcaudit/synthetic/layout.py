"""Structure layouts of one kernel: types by name, members resolved by path, bit fields included."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from apcaudit.errors import ApcAuditError

#: name in a facts table -> (name in an ISF, size, signed). A pointer's size is the kernel's own.
SCALARS: dict[str, tuple[str, int, bool]] = {
    "i8": ("char", 1, True),
    "u8": ("unsigned char", 1, False),
    "i16": ("short", 2, True),
    "u16": ("unsigned short", 2, False),
    "wchar": ("wchar", 2, False),
    "i32": ("long", 4, True),
    "u32": ("unsigned long", 4, False),
    "i64": ("long long", 8, True),
    "u64": ("unsigned long long", 8, False),
    "f32": ("float", 4, True),
    "f64": ("double", 8, True),
    "void": ("void", 0, False),
}

_ARRAY = re.compile(r"\[(\d+)\](.+)")
_BITS = re.compile(r"(.+):(\d+):(\d+)")
_INDEXED = re.compile(r"([^\[\]]+)(?:\[(\d+)\])?")


class LayoutError(ApcAuditError):
    """A type or member that this kernel's layout does not have."""


@dataclass(frozen=True, slots=True)
class Struct:
    """A structure or union: its size in bytes, and each member's offset and type."""

    name: str
    size: int
    members: dict[str, tuple[int, str]]
    union: bool = False


@dataclass(frozen=True, slots=True)
class Enum:
    """An enumeration: the scalar that stores it, and its names."""

    name: str
    scalar: str
    values: dict[str, int]


@dataclass(frozen=True, slots=True)
class Field:
    """A member resolved to bytes: offset in the outermost structure, size, and the bits inside of it."""

    offset: int
    size: int
    type: str
    signed: bool = False
    bit: int = 0
    bits: int = 0


class Layout:
    """The types of one kernel.

    A type is written as in the facts tables: `u8`, `_LIST_ENTRY`, `*_KTHREAD` (pointer), `[2]_LIST_ENTRY` (array),
    `u32:4:1` (bit field: base, first bit, bit count).
    """

    def __init__(self, pointer_size: int, structs: dict[str, Struct], enums: dict[str, Enum]) -> None:
        self.pointer_size = pointer_size
        self.structs = structs
        self.enums = enums
        self._fields: dict[tuple[str, str], Field | None] = {}

    @cached_property
    def pointer_mask(self) -> int:
        """All bits of a pointer."""
        return (1 << (8 * self.pointer_size)) - 1

    def has_type(self, type_name: str) -> bool:
        """Tell whether the structure is known."""
        return type_name in self.structs

    def has(self, type_name: str, path: str) -> bool:
        """Tell whether the structure has the member."""
        return self.find(type_name, path) is not None

    def size(self, type_text: str) -> int:
        """Give the size of a type in bytes."""
        if type_text.startswith("*"):
            return self.pointer_size
        if array := _ARRAY.fullmatch(type_text):
            return int(array[1]) * self.size(array[2])
        if bits := _BITS.fullmatch(type_text):
            return self.size(bits[1])
        if type_text in SCALARS:
            return SCALARS[type_text][1]
        if type_text in self.structs:
            return self.structs[type_text].size
        if type_text in self.enums:
            return self.size(self.enums[type_text].scalar)
        raise LayoutError(f"this kernel has no type {type_text}")

    def offset(self, type_name: str, path: str) -> int:
        """Give a member's offset in bytes."""
        return self.field(type_name, path).offset

    def field(self, type_name: str, path: str) -> Field:
        """Resolve `ApcState.ApcListHead[1].Flink` in a structure."""
        # Resolved again for the error, which says what is missing.
        return self.find(type_name, path) or self._resolve(type_name, path)

    def find(self, type_name: str, path: str) -> Field | None:
        """Resolve a member path that this kernel may lack."""
        key = (type_name, path)
        if key not in self._fields:
            try:
                self._fields[key] = self._resolve(type_name, path)
            except LayoutError:
                self._fields[key] = None
        return self._fields[key]

    def _resolve(self, type_name: str, path: str) -> Field:
        offset, current = 0, type_name
        for step in path.split("."):
            match = _INDEXED.fullmatch(step)
            if match is None:
                raise LayoutError(f"{path}: not a member path")
            struct = self.structs.get(current)
            if struct is None or match[1] not in struct.members:
                raise LayoutError(f"this kernel's {current} has no member {match[1]} (wanted {type_name}.{path})")
            at, current = struct.members[match[1]]
            offset += at
            if match[2] is not None:
                array = _ARRAY.fullmatch(current)
                if array is None or int(match[2]) >= int(array[1]):
                    raise LayoutError(f"{type_name}.{path}: {match[1]} has no element {match[2]}")
                current = array[2]
                offset += int(match[2]) * self.size(current)
        if bits := _BITS.fullmatch(current):
            return Field(offset, self.size(bits[1]), bits[1], False, int(bits[2]), int(bits[3]))
        scalar = self.enums[current].scalar if current in self.enums else current
        return Field(offset, self.size(current), current, scalar in SCALARS and SCALARS[scalar][2])
