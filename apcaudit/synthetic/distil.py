"""Distil a facts table from a symbol file: the types that an APC audit or a scene needs (kept.txt), nothing else.

Run as `python -m apcaudit.synthetic.distil ISF -o table.txt --source "public PDB of build 10.0.19041.804"`.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from apcaudit import output
from apcaudit.errors import ApcAuditError
from apcaudit.synthetic import intermediate, table
from apcaudit.synthetic.layout import SCALARS, Layout, Struct

#: Members that say nothing: padding, and views of other members as bytes.
_FILLERS = re.compile(
    r"\w*Fill\d+|Fill\d*\w*|Spare\w*|\w*Spare\d*|\w*Padding\w*|Pad\d*|PcrAlign\d*|PrcbPad\w*|MxCsr_Pad"
)


@dataclass(frozen=True, slots=True)
class Kept:
    """What `kept.txt` says: members by type (None: all of them), enumerations, and arms by (type, member)."""

    types: dict[str, frozenset[str] | None]
    enums: frozenset[str]
    arms: dict[tuple[str, str], frozenset[str]]


def read_kept() -> Kept:
    """Read the list of what to keep."""
    types: dict[str, frozenset[str] | None] = {}
    enums: set[str] = set()
    arms: dict[tuple[str, str], frozenset[str]] = {}
    text = (resources.files("apcaudit.synthetic") / "kept.txt").read_text(encoding="ascii")
    for line in text.splitlines():
        name, *members = line.split() or [""]
        if name == "enum":
            enums.update(members)
        elif "." in name and not name.startswith("#"):
            holder, member = name.split(".")
            arms[holder, member] = frozenset(members)
        elif name and not name.startswith("#"):
            types[name] = None if members == ["*"] else frozenset(members) - {"-"}
    return Kept(types, frozenset(enums), arms)


def distil(layout: Layout) -> Layout:
    """Keep the needed types, what they embed, and the pointers between them."""
    wanted = read_kept()
    kept: dict[str, Struct] = {}
    enums = {name: enum for name, enum in layout.enums.items() if name in wanted.enums}
    waiting = list(wanted.types.items())
    while waiting:
        name, only = waiting.pop(0)
        if name in kept or name not in layout.structs:
            continue
        struct = layout.structs[name]
        members = {}
        for member, (offset, text) in struct.members.items():
            if (only is not None and member not in only) or (only is None and _FILLERS.fullmatch(member)):
                continue
            members[member] = (offset, text)
            inner = _embedded(text)
            if inner in layout.enums:
                enums[inner] = layout.enums[inner]
            elif inner and inner not in wanted.types:
                waiting.append((inner, wanted.arms.get((name, member))))
        kept[name] = Struct(name, struct.size, members, struct.union)
    for name, each in kept.items():
        members = {key: (at, _without_lost(text, kept)) for key, (at, text) in each.members.items()}
        kept[name] = Struct(name, each.size, members, each.union)
    return Layout(layout.pointer_size, kept, enums)


def _embedded(text: str) -> str | None:
    """Name the structure or enumeration that a member holds by value."""
    text = re.sub(r"^(\[\d+\])+", "", text).partition(":")[0]
    return None if text.startswith("*") or text in SCALARS else text


def _without_lost(text: str, kept: dict[str, Struct]) -> str:
    """Turn a pointer to a type that was not kept into a void pointer."""
    stars = text.rstrip().rfind("*") + 1
    if stars and text[stars:] not in kept and text[stars:] not in SCALARS:
        return f"{text[:stars]}void"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Write the table of one symbol file."""
    parser = argparse.ArgumentParser(
        prog="python -m apcaudit.synthetic.distil", description="Distil a facts table from a symbol file."
    )
    parser.add_argument("isf", type=Path, help="symbol file, .json or .json.xz")
    parser.add_argument("-o", "--output", type=Path, required=True, help="facts table to write")
    parser.add_argument("--source", action="append", required=True, help="where the facts are from, a line each")
    options = parser.parse_args(arguments)
    try:
        symbols = intermediate.read(options.isf)
        output.write(options.output, table.write_table(distil(symbols.layout), options.source))
    except ApcAuditError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
