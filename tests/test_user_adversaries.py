"""What is done to user spaces is in the image as its name says, by what stock Volatility makes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apcaudit.synthetic import situations
from apcaudit.synthetic import user_adversaries as adversaries
from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.situations import owners
from tests import volatility
from tests.user_damage import MORE, damage, pids_of


@dataclass(frozen=True)
class Damaged:
    """A machine on which every process has had something else done to it."""

    image: Image
    path: Path
    how: dict[str, Any]
    pids: dict[str, int]

    def layers(self) -> dict[str, Any]:
        """Return the address space of every process by its name."""
        plugin = volatility.construct(self.path, "windows.pslist.PsList", **self.how)
        listed = plugin.list_processes(plugin.context, plugin.config["kernel"])
        names = {pid: name for name, pid in self.pids.items()}
        found = {names.get(int(each.UniqueProcessId)): each.add_process_layer() for each in listed}
        return {name: plugin.context.layers[layer] for name, layer in found.items() if name}


@pytest.fixture(scope="module", params=["xp-sp3-x86", "7-sp1-x64", "10-19041-x64"])
def damaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    """Do all of it on one machine a kernel."""
    kernel = load_kernel(request.param)
    image = build(situations.of(kernel, situations.USER_SITUATIONS), kernel)
    pids = pids_of(image)
    damage(image, pids)
    path = tmp_path_factory.mktemp(request.param) / "image.dmp"
    image.write_dump(path)
    return Damaged(image, path, {"cache": volatility.CACHE, "kernel": kernel}, pids)


def test_trees(damaged: Damaged) -> None:
    """Circles are walked once, a tree that leads into another's has that one's too, and the crowds are all there."""
    rows = volatility.rows(damaged.path, "windows.vadinfo.VadInfo", **damaged.how)
    found = Counter(row["Process"] for row in rows)
    planted = {name: len(damaged.image.vads(pid)) for name, pid in damaged.pids.items()}
    expected = {name: count + MORE.get(name, 0) for name, count in planted.items()}
    expected[owners.INJECTED] += planted[owners.PROTECTED]
    # Without their tags vol takes none for a VAD; nor a root that is no kernel address.
    expected[owners.UNLOADED] = expected[owners.MANAGED] = 0
    assert {name: found[name] for name in expected} == expected
    ranges = {(row["Start VPN"], row["End VPN"]) for row in rows if row["Process"] == owners.LOADED}
    assert any(start > end for start, end in ranges)
    assert any(row["File"] is None and row["Process"] == owners.HOOKED and row["Tag"] == "Vad " for row in rows)


def test_address_spaces(damaged: Damaged) -> None:
    """What is paged out, leads in circles, or lies beyond the image cannot be read; what is beside it can."""
    layers, resolve = damaged.layers(), damaged.image.resolve
    sleep, loader = resolve("kernel32!SleepEx"), resolve("ntdll!LdrLoadDll")
    assert layers[owners.LOADED].is_valid(sleep)
    assert not layers[owners.PATCHED].is_valid(sleep)
    assert layers[owners.PATCHED].is_valid(damaged.image.address_of[f"peb:{damaged.pids[owners.PATCHED]}"])
    assert not layers[owners.HOOKED].is_valid(sleep)
    assert not layers[owners.HOOKED_TOO].is_valid(sleep)
    code = damaged.image.user(damaged.pids[owners.LOADED]).space.read(loader, 8)
    assert layers[owners.LOADED].read(loader, 8) == code
    assert layers[owners.EARLY_FOR_PRODUCT].read(loader, 8, pad=True) != code


def test_a_degenerate_tree_is_deeper_than_vol_follows(tmp_path: Path) -> None:
    """A list of 200 nodes is deeper than stock Volatility goes into a tree."""
    kernel = load_kernel("11-26100-x64")
    image = build(situations.of(kernel, situations.USER_SITUATIONS), kernel)
    pid = next(each.pid for each in image.scene.processes if each.name == owners.BEACON)
    adversaries.degenerate_vads(image, pid, 200)
    image.write_dump(tmp_path / "image.dmp")
    with pytest.raises(RuntimeError, match="too deep"):
        volatility.rows(
            tmp_path / "image.dmp", "windows.vadinfo.VadInfo", cache=volatility.CACHE, kernel=kernel, pid=[pid]
        )
