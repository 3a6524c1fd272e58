"""Intermediate symbol files (ISF), Volatility's JSON: read into a layout and symbols, and written from them."""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apcaudit.errors import ApcAuditError
from apcaudit.synthetic.layout import SCALARS, Enum, Layout, Struct


class IntermediateError(ApcAuditError):
    """A file that is no symbol file of a Windows kernel."""


@dataclass(frozen=True, slots=True)
class Pdb:
    """What names a PDB file: database, GUID without dashes, age."""

    name: str
    guid: str
    age: int


@dataclass(frozen=True, slots=True)
class Symbols:
    """A symbol file's content: types, relative addresses by name, and which PDB it is for (None: types only)."""

    layout: Layout
    addresses: dict[str, int]
    pdb: Pdb | None


def read(path: Path) -> Symbols:
    """Read a symbol file, `.json` or `.json.xz`."""
    return from_document(read_document(path))


def read_document(path: Path) -> dict[str, Any]:
    """Read a symbol file's JSON document."""
    try:
        data = path.read_bytes()
        document = json.loads(lzma.decompress(data) if path.suffix == ".xz" else data)
    except (OSError, ValueError, lzma.LZMAError) as error:
        raise IntermediateError(f"{path}: not a symbol file ({error})") from error
    if not isinstance(document, dict) or "user_types" not in document:
        raise IntermediateError(f"{path}: not a symbol file (no user_types)")
    return document


def from_document(document: dict[str, Any]) -> Symbols:
    """Convert a symbol file's JSON document."""
    base = document["base_types"]
    structs = {
        name: Struct(
            name,
            value["size"],
            {key: (each["offset"], _type_text(each["type"], base)) for key, each in value["fields"].items()},
            value["kind"] == "union",
        )
        for name, value in document["user_types"].items()
    }
    enums = {
        name: Enum(name, _scalar(value["base"], base), dict(value["constants"]))
        for name, value in document["enums"].items()
    }
    pdb = document["metadata"].get("windows", {}).get("pdb")
    return Symbols(
        Layout(base["pointer"]["size"], structs, enums),
        {name: value["address"] for name, value in document["symbols"].items()},
        Pdb(pdb["database"], pdb["GUID"].upper(), pdb["age"]) if pdb else None,
    )


def _scalar(name: str, base: dict[str, Any]) -> str:
    """Name a base type of any symbol file as the facts tables do, by its size and sign."""
    facts = base.get(name, {"size": 0, "signed": False, "kind": "void"})
    if name == "wchar":
        return "wchar"
    if facts["kind"] == "float":
        return f"f{8 * facts['size']}"
    if facts["size"] == 0:
        return "void"
    if facts["size"] not in (1, 2, 4, 8):
        return f"[{facts['size']}]u8"
    return f"{'i' if facts['signed'] else 'u'}{8 * facts['size']}"


def _type_text(value: dict[str, Any], base: dict[str, Any]) -> str:
    kind = value["kind"]
    if kind == "pointer":
        target = value["subtype"]
        inner = "void" if target["kind"] == "function" else _type_text(target, base)
        return f"*{inner}"
    if kind == "array":
        return f"[{value['count']}]{_type_text(value['subtype'], base)}"
    if kind == "bitfield":
        of = value["type"]
        return f"{_type_text(of, base)}:{value['bit_position']}:{value['bit_length']}"
    if kind == "base":
        return "*void" if value["name"] == "pointer" else _scalar(value["name"], base)
    if kind == "function":
        return "void"
    return str(value["name"])


def to_document(
    layout: Layout, addresses: dict[str, int], pdb: Pdb, version: tuple[int, int, int, int], source: str
) -> dict[str, Any]:
    """Make the JSON document of a symbol file; `version` is the kernel file's (major, minor, build, revision)."""
    return {
        "metadata": {
            "format": "6.2.0",
            # A fixed time: the same facts have to give the same file.
            "producer": {"name": f"apcaudit ({source})", "version": "1.0.0", "datetime": "2026-01-01T00:00:00"},
            "windows": {
                "pdb": {
                    "GUID": pdb.guid,
                    "age": pdb.age,
                    "database": pdb.name,
                    "machine_type": 0x8664 if layout.pointer_size == 8 else 0x14C,
                },
                "pe": dict(zip(("major", "minor", "revision", "build"), version, strict=True)),
            },
        },
        "base_types": _base_types(layout.pointer_size),
        "user_types": {
            name: {
                "kind": "union" if struct.union else "struct",
                "size": struct.size,
                "fields": {
                    key: {"offset": offset, "type": _type_document(text, layout)}
                    for key, (offset, text) in struct.members.items()
                },
            }
            for name, struct in layout.structs.items()
        },
        "enums": {
            name: {"base": SCALARS[enum.scalar][0], "size": SCALARS[enum.scalar][1], "constants": enum.values}
            for name, enum in layout.enums.items()
        },
        "symbols": {name: {"address": address} for name, address in addresses.items()},
    }


def _base_types(pointer_size: int) -> dict[str, Any]:
    names = {name: (size, signed) for name, size, signed in SCALARS.values()}
    names |= {"int": (4, True), "unsigned int": (4, False), "pointer": (pointer_size, False)}
    kinds = {"void": "void", "float": "float", "double": "float", "char": "char", "unsigned char": "char"}
    return {
        name: {"kind": kinds.get(name, "int"), "size": size, "signed": signed, "endian": "little"}
        for name, (size, signed) in names.items()
    }


def _type_document(text: str, layout: Layout) -> dict[str, Any]:
    if text.startswith("*"):
        return {"kind": "pointer", "subtype": _type_document(text[1:], layout)}
    if text.startswith("["):
        count, _, inner = text[1:].partition("]")
        return {"kind": "array", "count": int(count), "subtype": _type_document(inner, layout)}
    if ":" in text:
        inner, position, length = text.split(":")
        kind = _type_document(inner, layout)
        return {"kind": "bitfield", "bit_position": int(position), "bit_length": int(length), "type": kind}
    if text in SCALARS:
        return {"kind": "base", "name": SCALARS[text][0]}
    if text in layout.enums:
        return {"kind": "enum", "name": text}
    struct = layout.structs.get(text)
    if struct is None:
        # A pointer to a type that the table does not keep.
        return {"kind": "base", "name": "void"}
    return {"kind": "union" if struct.union else "struct", "name": text}


def pack(document: dict[str, Any], *, preset: int = 9) -> bytes:
    """Compress a document with one of xz's presets; the same document gives the same bytes."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return lzma.compress(text.encode(), preset=preset)
