"""The seed's scene has the post's values at the post's addresses."""

from __future__ import annotations

import struct

import pytest

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import seed


@pytest.fixture(scope="module")
def image() -> Image:
    """The seed's scene, built."""
    scene = seed.scene()
    return build(scene, load_kernel(scene.kernel))


#: The post's table of values: address and what lies there.
VALUES = [
    (0x8AB54388 + 0x34, "<I", 0x8A3F6254),  # ApcState.ApcListHead[Kernel].Flink
    (0x8AB54388 + 0x48, "<B", 0),  # KernelApcInProgress
    (0x8AB54388 + 0x49, "<B", 1),  # KernelApcPending
    (0x8AB54388 + 0x165, "<B", 1),  # ApcStateIndex
    (0x8AB54388 + 0x44, "<I", 0x8A6BDBB0),  # ApcState.Process: BAVSvc.exe
    (0x8AB54388 + 0x224, "<I", 0xBA7118A0),  # StartAddress
    (0x8A3F6248, "<H", 0x12),  # KAPC.Type
    (0x8A3F6248 + 0x8, "<I", 0x8AB54388),  # KAPC.Thread
    (0x8A3F6254, "<I", 0x8AB543BC),  # KAPC.ApcListEntry.Flink: the head
    (0x8A3F6208, "<H", 6),  # the IRP around the KAPC: Type
]


@pytest.mark.parametrize(("address", "form", "expected"), VALUES)
def test_values_of_the_post(image: Image, address: int, form: str, expected: int) -> None:
    """Every value that the post gives is at its address (XP SP3's offsets as the post uses them)."""
    assert struct.unpack(form, image.read(address, struct.calcsize(form))) == (expected,)


@pytest.mark.parametrize(("name", "address"), seed.RETURN_ADDRESSES.items())
def test_return_addresses_resolve_as_in_the_post(image: Image, name: str, address: int) -> None:
    """The post's return addresses are the functions and offsets that it shows."""
    assert image.resolve(name) == address
    module, _, rest = name.partition("!")
    symbol = rest.partition("+")[0]
    between = [
        other
        for other, rva in image.kernel.addresses.items()
        if module == "nt" and image.kernel.address(symbol) < image.kernel.base + rva <= address
    ]
    assert between == []


def test_stack_of_the_post(image: Image) -> None:
    """Walking EBP from the crash gives the post's return addresses, in order."""
    frame, returns = 0xBA6E5BE0, []
    while frame:
        frame, return_address = struct.unpack("<II", image.read(frame, 8))
        returns.append(return_address)
    assert returns == [0x80508D2F, 0x8062CFD8, 0xF745664D, 0xBA711870, 0x80576320, 0x804EC7B9]


def test_crash_of_the_post(image: Image) -> None:
    """The dump says bugcheck 0x6 with four zero arguments, and the thread runs on the only processor."""
    assert struct.unpack_from("<5I", image.dump(), 0x28) == (6, 0, 0, 0, 0)
    current = image.memory.read(image.address_of["kprcb:0"], "_KPRCB", "CurrentThread")
    assert current & 0xFFFFFFFF == 0x8AB54388
