"""The frames of x64 stacks: by unwind data, and by return addresses where that cannot be read."""

from __future__ import annotations

import struct

import pytest
from volatility3.plugins.windows.apcaudit.formats.unwind_info import (
    FunctionTable,
    NoEntry,
    Operation,
    RuntimeFunction,
    UnwindCode,
    parse_codes,
    read_unwind_info,
)
from volatility3.plugins.windows.apcaudit.unwind.registers import Registers
from volatility3.plugins.windows.apcaudit.unwind.x64 import Epilogue, Unwound, find_epilogue, unwind

from tests.unwind_images import FRAMED, SAVING, SMALL, image_of

BASE = 0xFFFFF80100000000
TOP = 0x500000
RETURN = 0xFFFFF80200001234
#: What the registers hold when the function is entered, by number; RBX, RBP, RSI, RDI and R12 to R15 are the caller's.
ENTERED = tuple(0x1000 + 0x111 * number for number in range(16))
RBX, RSP, RBP, RSI, RDI = 3, 4, 5, 6, 7


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param("0632", [(6, Operation.ALLOC_SMALL, 3, 0x20)], id="sub rsp, 20h"),
        pytest.param("0401 2200", [(4, Operation.ALLOC_LARGE, 0, 0x110)], id="sub rsp, 110h"),
        pytest.param("0711 00000200", [(7, Operation.ALLOC_LARGE, 1, 0x20000)], id="sub rsp, 20000h"),
        pytest.param("0230", [(2, Operation.PUSH_NONVOL, 3, 0)], id="push rbx"),
        pytest.param("0d03", [(13, Operation.SET_FPREG, 0, 0)], id="lea rbp, [rsp+n]"),
        pytest.param("1f64 1000", [(31, Operation.SAVE_NONVOL, 6, 0x80)], id="mov [rsp+80h], rsi"),
        pytest.param("1f65 00001000", [(31, Operation.SAVE_NONVOL_FAR, 6, 0x100000)], id="mov [rsp+100000h], rsi"),
        pytest.param("2068 0300", [(32, Operation.SAVE_XMM128, 6, 0x30)], id="movaps [rsp+30h], xmm6"),
        pytest.param("2069 00001000", [(32, Operation.SAVE_XMM128_FAR, 6, 0x100000)], id="movaps, far"),
        pytest.param("001a", [(0, Operation.PUSH_MACHFRAME, 1, 0)], id="machine frame with error code"),
        pytest.param("0516 0006 0632", [(5, Operation.EPILOG, 1, 0), (0, Operation.EPILOG, 0, 0),
                     (6, Operation.ALLOC_SMALL, 3, 0x20)], id="epilogue codes of version 2"),
        pytest.param("000b", None, id="an unknown operation"),
        pytest.param("0711 0000", None, id="an operand that is cut off"),
        pytest.param("", [], id="none"),
    ],
)  # fmt: skip
def test_unwind_codes(data: str, expected: list[tuple[int, Operation, int, int]] | None) -> None:
    """UNWIND_CODE slots, as Microsoft's "x64 exception handling" lays them out; operands in bytes."""
    codes = parse_codes(bytes.fromhex(data))
    assert codes == (None if expected is None else tuple(UnwindCode(*each) for each in expected))


def unwound(
    image: bytes, ip: int, changed: dict[int, int], memory: dict[int, int], *, exact: bool = True
) -> Unwound | None:
    registers = list(ENTERED)
    for number, value in changed.items():
        registers[number] = value

    def read(rva: int, length: int) -> bytes | None:
        return image[rva : rva + length] if rva >= 0 and rva + length <= len(image) else None

    function = RuntimeFunction(0x100, 0x180, 0x1000)
    at = Registers(BASE + ip, tuple(registers))
    return unwind(at, {TOP: RETURN, **memory}.get, read, function, BASE, exact=exact)


@pytest.mark.parametrize(
    ("image", "ip", "changed", "memory"),
    [
        pytest.param(SMALL, 0x100, {RSP: TOP}, {}, id="at the entry"),
        pytest.param(SMALL, 0x102, {RSP: TOP - 8}, {TOP - 8: ENTERED[RBX]}, id="behind push rbx"),
        pytest.param(SMALL, 0x106, {RSP: TOP - 0x28, RBX: 1}, {TOP - 8: ENTERED[RBX]}, id="behind the prologue"),
        pytest.param(SMALL, 0x107, {RSP: TOP - 0x28, RBX: 1}, {TOP - 8: ENTERED[RBX]}, id="at the epilogue"),
        pytest.param(SMALL, 0x10B, {RSP: TOP - 8, RBX: 1}, {TOP - 8: ENTERED[RBX]}, id="at its pop"),
        pytest.param(SMALL, 0x10C, {RSP: TOP}, {}, id="at its return"),
        pytest.param(FRAMED, 0x101, {RSP: TOP - 8}, {TOP - 8: ENTERED[RBP]}, id="before the frame register is set"),
        pytest.param(FRAMED, 0x10D, {RSP: TOP - 0x1000, RBP: TOP - 0x208 + 0x20}, {TOP - 8: ENTERED[RBP]},
                     id="by the frame register, whatever was allocated since"),
        pytest.param(FRAMED, 0x10E, {RSP: TOP - 0x1000, RBP: TOP - 0x208 + 0x20}, {TOP - 8: ENTERED[RBP]},
                     id="at an epilogue that starts from the frame register"),
        pytest.param(SAVING, 0x109, {RSP: TOP - 0x38, RSI: 1}, {TOP + 8: ENTERED[RSI]}, id="a register saved by mov"),
    ],
)  # fmt: skip
def test_leaving_a_function(image: bytes, ip: int, changed: dict[int, int], memory: dict[int, int]) -> None:
    """Wherever in a function its thread stood, its caller's registers are those that it was entered with."""
    found = unwound(image, ip, changed, memory)
    assert found is not None
    assert (found.registers.ip, found.found_at, found.interrupted) == (RETURN, TOP, False)
    assert found.registers.general == (*ENTERED[:RSP], TOP + 8, *ENTERED[RSP + 1 :])


def test_leaving_an_interrupt() -> None:
    """A machine frame holds RIP and RSP of what was interrupted, behind an error code where the info says so."""
    image = image_of({0x100: "90", 0x1000: "01000100 001a 0000"})
    memory = {TOP: 0xE, TOP + 8: RETURN, TOP + 0x20: 0x700000}
    found = unwound(image, 0x110, {RSP: TOP}, memory)
    assert found is not None
    assert (found.registers.ip, found.registers.sp, found.interrupted) == (RETURN, 0x700000, True)


def test_chained_unwind_data() -> None:
    """A part of a function split off undoes its own prologue and then, as a whole, that of the function itself."""
    # The part: sub rsp, 20h. The function: push rbx.
    image = image_of(
        {0x100: "4883ec20 90", 0x1000: "21040100 0432 0000 00020000 10020000 20100000", 0x1020: "01020100 0230"}
    )
    found = unwound(image, 0x104, {RSP: TOP - 0x28, RBX: 1}, {TOP - 8: ENTERED[RBX]})
    assert found is not None
    assert (found.registers.ip, found.registers.sp, found.registers.general[RBX]) == (RETURN, TOP + 8, ENTERED[RBX])


#: A part split off that saves registers late (Microsoft, "Chained unwind info structures"), in the caller's home space:
#: mov [rbp+200h], rsi; mov [rbp+1f8h], rdi. Its function: push rbp; sub rsp, 200h; lea rbp, [rsp+20h];
#: mov [rbp+1f0h], rbx.
SAVING_LATE = image_of(
    {
        0x1000: "210e0425 0e744300 07644400 00020000 14020000 20100000",
        0x1020: "01140625 14344200 0d03 08014000 0150",
    }
)


@pytest.mark.parametrize(
    ("ip", "saved"),
    [
        pytest.param(0x100, {}, id="at the beginning of the part"),
        pytest.param(0x107, {RSI: 0x220}, id="behind the first save"),
        pytest.param(0x10E, {RSI: 0x220, RDI: 0x218}, id="behind its prologue"),
    ],
)
def test_the_frame_of_chained_unwind_data(ip: int, saved: dict[int, int]) -> None:
    """Wherever in a part split off, saved registers are found from the frame register: it was set before the part ran.

    The stack pointer has moved since (alloca), so that it tells nothing.
    """
    frame = TOP - 0x208
    memory = {TOP - 8: ENTERED[RBP], frame + 0x210: ENTERED[RBX]}
    memory |= {frame + offset: ENTERED[number] for number, offset in saved.items()}
    changed = {RSP: TOP - 0x1000, RBP: frame + 0x20, RBX: 1, **dict.fromkeys(saved, 1)}
    found = unwound(SAVING_LATE, ip, changed, memory)
    assert found is not None
    assert (found.registers.ip, found.found_at) == (RETURN, TOP)
    assert found.registers.general == (*ENTERED[:RSP], TOP + 8, *ENTERED[RSP + 1 :])


def test_one_frame_for_all_of_a_chain() -> None:
    """Without a frame register the offsets of a whole chain count from the stack pointer that the walk came with.

    So Microsoft's unwinder has it (FrameBase of UnwindPrologue, src/coreclr/unwinder/amd64/unwinder.cpp of .NET).
    """
    # The part: sub rsp, 20h. The function: sub rsp, 40h; mov [rsp+30h], rsi, which is at 50h of the part's frame.
    image = image_of({0x1000: "21040100 0432 0000 00020000 10020000 20100000", 0x1020: "01090300 09640a00 0472"})
    found = unwound(image, 0x108, {RSP: TOP - 0x60, RSI: 1}, {TOP - 0x10: ENTERED[RSI]})
    assert found is not None
    assert (found.registers.ip, found.registers.general[RSI]) == (RETURN, ENTERED[RSI])


@pytest.mark.parametrize(
    "info",
    [
        pytest.param("21000000 00010000 80010000 00100000", id="chained to itself"),
        pytest.param("21000000 00010000 80010000 fcffffff", id="chained to nowhere"),
        pytest.param("0100ff00", id="more codes than the image has", marks=()),
        pytest.param("07060200 0632 0230", id="an unknown version"),
        pytest.param("01000105 0003", id="an unknown frame register"),
    ],
)
def test_lying_unwind_data(info: str) -> None:
    """Unwind data that lies gives no caller, or one that a stack check refuses, and never more work than its bound."""
    image = image_of({0x100: "90", 0x1000: info})[: 0x1000 + len(bytes.fromhex(info))]
    registers = Registers(BASE + 0x110, tuple(None if number == 5 else value for number, value in enumerate(ENTERED)))

    def read(rva: int, length: int) -> bytes | None:
        return image[rva : rva + length] if rva >= 0 and rva + length <= len(image) else None

    function = RuntimeFunction(0x100, 0x180, 0x1000)
    assert unwind(registers, lambda _: None, read, function, BASE, exact=False) is None


def test_unwind_data_that_cannot_be_read() -> None:
    """Unwind data on a page that is not in memory is no unwind data."""
    assert read_unwind_info(lambda rva, length: None, 0x1000) is None


@pytest.mark.parametrize(
    ("code", "frame_register", "expected"),
    [
        pytest.param("4883c428c3", 0, Epilogue(None, 0x28, ()), id="add, ret"),
        pytest.param("4881c400020000c3", 0, Epilogue(None, 0x200, ()), id="add of 32 bits, ret"),
        pytest.param("415f415e5f5ec3", 0, Epilogue(None, 0, (15, 14, 7, 6)), id="pops, ret"),
        pytest.param("488d65205dc3", 5, Epilogue(5, 0x20, (5,)), id="lea from rbp"),
        pytest.param("498d6b205dc3", 0, None, id="lea of another register"),
        pytest.param("4883c42848ff2500000000", 0, Epilogue(None, 0x28, ()), id="tail jump through memory"),
        pytest.param("4883c42890", 0, None, id="something else behind the adjustment"),
        pytest.param("", 0, None, id="nothing can be read"),
    ],
)
def test_epilogues(code: str, frame_register: int, expected: Epilogue | None) -> None:
    """An epilogue has one of few forms (Microsoft, "x64 prolog and epilog")."""
    assert find_epilogue(bytes.fromhex(code), frame_register) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param(0xFFFFFFF0, NoEntry.UNREADABLE, id="beyond the image"),
        pytest.param(0x600, NoEntry.UNREADABLE, id="entries that lead to one another"),
    ],
)
def test_a_table_of_functions_that_lies(size: int, expected: NoEntry) -> None:
    """A function table that its image cannot hold is none; entries that lead in a circle lead nowhere."""
    header = bytearray(0x400)
    header[:2], header[0x3C:0x40] = b"MZ", struct.pack("<I", 0x80)
    header[0x80:0x9A] = b"PE\0\0" + struct.pack("<HHIIIHHH", 0x8664, 0, 0, 0, 0, 0xF0, 0x22, 0x20B)
    struct.pack_into("<I", header, 0x98 + 108, 16)
    struct.pack_into("<II", header, 0x98 + 112 + 24, 0x200, size)

    # Every entry leads to another one, which is itself.
    entry = struct.pack("<III", 0x1000, 0x9000, 0x200 | 1)

    def read(rva: int, length: int) -> bytes | None:
        return bytes(header[rva : rva + length]) if rva + length <= 0x200 else entry[:length]

    assert FunctionTable(read, 0x100000).find(0x1234) is expected
