"""Decoders over bytes, and what the layout of a kernel takes from its symbol table."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volatility3.plugins.windows.apcaudit.formats.layout import Decoder, Layout, LayoutError, Member, read_layout
from volatility3.plugins.windows.apcaudit.model import ThreadMembers

EIGHT = bytes([0x11, 0x22, 0x33, 0x84, 0x55, 0x66, 0x77, 0x88])


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        pytest.param([Member(0, 1)], (0x11,), id="a byte"),
        pytest.param([Member(4, 4), Member(0, 2)], (0x88776655, 0x2211), id="in the order given"),
        pytest.param([Member(0, 8)], (0x8877665584332211,), id="a quadword"),
        pytest.param([Member(6, 2, signed=True)], (0x8877 - 0x10000,), id="a signed counter"),
        pytest.param(
            [Member(6, 2, signed=True), Member(6, 2)], (0x8877 - 0x10000, 0x8877), id="signed beside unsigned"
        ),
        pytest.param([Member(0, 4), Member(0, 1), Member(3, 1)], (0x84332211, 0x11, 0x84), id="a union"),
        pytest.param([Member(1, 4), Member(0, 2)], (0x55843322, 0x2211), id="members that overlap in part"),
        pytest.param(
            [Member(0, 4, shift=0, bits=1), Member(0, 4, shift=4, bits=4), Member(0, 4, shift=31, bits=1)],
            (1, 1, 1),
            id="bits of one unit",
        ),
        pytest.param([Member(0, 4, shift=5, bits=1), Member(0, 4)], (0, 0x84332211), id="a bit beside its unit"),
        pytest.param(
            [Member(7, 1, shift=3, bits=1), Member(6, 2, signed=True)],
            (1, 0x8877 - 0x10000),
            id="a bit of a signed word",
        ),
        pytest.param([None, Member(0, 1), None], (None, 0x11, None), id="members that this Windows lacks"),
        pytest.param([None], (None,), id="nothing but what it lacks"),
    ],
)
def test_decoding(members: list[Member | None], expected: tuple[int | None, ...]) -> None:
    """A decoder returns every member's value in the order given, None for one that does not exist."""
    assert Decoder(members, 8)(EIGHT) == expected


def test_decoding_amid_a_buffer() -> None:
    """A structure is decoded where it starts, not where the buffer does."""
    assert Decoder([Member(0, 2), Member(6, 2)], 8)(b"\xff" * 3 + EIGHT + b"\xff", 3) == (0x2211, 0x8877)


def test_a_buffer_that_ends_with_the_structure_is_enough() -> None:
    """A decoder reads no byte past the structure."""
    decoder = Decoder([Member(0, 8), Member(4, 4)], 8)
    assert decoder(EIGHT) == (0x8877665584332211, 0x88776655)


@pytest.mark.parametrize(
    ("holes", "expected"),
    [
        pytest.param([], (0x2211, 0x33, 1, None), id="no hole"),
        pytest.param([(0, 1)], (None, 0x33, 1, None), id="a member's first byte"),
        pytest.param([(1, 2)], (None, 0x33, 1, None), id="its last byte"),
        pytest.param([(3, 4)], (0x2211, 0x33, 1, None), id="between members"),
        pytest.param([(2, 8)], (0x2211, None, None, None), id="several members"),
        pytest.param([(4, 5)], (0x2211, 0x33, None, None), id="a byte of a bit's unit"),
        pytest.param([(1, 2), (2, 3)], (None, None, 1, None), id="two holes"),
        pytest.param([(0, 8)], (None, None, None, None), id="everything"),
    ],
)
def test_decoding_around_holes(holes: list[tuple[int, int]], expected: tuple[int | None, ...]) -> None:
    """A member that touches unreadable bytes is unknown, never 0; the others keep their values."""
    decoder = Decoder([Member(0, 2), Member(2, 1), Member(4, 4, shift=31, bits=1), None], 8)
    assert decoder.partial(EIGHT, holes) == expected
    assert decoder.partial(EIGHT, iter(holes)) == expected


UNITS = st.builds(
    lambda size, at, signed: Member(at % (65 - size), size, signed),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 63),
    st.booleans(),
)
BITS = st.builds(
    lambda unit, shift, bits: Member(
        unit.offset, unit.size, False, shift % (unit.size * 8), 1 + bits % (unit.size * 8 - shift % (unit.size * 8))
    ),
    UNITS,
    st.integers(0, 63),
    st.integers(0, 63),
)


def by_definition(member: Member | None, data: bytes) -> int | None:
    """Decode one member as the definition of a member says."""
    if member is None:
        return None
    value = int.from_bytes(data[member.offset : member.offset + member.size], "little", signed=member.signed)
    return value if member.bits is None else value >> member.shift & (1 << member.bits) - 1


@given(
    members=st.lists(st.none() | UNITS | BITS, min_size=1, max_size=12),
    data=st.binary(min_size=64, max_size=64),
    before=st.binary(max_size=5),
    holes=st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)).map(sorted).map(tuple), max_size=3),
)
def test_any_members_of_any_bytes(
    members: list[Member | None], data: bytes, before: bytes, holes: list[tuple[int, int]]
) -> None:
    """However members overlap, each decodes to what its bytes are, or to None where a byte of it is unknown."""
    decoder = Decoder(members, 64)
    expected = tuple(by_definition(member, data) for member in members)
    assert decoder(before + data, len(before)) == expected
    unknown = {at for start, end in holes for at in range(start, end)}
    assert decoder.partial(data, holes) == tuple(
        None if member is None or unknown & set(range(member.offset, member.offset + member.size)) else value
        for member, value in zip(members, expected, strict=True)
    )


# What a 64-bit Windows 7 has of the members whose place or type differs between versions (ISF of 7601.17514), and
# enough of the others for a layout.
LISTS = {
    "Tcb.ApcState.ApcListHead[0].Flink": Member(0x50, 8),
    "Tcb.ApcState.ApcListHead[1].Flink": Member(0x60, 8),
    "Tcb.SavedApcState.ApcListHead[0].Flink": Member(0x240, 8),
    "Tcb.SavedApcState.ApcListHead[1].Flink": Member(0x250, 8),
    "ThreadListEntry.Flink": Member(0x428, 8),
}
SOME = LISTS | {
    "Tcb.KernelApcDisable": Member(0x1C4, 2),
    "Tcb.SpecialApcDisable": Member(0x1C6, 2),
    "SystemThread": Member(0x448, 4, False, 4, 1),
    "Tcb.ApcState.UserApcPending": Member(0x7A, 1),
}
KAPC = {
    "Type": Member(0x0, 1),
    "Size": Member(0x2, 1),
    "Thread": Member(0x8, 8),
    "ApcListEntry.Flink": Member(0x10, 8),
    "KernelRoutine": Member(0x20, 8),
    "RundownRoutine": Member(0x28, 8),
    "NormalRoutine": Member(0x30, 8),
    "NormalContext": Member(0x38, 8),
    "SystemArgument1": Member(0x40, 8),
    "SystemArgument2": Member(0x48, 8),
    "ApcStateIndex": Member(0x50, 1),
    "ApcMode": Member(0x51, 1),
    "Inserted": Member(0x52, 1),
}
STATE = {
    "ApcListHead[0].Flink": Member(0x0, 8),
    "ApcListHead[1].Flink": Member(0x10, 8),
    "Process": Member(0x20, 8),
}
SIZES = {"_ETHREAD": 0x498, "_KTHREAD": 0x360, "_KAPC": 0x58, "_KAPC_STATE": 0x30, "_EPROCESS": 0x4D0}


def layout_of(
    thread: dict[str, Member],
    apc: dict[str, Member] = KAPC,
    sizes: dict[str, int] = SIZES,
    state: dict[str, Member] = STATE,
) -> Layout:
    """Read the layout of a symbol table with these members."""
    tables = {"_ETHREAD": thread, "_KAPC": apc, "_KAPC_STATE": state}
    return read_layout(lambda structure, path: tables[structure].get(path), sizes.get)


def decoded(layout: Layout, planted: dict[int, bytes]) -> ThreadMembers:
    """Decode an _ETHREAD of zeros with bytes planted at offsets."""
    data = bytearray(layout.thread.size)
    for offset, value in planted.items():
        data[offset : offset + len(value)] = value
    return ThreadMembers._make(layout.thread(bytes(data)))


def test_a_layout_says_where_and_what_is_lacking() -> None:
    """A layout has the offsets of the list heads, the pointer's size, and the names of what the table has not."""
    layout = layout_of(SOME)
    assert (layout.kernel_head, layout.user_head) == (0x50, 0x60)
    assert (layout.saved_kernel_head, layout.saved_user_head) == (0x240, 0x250)
    assert (layout.state_kernel_head, layout.state_user_head, layout.state_process) == (0x0, 0x10, 0x20)
    assert (layout.thread_list_entry, layout.apc_list_entry, layout.pointer_size) == (0x428, 0x10, 8)
    assert (layout.thread.size, layout.apc.size) == (0x498, 0x58)
    assert layout.lacks == {
        *ThreadMembers._fields,
    } - {
        "kernel_apc_disable",
        "special_apc_disable",
        "system_thread",
        "user_apc_pending",
        "apc_kernel_flink",
        "apc_user_flink",
        "saved_kernel_flink",
        "saved_user_flink",
        "thread_list_flink",
    }


def test_the_disable_counters_count_down() -> None:
    """KernelApcDisable and SpecialApcDisable are signed whatever the symbol file says: disabled is negative."""
    members = decoded(layout_of(SOME), {0x1C4: b"\xf4\xff", 0x1C6: b"\xff\xff", 0x448: b"\x10\0\0\0"})
    assert (members.kernel_apc_disable, members.special_apc_disable, members.system_thread) == (-12, -1, 1)
    assert members.state is None


@pytest.mark.parametrize(
    ("extra", "planted", "expected"),
    [
        pytest.param({}, b"\x01", 1, id="a byte to 17134"),
        pytest.param(
            {"Tcb.ApcState.UserApcPendingAll": Member(0x7A, 1)}, b"\x01", 1, id="special user APC since 17763"
        ),
        pytest.param(
            {"Tcb.ApcState.UserApcPendingAll": Member(0x7A, 1)}, b"\x02", 2, id="ordinary user APC since 17763"
        ),
    ],
)
def test_of_two_names_the_newest_wins(extra: dict[str, Member], planted: bytes, expected: int) -> None:
    """A member that moved is looked for under every name that it ever had, newest first."""
    assert decoded(layout_of(SOME | extra), {0x7A: planted}).user_apc_pending == expected


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        pytest.param({"sizes": SIZES | {"_ETHREAD": 0, "_KTHREAD": 0}}, "_ETHREAD, _KTHREAD", id="XP's PDB"),
        pytest.param({"sizes": {"_KAPC": 0x58}}, "_EPROCESS", id="structures"),
        pytest.param({"thread": {}}, "_ETHREAD has no Tcb.ApcState.ApcListHead", id="the list heads"),
        pytest.param({"apc": {**KAPC, "Inserted": None}}, "_KAPC has no Inserted", id="a KAPC's member"),
        pytest.param({"state": {**STATE, "Process": None}}, "_KAPC_STATE has no Process", id="an APC state's member"),
    ],
)
def test_a_table_without_the_indispensable(changed: Any, named: str) -> None:
    """A symbol table without the structures of the audit is refused by the name of what is missing."""
    with pytest.raises(LayoutError, match=named.replace("[", r"\[")):
        layout_of(**{"thread": SOME, **changed})


def _lying(structure: str, path: str | None, member: Member | None, size: int | None = None) -> Any:
    """Read the layout of a symbol table that lies about one structure's size or one member."""

    def lookup(asked: str, name: str) -> Member | None:
        genuine = {
            "_KAPC": Member(0x50, 1) if name in ("ApcStateIndex", "ApcMode", "Inserted") else Member(0x10, 8),
            "_KAPC_STATE": Member(0x10, 8),
        }
        return member if (asked, name) == (structure, path) else genuine.get(asked, Member(0x98, 8))

    def size_of(asked: str) -> int:
        return size if size is not None and asked == structure else {"_ETHREAD": 0x800, "_KAPC": 0x58}.get(asked, 0x100)

    return lambda: read_layout(lookup, size_of)


@pytest.mark.parametrize(
    ("lying", "says"),
    [
        pytest.param(
            _lying("_ETHREAD", None, None, size=0x10),
            "_ETHREAD has 0x10 bytes and a member at 0x98",
            id="a thread smaller than its members",
        ),
        pytest.param(
            _lying("_KAPC", None, None, size=0x18),
            "_KAPC has 0x18 bytes and a member at 0x50",
            id="a KAPC smaller than its members",
        ),
        pytest.param(_lying("_KAPC", "NormalRoutine", Member(-8, 8)), "no number", id="a member before its structure"),
        pytest.param(
            _lying("_ETHREAD", "Tcb.State", Member(1 << 40, 1)), "outside of it", id="a member far behind its structure"
        ),
        pytest.param(_lying("_KAPC", "Type", Member(0, 3)), "3 bytes", id="a member of a size that no number has"),
        pytest.param(
            _lying("_ETHREAD", "Terminated", Member(8, 4, shift=30, bits=8)), "no number", id="bits beyond their unit"
        ),
        pytest.param(
            _lying("_ETHREAD", None, None, size=1 << 40), "more than any kernel's", id="a thread of a terabyte"
        ),
    ],
)
def test_a_symbol_table_that_lies(lying: Any, says: str) -> None:
    """A structure that cannot be as the table says is refused with the values, before anything is read by it."""
    with pytest.raises(LayoutError, match=says):
        lying()


def test_a_symbol_table_that_says_the_truth() -> None:
    """The same table without a lie is taken."""
    assert _lying("_KAPC", None, None)().apc.size == 0x58
