"""The decoders against vol's own objects: the same bytes, every member, on every kernel there is a symbol file of."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from volatility3.framework import contexts
from volatility3.framework.layers import physical
from volatility3.framework.symbols.windows import WindowsKernelIntermedSymbols
from volatility3.plugins.windows.apcaudit.formats import layout as layouts
from volatility3.plugins.windows.apcaudit.formats.symbol_file import IsfTypes
from volatility3.plugins.windows.apcaudit.members import PrefilterMembers, ThreadMembers

from tests.conftest import ROOT

SHARED = ROOT.parent / "shared"
_FILES = (
    *sorted((ROOT / "symbols").rglob("*.json.xz")),
    *(sorted((SHARED / "symbols").rglob("*.json.xz")) or [SHARED / "symbols"]),
    *(sorted((SHARED / "layouts").glob("*.json.xz")) or [SHARED / "layouts"]),
)


class _AnyAddress(physical.BufferDataLayer):
    """Bytes whose pointers may lead anywhere: vol cuts pointers to the size of the layer that they are read from."""

    @property
    def maximum_address(self) -> int:
        return (1 << 64) - 1


def _alone(document: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    """Empty all structures but those wanted and what lies in them; else vol makes every type that they point to."""
    kept: dict[str, Any] = {}

    def cut(kind: dict[str, Any]) -> dict[str, Any]:
        if kind["kind"] == "pointer":
            return {**kind, "subtype": {"kind": "base", "name": "void"}}
        if kind["kind"] in ("struct", "union"):
            wanted.append(kind["name"])
        return {name: cut(value) if name in ("subtype", "type") else value for name, value in kind.items()}

    while wanted:
        name = wanted.pop()
        if name not in kept:
            whole = document["user_types"][name]
            fields = {each: {**field, "type": cut(field["type"])} for each, field in whole["fields"].items()}
            kept[name] = {**whole, "fields": fields}
    others = {name: {**whole, "fields": {}} for name, whole in document["user_types"].items()}
    return {**document, "user_types": others | kept, "symbols": {}}


@pytest.fixture(scope="module", params=_FILES, ids=lambda path: path.name.partition(".json")[0])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[IsfTypes, Any, bytes]:
    """A symbol file as the plugin reads it, a vol context that has it as table `nt`, and the bytes of layer `bytes`."""
    path: Path = request.param
    if not path.is_file():
        pytest.skip(f"no {path.name} of genuine kernels beside the checkout")
    document = json.loads(lzma.decompress(path.read_bytes()))
    content = random.Random(path.name).randbytes(0x4000)
    context = contexts.Context()
    context.layers.add_layer(_AnyAddress(context, "bytes", "bytes", content))
    alone = tmp_path_factory.mktemp("alone") / "nt.json"
    alone.write_text(json.dumps(_alone(document, ["_ETHREAD", "_KAPC"])))
    table = WindowsKernelIntermedSymbols(context, "nt", "nt", alone.as_uri(), validate=False)
    context.symbol_space.append(table)
    return IsfTypes(document), context, content


def _step(found: Any, name: str) -> Any:
    """Take a member of one of vol's objects, through structures that have no name in the source."""
    if found.has_member(name):
        return getattr(found, name)
    for inner, (_, kind) in found.vol.members.items():
        if inner.startswith(("u", "__unnamed")) and "unnamed" in kind.vol.type_name:
            deeper = _step(getattr(found, inner), name)
            if deeper is not None:
                return deeper
    return None


class _Members:
    """The members of one of vol's objects by their paths; what several paths go through is made once."""

    def __init__(self, context: Any, root: Any) -> None:
        self._context = context
        self._made = {"": root}

    def value(self, path: str) -> int | None:
        """Return a member's value, None where there is no such member."""
        found = self._find(path)
        if found is None:
            return None
        # Of a union, vol gives an object without a value of its own: its bytes are the value.
        if hasattr(found.vol, "members"):
            return int.from_bytes(self._context.layers["bytes"].read(found.vol.offset, found.vol.size), "little")
        return int(found)

    def _find(self, path: str) -> Any:
        if path not in self._made:
            above, _, step = path.rpartition(".")
            name, _, index = step.partition("[")
            found = self._find(above)
            found = None if found is None else _step(found, name)
            self._made[path] = found if found is None or not index else found[int(index.rstrip("]"))]
        return self._made[path]


def _expected(context: Any, offset: int) -> Iterator[tuple[str, int | None]]:
    thread = _Members(context, context.object("nt!_ETHREAD", "bytes", offset))
    for name in ThreadMembers._fields:
        values = (thread.value(path) for path in layouts._THREAD_PATHS[name])
        yield name, next((value for value in values if value is not None), None)


#: Signed in the decoder whatever type the PDB gives them: ULONG on XP, SHORT since. Their low halves are compared.
_COUNTERS = ("kernel_apc_disable", "special_apc_disable")


def _low(value: int | None) -> int | None:
    return None if value is None else value & 0xFFFF


@pytest.mark.parametrize("offset", [0x1238])
def test_threads(opened: tuple[IsfTypes, Any, bytes], offset: int) -> None:
    """Each member of an _ETHREAD is decoded to what vol's object of the same bytes gives, or is lacking in both."""
    types, context, content = opened
    layout = layouts.read_layout(types.member, types.size_of)
    decoded = ThreadMembers._make(layout.thread(content, offset))
    expected = dict(_expected(context, offset))
    for name, value in expected.items():
        if name in _COUNTERS:
            assert (name, _low(getattr(decoded, name))) == (name, _low(value))
        else:
            assert (name, getattr(decoded, name)) == (name, value)
    assert layout.lacks == {name for name, value in expected.items() if value is None}
    members = PrefilterMembers._make(layout.prefilter(content, offset))
    # Without _KTHREAD.ApcStatePointer (since 8) nothing can be queued on a SavedApcState that is not in use.
    thread = _Members(context, context.object("nt!_ETHREAD", "bytes", offset))
    keeps_unused = thread.value("Tcb.ApcStatePointer[0]") is not None
    unused = () if keeps_unused else ("saved_kernel_flink", "saved_user_flink")
    assert members._asdict() == {
        name: None if name in unused else getattr(decoded, name) for name in PrefilterMembers._fields
    }


@pytest.mark.parametrize("offset", [0x1238])
def test_apcs(opened: tuple[IsfTypes, Any, bytes], offset: int) -> None:
    """Each member of a _KAPC is decoded to what vol's object of the same bytes gives."""
    types, context, content = opened
    layout = layouts.read_layout(types.member, types.size_of)
    apc = context.object("nt!_KAPC", "bytes", offset)
    members = _Members(context, apc)
    assert layout.apc(content, offset) == tuple(members.value(name) for name in layouts._APC_MEMBERS)
    entry = apc.ApcListEntry
    assert offset + layout.apc_list_entry == entry.vol.offset
    assert layout.apc.size == context.symbol_space.get_type("nt!_KAPC").size
