"""Volatility symbol files (ISF): reads the JSON, looks up types and members, and merges types from a second file."""

from __future__ import annotations

import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

from .layout import STRUCTURE_BOUND, Member, is_number

SIZE_BOUND = 256 << 20
"""The largest symbol file that is read, in bytes after decompression; those of Windows 11 have some 30 MiB."""


class SymbolFileError(ValueError):
    """A symbol file cannot be used; the text says why."""


def load(stream: IO[bytes]) -> Any:
    """Read the JSON object of an opened symbol file, at most SIZE_BOUND bytes of it.

    Raises:
        SymbolFileError: it is too large, damaged, or not a JSON object.
        OSError: it cannot be read.
    """
    try:
        data = stream.read(SIZE_BOUND + 1)
        if len(data) > SIZE_BOUND:
            raise SymbolFileError(f"it has more than {SIZE_BOUND >> 20} MiB")
        document = json.loads(data)
    except (EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error) as error:
        raise SymbolFileError(f"it is damaged: {error}") from error
    except RecursionError as error:
        raise SymbolFileError("it nests too deep") from error
    except SymbolFileError:
        raise
    except ValueError as error:
        raise SymbolFileError(f"it is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise SymbolFileError("it is no JSON object")
    return document


_STEP = re.compile(r"(\w+)(?:\[(\d+)\])?$")

_COMPOUND = ("struct", "union", "class")

# How the producers of symbol files name members that have no name in the source: `u1`, `__unnamed...`.
_UNNAMED = ("unnamed", "u", "__unnamed")


MALFORMED = (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError)
"""The exceptions that accessing a document raises where it does not follow the schema; symbol files are untrusted."""


class IsfTypes:
    """Sizes and members of the structures in a symbol file's document (volatility3/schemas, schema-6.2.0.json).

    Entries that violate the schema, and sizes and offsets that no kernel can have, count as missing.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._types: Mapping[str, Any] = document["user_types"]
        self._base: Mapping[str, Any] = document["base_types"]
        self._enums: Mapping[str, Any] = document["enums"]

    def size_of(self, structure: str) -> int | None:
        """Return the size of a structure in bytes, None when the file lacks it or gives no positive size."""
        try:
            found = self._types.get(structure)
            size = 0 if found is None else int(found["size"])
        except MALFORMED:
            return None
        return size if size > 0 else None

    def member(self, structure: str, path: str) -> Member | None:
        """Find a member by dotted path; members of anonymous structures and unions are found too."""
        try:
            member = self._member(structure, path)
        except MALFORMED:
            return None
        if member is None or is_number(member):
            return member
        # A member that is itself a structure or array: return its byte range if that is plausible.
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
        # `seen` ends the recursion where a structure contains itself.
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
    """Return whether a type has no name in the source; its generated name differs from file to file."""
    return "unnamed" in name


PRODUCER = "apcaudit, types from "
"""Prefix of the producer's name in the metadata of a merged document; the name of the donor file follows."""

_BORROWED = "__unnamed_borrowed_"
_REFERENCES = ("struct", "union", "class", "enum")


def missing_types(own: Mapping[str, Any], donor: Mapping[str, Any]) -> list[str]:
    """Return the names of the structures that the donor has and the kernel's own document lacks."""
    return sorted(name for name in donor["user_types"] if name not in own["user_types"] and not is_anonymous(name))


def size_conflict(own: Mapping[str, Any], donor: Mapping[str, Any]) -> str | None:
    """Say which structure, embedded in a borrowed one and present in both documents, differs in size; else None.

    Such a difference means that the borrowed structure has another layout in this kernel.
    """
    types, theirs = own["user_types"], donor["user_types"]
    pending = missing_types(own, donor)
    seen = set(pending)
    while pending:
        for name in _embedded(theirs[pending.pop()]):
            if name in types and not is_anonymous(name):
                if types[name]["size"] != theirs[name]["size"]:
                    return f"{name} has {types[name]['size']:#x} bytes, not {theirs[name]['size']:#x}"
            elif name in theirs and name not in seen:
                seen.add(name)
                pending.append(name)
    return None


def merge_types(own: Mapping[str, Any], donor: Mapping[str, Any], donor_name: str) -> dict[str, Any]:
    """Return the kernel's document with the types that it lacks added; types that it has are kept.

    Args:
        own: the kernel's document; its symbols and identity are kept.
        donor: the document from which types are taken.
        donor_name: the donor's name for the metadata.
    """
    taken = set(own["user_types"]) | set(own["enums"])
    names = [*donor["user_types"], *donor["enums"]]
    # The generated names of anonymous types differ between files and could collide.
    renamed = {name: f"{_BORROWED}{number}" for number, name in enumerate(names) if is_anonymous(name)}
    result = dict(own)
    result["metadata"] = {**own["metadata"], "producer": {**_producer(own), "name": f"{PRODUCER}{donor_name}"}}
    for table in ("user_types", "enums"):
        borrowed = {renamed.get(name, name): _with_names(each, renamed) for name, each in donor[table].items()}
        result[table] = {**{name: each for name, each in borrowed.items() if name not in taken}, **own[table]}
    result["base_types"] = {**donor["base_types"], **own["base_types"]}
    return result


def _producer(document: Mapping[str, Any]) -> dict[str, Any]:
    return dict(document["metadata"].get("producer", {}))


def _embedded(value: Any) -> Iterator[str]:
    """Yield the names of the structures that a type embeds; not of those that it points to."""
    if isinstance(value, dict):
        if value.get("kind") == "pointer":
            return
        if value.get("kind") in _REFERENCES[:3] and "name" in value:
            yield value["name"]
        for each in value.values():
            yield from _embedded(each)


def _with_names(value: Any, renamed: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        copy = {key: _with_names(each, renamed) for key, each in value.items()}
        if value.get("kind") in _REFERENCES and value.get("name") in renamed:
            copy["name"] = renamed[value["name"]]
        return copy
    return value
