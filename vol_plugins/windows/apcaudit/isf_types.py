"""The structures of a symbol file (ISF) as the layout asks for them, out of its JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .layout import STRUCTURE_BOUND, Member, is_number

_STEP = re.compile(r"(\w+)(?:\[(\d+)\])?$")

_COMPOUND = ("struct", "union", "class")

# How symbol files name a member that has no name in the source: `u1` and `__unnamed...` by who made the file.
_UNNAMED = ("unnamed", "u", "__unnamed")


MALFORMED = (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError)
"""What a document raises, somewhere on the way, that has not the form of the schema: anybody may have written it."""


class IsfTypes:
    """Sizes and members of the structures in a symbol file's document (volatility3/schemas, schema-6.2.0.json).

    What the document has not in the schema's form, or what no kernel can have, it does not have.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._types: Mapping[str, Any] = document["user_types"]
        self._base: Mapping[str, Any] = document["base_types"]
        self._enums: Mapping[str, Any] = document["enums"]

    def size_of(self, structure: str) -> int | None:
        """Return the size of a structure in bytes, None when the file does not have it or gives it none."""
        try:
            found = self._types.get(structure)
            size = 0 if found is None else int(found["size"])
        except MALFORMED:
            return None
        return size if size > 0 else None

    def member(self, structure: str, path: str) -> Member | None:
        """Find a member by dotted path, anonymous structures and unions looked through."""
        try:
            member = self._member(structure, path)
        except MALFORMED:
            return None
        if member is None or is_number(member):
            return member
        # Of a structure or an array, the bytes.
        whole = member.bits is None and member.offset >= 0 and 0 < member.size <= STRUCTURE_BOUND
        return member if whole else None

    def _member(self, structure: str, path: str) -> Member | None:
        kind: dict[str, Any] | None = {"kind": "struct", "name": structure}
        offset = 0
        for step in path.split("."):
            match = _STEP.match(step)
            found = None if kind is None or match is None else self._find(kind, match[1], set())
            if found is None or match is None:
                return None
            offset += found[0]
            kind = found[1]
            if match[2] is not None:
                if kind["kind"] != "array" or int(match[2]) >= kind["count"]:
                    return None
                kind = kind["subtype"]
                offset += int(match[2]) * (self._size(kind) or 0)
        return None if kind is None else self._describe(kind, offset)

    def members_of_type(self, structure: str, wanted: str) -> dict[str, int]:
        """Return name and offset in bytes of the direct members whose type is the wanted structure."""
        try:
            fields = self._types.get(structure, {}).get("fields", {})
            return {
                name: int(each["offset"])
                for name, each in fields.items()
                if each["type"]["kind"] in _COMPOUND and each["type"]["name"] == wanted
            }
        except MALFORMED:
            return {}

    def _find(self, kind: Mapping[str, Any], name: str, seen: set[str]) -> tuple[int, dict[str, Any]] | None:
        # A structure that holds itself, or another one twice, is looked into once.
        if kind["kind"] not in _COMPOUND or kind["name"] in seen:
            return None
        seen.add(kind["name"])
        members = self._types.get(kind["name"], {}).get("fields", {})
        if name in members:
            return int(members[name]["offset"]), members[name]["type"]
        for member, each in members.items():
            if member.startswith(_UNNAMED) and is_anonymous(each["type"].get("name", "")):
                inner = self._find(each["type"], name, seen)
                if inner is not None:
                    return int(each["offset"]) + inner[0], inner[1]
        return None

    def _describe(self, kind: Mapping[str, Any], offset: int) -> Member | None:
        if kind["kind"] == "bitfield":
            size = self._size(kind["type"])
            return None if size is None else Member(offset, size, False, kind["bit_position"], kind["bit_length"])
        size = self._size(kind)
        signed = kind["kind"] == "base" and bool(self._base[kind["name"]]["signed"])
        return None if size is None else Member(offset, size, signed)

    def _size(self, kind: Mapping[str, Any]) -> int | None:
        if kind["kind"] == "pointer":
            return int(self._base["pointer"]["size"])
        if kind["kind"] == "array":
            return int(kind["count"]) * (self._size(kind["subtype"]) or 0)
        table = {"base": self._base, "enum": self._enums}.get(kind["kind"], self._types)
        found = table.get(kind.get("name", ""))
        return None if found is None else int(found["size"])


def is_anonymous(name: str) -> bool:
    """Tell whether a type has no name in the source: what its file calls it, another's may call something else."""
    return "unnamed" in name
