"""The layouts of genuine kernels, from their symbol files."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.formats.layout import Member, read_layout


def isf_lookup(isf: dict[str, Any]) -> tuple[Any, Any]:
    """Look members up in an ISF file by nothing but its own description."""
    types = isf["user_types"]

    def find(fields: dict[str, Any], name: str) -> dict[str, Any] | None:
        if name in fields:
            return dict(fields[name])
        for field in fields.values():
            inner = types.get(field["type"].get("name")) if field.get("anonymous") else None
            found = find(inner["fields"], name) if inner else None
            if found is not None:
                return {**found, "offset": found["offset"] + field["offset"]}
        return None

    def size_of(kind: dict[str, Any]) -> int:
        if kind["kind"] == "pointer":
            return int(isf["base_types"]["pointer"]["size"])
        if kind["kind"] == "bitfield":
            return size_of(kind["type"])
        if kind["kind"] == "enum":
            return int(isf["enums"][kind["name"]]["size"])
        return int((types if kind["kind"] in ("struct", "union") else isf["base_types"])[kind["name"]]["size"])

    def lookup(structure: str, path: str) -> Member | None:
        offset, kind = 0, {"kind": "struct", "name": structure}
        for step in path.split("."):
            name, _, index = step.partition("[")
            found = find(types[kind["name"]]["fields"], name) if kind.get("name") in types else None
            if found is None:
                return None
            offset, kind = offset + found["offset"], found["type"]
            if index:
                kind = kind["subtype"]
                offset += int(index.rstrip("]")) * size_of(kind)
        if kind["kind"] == "bitfield":
            return Member(offset, size_of(kind), False, kind["bit_position"], kind["bit_length"])
        return Member(offset, size_of(kind))

    return lookup, lambda name: types[name]["size"] if name in types else None


# Field guide of the kernels: offsets in _KTHREAD, which starts the _ETHREAD.
# UpdateTebApc is new in 11 24H2, TerminationApcRequest in 8.1, WaitRegister in 7, guarded regions in Server 2003.
TEB = {f"teb_apc_{name}" for name in ("type", "size", "thread", "kernel", "rundown", "normal")}
TO_8 = {*TEB, "special_apc_in_progress", "termination_request"}
GENUINE = [
    ("5.1.2600.5512-x86", 4, 0x34, 0x14C, 0x30, {*TO_8, "special_apc_disable", "wait_state"}),
    ("6.1.7601.17514-x86", 4, 0x40, None, 0x30, TO_8),
    ("6.1.7601.17514-x64", 8, 0x50, 0x240, 0x58, TO_8),
    ("6.3.9600.17415-x64", 8, 0x98, None, 0x58, TEB),
    ("10.0.19041.264-x64", 8, 0x98, 0x258, 0x58, TEB),
    ("10.0.22000.194-x64", 8, 0x98, 0x258, 0x58, TEB),
    ("10.0.26100.1742-x64", 8, 0x98, 0x258, 0x58, set()),
]


@pytest.mark.parametrize(
    ("build", "pointer_size", "kernel_head", "saved_head", "apc_size", "lacks"),
    GENUINE,
    ids=[row[0] for row in GENUINE],
)
def test_the_layouts_of_genuine_kernels(
    shared: Path,
    build: str,
    pointer_size: int,
    kernel_head: int,
    saved_head: int | None,
    apc_size: int,
    lacks: set[str],
) -> None:
    """Every version's layout is found by member names: nothing that checks need is lacking but what did not exist."""
    isf = json.loads(lzma.decompress((shared / "layouts" / f"{build}.json.xz").read_bytes()))
    layout = read_layout(*isf_lookup(isf))
    assert (layout.pointer_size, layout.kernel_head, layout.apc.size) == (pointer_size, kernel_head, apc_size)
    assert layout.user_head == kernel_head + 2 * pointer_size
    assert saved_head is None or layout.saved_kernel_head == saved_head
    assert layout.lacks - {"win32_start_address", "next_processor"} == lacks
