"""The page tables of raw memory, found before vol searches for them: those that vol's own search finds, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from volatility3.framework import contexts
from volatility3.framework.automagic import windows
from volatility3.framework.layers import physical
from volatility3.plugins.windows.apcaudit.vol.automagic import PageTableStacker

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import OWN, load_kernel
from apcaudit.synthetic.scenes import healthy

PAGE = 0x1000


def stacked(stacker: Any, path: Path) -> tuple[str, int] | None:
    """Return the class of the layer that a stacker puts on a file, and its top table; None where it puts none."""
    context = contexts.Context()
    context.config["base.location"] = path.as_uri()
    context.layers.add_layer(physical.FileLayer(context, "base", "base"))
    layer = stacker.stack(context, "base", lambda *_: None)
    return None if layer is None else (type(layer).__name__, layer.config["page_map_offset"])


def machine(kernel: str) -> Image:
    return build(healthy.scene(kernel), load_kernel(kernel))


@pytest.mark.parametrize("kernel", OWN)
def test_of_every_kernel(kernel: str, tmp_path: Path) -> None:
    """The table where the machine has it, as the layer of its processor's mode."""
    image = machine(kernel)
    image.write_raw(tmp_path / "raw")
    mode = "WindowsIntel32e" if image.kernel.is_64bit else "WindowsIntelPAE"
    assert stacked(PageTableStacker, tmp_path / "raw") == (mode, image.memory.space.mode.root)


def _no_entry_for_itself(data: bytearray, root: int, index: int) -> None:
    data[root + 8 * index : root + 8 * index + 8] = bytes(8)


def _two_entries_for_itself(data: bytearray, root: int, index: int) -> None:
    data[root + 0x900 : root + 0x908] = (root | 0x63).to_bytes(8, "little")


def _other_table_before(data: bytearray, root: int, index: int) -> None:
    """A table for itself and nothing else: KUSER_SHARED_DATA is not behind it."""
    before = 0x160000
    data[before : before + PAGE] = bytes(PAGE)
    data[before + 0x900 : before + 0x908] = (before | 0x63).to_bytes(8, "little")


def _the_same_table_before(data: bytearray, root: int, index: int) -> None:
    before = 0x160000
    data[before : before + PAGE] = data[root : root + PAGE]
    data[before + 8 * index : before + 8 * index + 8] = (before | 0x63).to_bytes(8, "little")


@pytest.mark.parametrize(
    "change",
    [_no_entry_for_itself, _two_entries_for_itself, _other_table_before, _the_same_table_before],
    ids=lambda change: change.__name__.strip("_"),
)
def test_as_vol(change: Any, tmp_path: Path) -> None:
    """Whatever the tables are like, the answer is vol's; without one vol searches by itself."""
    image = machine("10-19041-x64")
    data = bytearray(image.raw())
    mode = image.memory.space.mode
    change(data, mode.root, mode.self_index)
    (tmp_path / "raw").write_bytes(data)
    ours = stacked(PageTableStacker, tmp_path / "raw")
    assert ours == stacked(windows.WindowsIntelStacker, tmp_path / "raw")
    assert (ours is None) == (change in (_no_entry_for_itself, _two_entries_for_itself))


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, 0x150000, 0x151001])
def test_no_memory(size: int, tmp_path: Path) -> None:
    """A file that is too short for any table, or that ends in the ranges, has none."""
    (tmp_path / "raw").write_bytes(bytes(size) or b"x")
    assert stacked(PageTableStacker, tmp_path / "raw") is None
