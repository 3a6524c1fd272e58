"""The schema of the audit's document, made from its types: `python -m docs.schema` writes docs/document.schema.json."""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import volatility3.plugins

DOCS = Path(__file__).resolve().parent
PATH = DOCS / "document.schema.json"

_PLAIN = {int: "integer", str: "string", bool: "boolean", float: "number"}

Schema = dict[str, Any]

_HEXADECIMAL: Schema = {"type": "string", "pattern": "^0x[0-9a-f]+$"}


class _Definitions:
    """Schemas of the dataclasses met so far, by name."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.made: dict[str, Schema] = {}
        self._names = names

    def of(
        self,
        kind: Any,
        *,
        skip: frozenset[str] = frozenset(),
        more: Mapping[str, Schema] | None = None,
        hexadecimal: bool = False,
    ) -> Schema:
        """Return the schema of a type; of a dataclass a reference to its definition, without some fields, with more.

        `hexadecimal` is whether its numbers are hexadecimal text.
        """
        origin, options = typing.get_origin(kind), typing.get_args(kind)
        if kind is int and hexadecimal:
            return dict(_HEXADECIMAL)
        if kind in _PLAIN:
            return {"type": _PLAIN[kind]}
        if kind is type(None):
            return {"type": "null"}
        if origin in (types.UnionType, typing.Union):
            return {"anyOf": [self.of(option, hexadecimal=hexadecimal) for option in options]}
        if origin in (tuple, frozenset):
            if origin is frozenset or options[-1] is Ellipsis:
                return {"type": "array", "items": self.of(options[0], hexadecimal=hexadecimal)}
            items = [self.of(option) for option in options]
            return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return {"type": "object", "additionalProperties": self.of(options[1])}
        if isinstance(kind, type) and issubclass(kind, Enum):
            return {"enum": [self._plain(each) for each in kind]}
        if is_dataclass(kind) or hasattr(kind, "_fields"):
            return self._structure(kind, skip, more or {})
        raise TypeError(f"{kind!r} has no place in the document")

    def _structure(self, kind: Any, skip: frozenset[str], more: Mapping[str, Schema]) -> Schema:
        name = kind.__name__
        if name not in self.made:
            self.made[name] = {}
            hints = typing.get_type_hints(kind, None, dict(self._names))
            members = [each.name for each in fields(kind)] if is_dataclass(kind) else list(kind._fields)
            properties = {member: self._member(member, hints[member]) for member in members if member not in skip}
            properties |= dict(more)
            # A stage's own words are about what it adds to the stage before it.
            stages = [each for each in reversed(kind.__mro__) if is_dataclass(each)] or [kind]
            described = " ".join(" ".join((each.__doc__ or "").split()) for each in stages)
            self.made[name] = {
                "type": "object",
                "description": described,
                "properties": properties,
                "required": sorted(properties),
            }
        return {"$ref": f"#/definitions/{name}"}

    def _member(self, name: str, kind: Any) -> Schema:
        if name in self._names["TIMES"]:
            return self.of(str | None)
        return self.of(kind, hexadecimal=name in self._names["HEXADECIMAL"])

    def _plain(self, value: Enum) -> Any:
        return self._names["plain"](value)


def make() -> Schema:
    """Make the schema."""
    plugins = str(DOCS.parent / "vol_plugins")
    if plugins not in volatility3.plugins.__path__:
        volatility3.plugins.__path__.insert(0, plugins)
    from volatility3.plugins.windows.apcaudit import findings, model
    from volatility3.plugins.windows.apcaudit import unwind as stack
    from volatility3.plugins.windows.apcaudit.modules.driver import Driver
    from volatility3.plugins.windows.apcaudit.modules.module_list import UnloadedDriver
    from volatility3.plugins.windows.apcaudit.output import document

    # Deferred modules load when something of theirs is asked for.
    kinds = (stack.Stack, model.Thread, findings.Finding, document.plain)
    assert all(kinds)
    names = {
        **vars(stack),
        **vars(model),
        **vars(findings),
        **vars(document),
        "Driver": Driver,
        "UnloadedDriver": UnloadedDriver,
    }
    definitions = _Definitions(names)
    # What the document says of an APC stands beside its members, and what it says of a thread beside the thread's.
    of_apc = typing.get_type_hints(findings.AuditedApc, None, names)
    kind = definitions.of(str | None)
    definitions.of(model.Apc, more={"kind": kind} | {name: definitions.of(hint) for name, hint in of_apc.items()})
    of_thread = typing.get_type_hints(findings.Audited, None, names)
    time = definitions.of(str | None)
    thread = definitions.of(
        model.Thread,
        skip=frozenset({"start", "lost", "targets"}),
        more={name: definitions.of(of_thread[name]) for name in document.TOLD}
        | {"created": time, "exited": time, "severity": definitions.of(findings.Severity)},
    )
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "The document of windows.apcaudit",
        "description": "What ApcAudit.audit(...).to_json() returns. Addresses and other numbers of 64 bits are"
        " hexadecimal text, times are text in ISO 8601 (hexadecimal FILETIME ticks beyond the year 9999), null is"
        " unknown.",
        "type": "object",
        "properties": {
            "schema": {"const": document.SCHEMA},
            "image": definitions.of(document.ImageFacts),
            "notes": definitions.of(tuple[str, ...]),
            "threads": {"type": "array", "items": thread},
        },
        "required": ["image", "notes", "schema", "threads"],
        "definitions": dict(sorted(definitions.made.items())),
    }


def text() -> str:
    """Return the schema as the file has it."""
    return json.dumps(make(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
    sys.stderr.write(f"{PATH}\n")
