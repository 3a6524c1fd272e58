"""A kernel's symbol file that is mutated: sizes, offsets, kinds and addresses that lie, over an undamaged image."""

from __future__ import annotations

import copy
import json
import lzma
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from volatility3.framework import exceptions
from volatility3.framework.layers import intel
from volatility3.framework.symbols import intermed

from fuzz.findings import Result, audit
from fuzz.ground import Mutation
from fuzz.machine import ROOT, machine, open_image
from fuzz.targets import EVERYBODY

Document = dict[str, Any]

#: What an audit reads most; the others take their turn more seldom.
_READ = ("_ETHREAD", "_KTHREAD", "_EPROCESS", "_KPROCESS", "_KAPC", "_KAPC_STATE", "_LIST_ENTRY", "_KPRCB", "_IRP")

_NUMBERS = (-(1 << 31), -8, -1, 0, 1, 3, 8, 0xFFF, 0x1000, 1 << 16, 1 << 31, 1 << 40, 1 << 63)


class SymbolFileSubject:
    """A synthetic machine's symbol file: its mutations, and the audits of the machine by them."""

    def __init__(self, kernel: str) -> None:
        self.name = f"symbols of {kernel}"
        self._folder = tempfile.TemporaryDirectory()
        image = machine(kernel)
        path = Path(self._folder.name) / "image.dmp"
        image.write_dump(path)
        self._context, module = open_image(path)
        self._module = self._context.modules[module]
        pdb = image.kernel.pdb
        file = ROOT / "symbols" / "windows" / pdb.name / f"{pdb.guid.upper()}-{pdb.age}.json.xz"
        self.document: Document = json.loads(lzma.decompress(file.read_bytes()))
        self._made = self.document
        self._number = 0
        self._before: dict[bool, Result] = {}

    def mutation(self, seed: int, index: int) -> Mutation:
        """Make a mutation; the kinds take turns."""
        kind = list(KINDS)[index % len(KINDS)]
        # Whatever the file says, it says of every thread.
        everybody = {EVERYBODY, *self.before(scan=False).threads, *self.before(scan=True).threads}
        return Mutation(kind, [f"{seed}:{index}"], owners=everybody)

    def before(self, *, scan: bool) -> Result:
        """Return the audit by the undamaged file."""
        if scan not in self._before:
            self._before[scan] = audit(self._context, self._module.name, scan=scan)
        return self._before[scan]

    def apply(self, made: Mutation) -> None:
        """Do the damage."""
        chance = random.Random(made.told[0])  # noqa: S311 - the same damage each time is wanted
        self._made = copy.deepcopy(self.document)
        del made.told[1:]
        for _ in range(chance.choice((1, 1, 2, 8))):
            made.told.append(KINDS[made.kind](self._made, chance))

    def lie(self, *path: str, value: object) -> None:
        """Let the file say one thing that is not so: the keys that lead to it in the document, and what it says."""
        self._made = copy.deepcopy(self.document)
        within = self._made
        for key in path[:-1]:
            within = within[key]
        within[path[-1]] = value

    def is_local(self, made: Mutation) -> bool:  # noqa: ARG002 - the same for all
        """Tell that a symbol file is everybody's."""
        return False

    def after(self, *, scan: bool, everything: bool = True) -> Result | None:
        """Load the damaged file and audit by it; None where vol or the audit refuses it with a clear error."""
        from volatility3.plugins.windows.apcaudit.formats.layout import LayoutError

        for remembered in (intel.Intel._get_valid_table, intel.Intel._translate_entry):
            remembered.cache_clear()
        self._number += 1
        table = f"damaged{self._number}"
        path = Path(self._folder.name) / f"{table}.json"
        path.write_text(json.dumps(self._made), encoding="utf-8")
        context = self._context
        try:
            loaded: Any = intermed.IntermediateSymbolTable
            context.symbol_space.append(loaded(context, table, table, path.as_uri(), validate=False))
        except Exception:
            # Vol's own reading of it, which is not ours to judge.
            return None
        try:
            module = context.module(table, self._module.layer_name, self._module.offset)
            return audit(context, module.name, scan=scan, everything=everything)
        except (LayoutError, exceptions.SymbolError, exceptions.SymbolSpaceError):
            return None
        finally:
            path.unlink()
            context.symbol_space.remove(table)
            for name in list(context.modules):
                if name != self._module.name:
                    del context.modules._modules[name]


def _structure(document: Document, chance: random.Random) -> str:
    types = document["user_types"]
    wanted = [each for each in _READ if each in types]
    return chance.choice(wanted) if chance.random() < 0.7 else chance.choice(sorted(types))


def _field(document: Document, chance: random.Random) -> tuple[str, Document]:
    types = document["user_types"]
    structure = _structure(document, chance)
    fields = types[structure]["fields"]
    if not fields:
        return f"{structure} has no fields", {}
    name = chance.choice(sorted(fields))
    return f"{structure}.{name}", fields[name]


def _size(document: Document, chance: random.Random) -> str:
    structure = _structure(document, chance)
    before = document["user_types"][structure]["size"]
    after = chance.choice((*_NUMBERS, before // 2, before - 1, before + 8))
    document["user_types"][structure]["size"] = after
    return f"{structure} has {after:#x} bytes, not {before:#x}"


def _offset(document: Document, chance: random.Random) -> str:
    where, field = _field(document, chance)
    before = field.get("offset", 0)
    field["offset"] = chance.choice((*_NUMBERS, before + 1, before * 2, before - 0x10))
    return f"{where} is at {field['offset']:#x}"


def _kind(document: Document, chance: random.Random) -> str:
    where, field = _field(document, chance)
    structure, enum = chance.choice(sorted(document["user_types"])), chance.choice([*sorted(document["enums"]), "none"])
    byte = {"kind": "base", "name": "unsigned char"}
    field["type"] = chance.choice(
        (
            byte,
            {"kind": "pointer", "subtype": byte},
            {"kind": "struct", "name": structure},
            {"kind": "struct", "name": where.partition(".")[0]},
            {"kind": "union", "name": "_NOT_THERE"},
            {"kind": "enum", "name": enum},
            {"kind": "array", "count": chance.choice(_NUMBERS), "subtype": {"kind": "struct", "name": structure}},
            {"kind": "bitfield", "bit_position": chance.choice(_NUMBERS), "bit_length": 200, "type": byte},
            {"kind": "function"},
        )
    )
    return f"{where} is {field['type']}"


def _missing(document: Document, chance: random.Random) -> str:
    structure = _structure(document, chance)
    fields = document["user_types"][structure]["fields"]
    if chance.random() < 0.2 or not fields:
        del document["user_types"][structure]
        return f"{structure} is missing"
    name = chance.choice(sorted(fields))
    del fields[name]
    return f"{structure}.{name} is missing"


def _base(document: Document, chance: random.Random) -> str:
    name = chance.choice(sorted(document["base_types"]))
    document["base_types"][name]["size"] = chance.choice((0, 1, 2, 3, 4, 8, 16))
    return f"{name} has {document['base_types'][name]['size']} bytes"


def _address(document: Document, chance: random.Random) -> str:
    name = chance.choice(sorted(document["symbols"]))
    address = chance.choice((*_NUMBERS, document["symbols"][chance.choice(sorted(document["symbols"]))]["address"]))
    document["symbols"][name]["address"] = address
    return f"{name} is at {address:#x}"


KINDS: dict[str, Callable[[Document, random.Random], str]] = {
    "size of a structure": _size,
    "offset of a member": _offset,
    "kind of a member": _kind,
    "missing": _missing,
    "size of a base type": _base,
    "address of a symbol": _address,
}
