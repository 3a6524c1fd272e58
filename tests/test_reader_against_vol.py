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


@pytest.fixture(scope="module", params=_FILES, ids=lambda path: path.name.partition(".json")[0])
def opened(request: pytest.FixtureRequest) -> tuple[IsfTypes, Any, bytes]:
    """A symbol file as the plugin reads it, a vol context that has it as table `nt`, and the bytes of layer `bytes`."""
    path: Path = request.param
    if not path.is_file():
        pytest.skip(f"no {path.name} of genuine kernels beside the checkout")
    document = json.loads(lzma.decompress(path.read_bytes()))
    content = random.Random(path.name).randbytes(0x4000)
    context = contexts.Context()
    context.layers.add_layer(_AnyAddress(context, "bytes", "bytes", content))
    table = WindowsKernelIntermedSymbols(context, "nt", "nt", path.as_uri(), validate=False)
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


def _by_vol(context: Any, found: Any, path: str) -> int | None:
    """Give what a member of one of vol's objects is, by its path; None where there is none."""
    for step in path.split("."):
        name, _, index = step.partition("[")
        found = _step(found, name)
        if found is None:
            return None
        if index:
            found = found[int(index.rstrip("]"))]
    # Of a union, vol gives an object without a value of its own: its bytes are the value.
    if hasattr(found.vol, "members"):
        return int.from_bytes(context.layers["bytes"].read(found.vol.offset, found.vol.size), "little")
    return int(found)


def _expected(context: Any, offset: int) -> Iterator[tuple[str, int | None]]:
    thread = context.object("nt!_ETHREAD", "bytes", offset)
    for name in ThreadMembers._fields:
        values = (_by_vol(context, thread, path) for path in layouts._THREAD_PATHS[name])
        yield name, next((value for value in values if value is not None), None)


#: Signed in the decoder whatever type the PDB gives them: ULONG on XP, SHORT since. Their low halves are compared.
_COUNTERS = ("kernel_apc_disable", "special_apc_disable")


def _low(value: int | None) -> int | None:
    return None if value is None else value & 0xFFFF


@pytest.mark.parametrize("offset", [0, 0x1238])
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
    thread = context.object("nt!_ETHREAD", "bytes", offset)
    keeps_unused = _by_vol(context, thread, "Tcb.ApcStatePointer[0]") is not None
    unused = () if keeps_unused else ("saved_kernel_flink", "saved_user_flink")
    assert members._asdict() == {
        name: None if name in unused else getattr(decoded, name) for name in PrefilterMembers._fields
    }


@pytest.mark.parametrize("offset", [0, 0x1238])
def test_apcs(opened: tuple[IsfTypes, Any, bytes], offset: int) -> None:
    """Each member of a _KAPC is decoded to what vol's object of the same bytes gives."""
    types, context, content = opened
    layout = layouts.read_layout(types.member, types.size_of)
    apc = context.object("nt!_KAPC", "bytes", offset)
    assert layout.apc(content, offset) == tuple(_by_vol(context, apc, name) for name in layouts._APC_MEMBERS)
    entry = apc.ApcListEntry
    assert offset + layout.apc_list_entry == entry.vol.offset
    assert layout.apc.size == context.symbol_space.get_type("nt!_KAPC").size
