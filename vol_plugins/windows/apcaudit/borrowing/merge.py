"""One symbol file's document out of two: what the kernel's own has, and types that it lacks from another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..isf_types import is_anonymous

PRODUCER = "apcaudit, types from "
"""How the producer's name in the metadata of a merged document begins; the file of the types follows."""

_BORROWED = "__unnamed_borrowed_"
_REFERENCES = ("struct", "union", "class", "enum")


def missing_types(own: Mapping[str, Any], donor: Mapping[str, Any]) -> list[str]:
    """Name the structures that one document has and the kernel's own lacks."""
    return sorted(name for name in donor["user_types"] if name not in own["user_types"] and not is_anonymous(name))


def conflict(own: Mapping[str, Any], donor: Mapping[str, Any]) -> str | None:
    """Say which structure, of those that both have and a borrowed one embeds, differs in size; None is as it should be.

    Where one does, the borrowed structure is laid out otherwise in this kernel.
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


def merged(own: Mapping[str, Any], donor: Mapping[str, Any], donor_name: str) -> dict[str, Any]:
    """Return the kernel's own document with the types that it lacks; of what both have, its own stay.

    Args:
        own: the kernel's document; its symbols and identity are kept.
        donor: the document that has the types.
        donor_name: what is written into the metadata for it.
    """
    taken = set(own["user_types"]) | set(own["enums"])
    names = [*donor["user_types"], *donor["enums"]]
    # Anonymous types are numbered anew in every file.
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
    """Yield the names of the structures that a type holds in itself, not those that it points to."""
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
