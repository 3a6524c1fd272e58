"""The names of frames: a return address belongs to the call before it, and code to the function that it is part of."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.audit import Audit
from volatility3.plugins.windows.apcaudit.stacks.frame_names import FrameNames, ModuleCode

from apcaudit.synthetic.assembly import Code
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Address, Driver, Process, Scene, Thread
from apcaudit.synthetic.scenes import seed
from apcaudit.synthetic.scenes.common import HAL
from tests.stack_image import audit_of, stack_of, texts, with_symbols

XP, X64 = "xp-sp3-x86", "10-19041-x64"
CALL = b"\xff\xd0"

#: Two functions. The first ends with a call that never returns, at 0x1040, where the second begins, and on x64 the
#: function table says so. `Middle` is a name for the middle of the second, right behind a call.
TWICE = Driver(
    "twice.sys",
    exports={"First": 0x1000, "Second": 0x1040, "Middle": 0x1060, "Third": 0x2000},
    code={0x103E: CALL, 0x105E: CALL, 0x2000 - 2: CALL},
    # push rbx; sub rsp, 20h
    unwind={
        (0x1000, 0x1040): bytes.fromhex("0106020006320230"),
        (0x1040, 0x1080): bytes.fromhex("0106020006320230"),
        (0x2030, 0x2050): bytes.fromhex("0106020006320230"),
    },
)
PLAIN = replace(TWICE, name="plain.sys", unwind={})

CODE: dict[Address, Code] = {"nt!IofCallDriver-0x2": CALL, "nt!KiSwapThread+0x42": CALL}


def scene_of(kernel: str) -> Scene:
    processes = (Process("System", 4, (Thread(8),), parent=0),)
    drivers = (HAL, replace(TWICE, unwind={}) if kernel == XP else TWICE, PLAIN)
    return Scene("names", "named code", kernel, processes, drivers, code=CODE)


def names_of(audit: Audit) -> FrameNames:
    return FrameNames(audit.kernel.drivers, ModuleCode(audit.kernel))


@pytest.fixture(scope="module", params=[XP, X64])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Image, Audit]:
    """A machine with these drivers, of x86 and of x64: the kernel's name, its image and the audit."""
    images: list[Image] = []
    audit = audit_of(scene_of(request.param), tmp_path_factory.mktemp(request.param), images.append)
    return request.param, images[0], audit


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        # IoBuildDeviceIoControlRequest lies before IofCallDriver; its symbols name every function of the kernel.
        pytest.param("nt!IofCallDriver", "nt!IoBuildDeviceIoControlRequest+{distance:#x}", id="the kernel's symbols"),
        pytest.param("nt!KeInsertQueueApc", "nt!KeInsertQueueApc", id="no call before"),
        pytest.param("nt!KiSwapThread+0x44", "nt!KiSwapThread+0x44", id="in a function"),
        # A name that debuggers print as it is: nothing proves that the function before ends there.
        pytest.param("plain!Second", "plain!Second", id="exports alone"),
        pytest.param("twice!Middle", "twice!Middle", id="a name for the middle of a function"),
        # Between the functions of the table lies none that could have called.
        pytest.param("twice!Third", "twice!Third", id="behind no function"),
    ],
)
def test_a_return_address(built: tuple[str, Image, Audit], address: str, expected: str) -> None:
    """A return address that is a function's first byte belongs to the function before, if it is known to end there."""
    _, image, audit = built
    kernel = image.kernel
    distance = kernel.address("IofCallDriver") - kernel.address("IoBuildDeviceIoControlRequest")
    code = names_of(audit).name(image.resolve(address), exact=False)
    assert (code.text, code.address) == (expected.format(distance=distance), image.resolve(address))
    # That of an instruction about to run is what it is.
    assert names_of(audit).name(image.resolve(address), exact=True).text == address


def test_a_return_address_that_the_function_table_proves(built: tuple[str, Image, Audit]) -> None:
    """On x64 a driver's function table tells where a function ends, and its exports name it; x86 has none."""
    kernel, image, audit = built
    code = names_of(audit).name(image.resolve("twice!Second"), exact=False)
    assert code.text == ("twice!First+0x40" if kernel == X64 else "twice!Second")


@pytest.mark.parametrize(
    ("place", "exact", "expected"),
    [
        pytest.param("twice!First+0x10", True, "twice!First+0x10", id="in an exported function"),
        pytest.param("twice!Middle+0x8", True, "twice!Middle+0x8", id="behind an export in the middle of a function"),
        pytest.param("twice!Middle+0x100", True, "twice+0x1160 (.text)", id="beyond the end of the function"),
        pytest.param("twice!Third+0x40", True, "twice+0x2040 (.text)", id="in a function that is not exported"),
        pytest.param("plain!Third+0x40", True, "plain!Third+0x40", id="without a function table"),
    ],
)
def test_code_behind_an_export(built: tuple[str, Image, Audit], place: str, expected: str, *, exact: bool) -> None:
    """On x64 the function table tells whether code belongs to the export before it; x86 has none."""
    kernel, image, audit = built
    text = names_of(audit).name(image.resolve(place), exact=exact).text
    assert text == (expected if kernel == X64 else place)


# Functions of the 19041 kernel by its function table, ours: KiSwapThread is one, and a part of it was split off behind
# IofCallDriver; another part belongs to no name; KiSwapContext is short, and what lies behind it is no function.
SWAP_THREAD, PART, NAMELESS, SWAP_CONTEXT = "KiSwapThread", 0x60, 0x80, "KiSwapContext"


def function_table(image: Image) -> None:
    kernel, at = image.kernel, image.kernel.image_size - 0x3000
    start, driver, context = (kernel.addresses[each] for each in (SWAP_THREAD, "IofCallDriver", SWAP_CONTEXT))
    whole, chained = at + 0x100, at + 0x110
    entries = sorted(
        [
            (start, start + 0x80, whole),
            (context, context + 0x20, whole),
            (driver, driver + 0x50, whole),
            (driver + PART, driver + PART + 0x20, chained),
            (driver + NAMELESS, driver + NAMELESS + 0x20, whole),
        ]
    )
    image.memory.space.map(kernel.base + at, 0x200)
    table = b"".join(struct.pack("<III", *entry) for entry in entries)
    image.write(kernel.base + at, table)
    image.write(kernel.base + whole, bytes.fromhex("0106020006320230"))
    # UNW_FLAG_CHAININFO
    image.write(kernel.base + chained, bytes.fromhex("21000000") + struct.pack("<III", start, start + 0x80, whole))
    # The exception directory of the kernel's PE32+ header, which begins at 0x80.
    image.write(kernel.base + 0x80 + 24 + 112 + 8 * 3, struct.pack("<II", at, len(table)))


@pytest.mark.parametrize(
    ("symbol", "distance", "exact", "expected"),
    [
        pytest.param("IofCallDriver", 0x40, True, "nt!IofCallDriver+0x40", id="in its function"),
        pytest.param("IofCallDriver", PART + 8, True, "nt!KiSwapThread+{away:#x}", id="in a part of another function"),
        pytest.param("IofCallDriver", NAMELESS, False, "nt!KiSwapThread+{away:#x}", id="behind that part's last call"),
        pytest.param("IofCallDriver", NAMELESS, True, "nt+{rva:#x} (PAGE)", id="in a function without a name"),
        pytest.param("KiSwapContext", 0x20, False, "nt!KiSwapContext+0x20", id="behind its last call"),
        pytest.param("KiSwapContext", 0x40, True, "nt+{rva:#x} (PAGE)", id="beyond its end"),
    ],
)
def test_code_that_the_nearest_symbol_does_not_name(
    tmp_path: Path, symbol: str, distance: int, expected: str, *, exact: bool
) -> None:
    """Where the function table shows that code is none of the nearest symbol's function, that is no name for it."""
    images: list[Image] = []
    audit = audit_of(scene_of(X64), tmp_path, function_table, images.append)
    kernel = images[0].kernel
    address = kernel.address(symbol) + distance
    away = address - kernel.address(SWAP_THREAD)
    expected = expected.format(away=away, rva=address - kernel.base)
    assert names_of(audit).name(address, exact=exact).text == expected


#: A string literal between KiSwapContext, at b0be0, and the next function, at b0d60, as old kernels have them.
LITERAL = 0xB0C00


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("??_C@_0M@KGFKNKGK@KiSwapStack@FNODOBFM@", id="a string literal"),
        pytest.param("??_7Node@@6B@", id="a table of virtual functions"),
        pytest.param("__real@3ff0000000000000", id="a constant"),
    ],
)
@pytest.mark.parametrize("at", [LITERAL, LITERAL + 0x20], ids=["at it", "behind it"])
def test_code_behind_data(tmp_path: Path, name: str, at: int) -> None:
    """Data lies between the functions of old kernels: its symbol is no name for code, of a frame or of a routine."""
    images: list[Image] = []
    audit = audit_of(scene_of(XP), tmp_path, images.append, symbols=with_symbols(tmp_path, {name: LITERAL}))
    address = images[0].kernel.base + at
    texts = {names_of(audit).name(address, exact=True).text, audit.kernel.drivers.routine(address).text}
    assert texts == {f"nt+{at:#x} (.text)"}
    # A call may be the last instruction before it.
    returned = "nt!KiSwapContext+0x20" if at == LITERAL else f"nt+{at:#x} (.text)"
    assert names_of(audit).name(address, exact=False).text == returned


def test_code_that_no_symbol_of_its_section_precedes(built: tuple[str, Image, Audit]) -> None:
    """A variable is no name for code in the next section."""
    _, image, audit = built
    # Our kernels have variables from 7c000 to 8c000, and code behind.
    assert audit.kernel.drivers.code(image.kernel.base + 0x8D100).text == "nt+0x8d100 (PAGE)"
    assert audit.kernel.drivers.code(image.kernel.base + 0x7C004).text == "nt!KdDebuggerDataBlock+0x4"


def test_code_too_far_behind_a_function(tmp_path: Path) -> None:
    """Symbols name every function: code that no function is long enough for has no name."""
    images: list[Image] = []
    audit = audit_of(
        scene_of(XP), tmp_path, images.append, symbols=with_symbols(tmp_path, {"KiSystemService": 0x12000})
    )
    base = images[0].kernel.base
    # KiThreadStartup is at 157a3, the next function, KeUnstackDetachProcess, at 31c17.
    assert audit.kernel.drivers.code(base + 0x257A2).text == "nt!KiThreadStartup+0xffff"
    assert audit.kernel.drivers.code(base + 0x257A3).text == "nt+0x257a3 (.text)"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        # RtlCaptureContext saves the return address of the routine that called it, as KeBugCheck's caller goes on.
        pytest.param(
            {"nt!IofCallDriver-0x2": CALL},
            ["nt!IoBuildDeviceIoControlRequest+0x130", "nt!KeUnstackDetachProcess+0x118"],
            id="behind a call",
        ),
        pytest.param({}, ["nt!IofCallDriver", "nt!KiSwapThread+0x44"], id="behind no call"),
    ],
)
def test_the_innermost_frame_of_a_bugcheck(tmp_path: Path, code: dict[Address, Code], expected: list[str]) -> None:
    """On x86 the context of a bugcheck is that of a return address, which a call that never returned may have left.

    There EBP leads to the caller. At the first instruction of a function, its caller is at the stack pointer.
    """
    scene = seed.scene()
    assert scene.bugcheck is not None
    registers = {**scene.bugcheck.registers, "Eip": "nt!IofCallDriver"}
    code = {**scene.code, "nt!KiSwapThread+0x42": CALL, **code}
    scene = replace(scene, bugcheck=replace(scene.bugcheck, registers=registers), code=code)

    def entry(image: Image) -> None:
        # push ebp; mov ebp, esp
        image.memory.space.map(image.resolve("nt!IofCallDriver"), 3)
        image.write(image.resolve("nt!IofCallDriver"), b"\x55\x8b\xec")
        image.write(0xBA6E5BD8, struct.pack("<I", image.resolve("nt!KiSwapThread+0x44")))

    assert texts(stack_of(audit_of(scene, tmp_path, entry), 340))[:2] == expected


def test_the_names_of_the_post(tmp_path: Path) -> None:
    """The return address ba711870, at which Bfilter's only name near lies, keeps it: a debugger shows it too."""
    audit = audit_of(seed.scene(), tmp_path)
    assert names_of(audit).name(0xBA711870, exact=False).text == "Bfilter!ScUnInitExcludePath"
