"""Stock Volatility reads the user spaces that were planted: page tables, VADs, modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import OWN, load_kernel
from apcaudit.synthetic.scenes import injection
from tests.volatility import CACHE, construct, rows


@pytest.fixture(scope="module", params=OWN)
def injected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The smallest machine with a user space; also how to read it."""
    kernel = load_kernel(request.param)
    image = build(injection.scene(), kernel)
    path = tmp_path_factory.mktemp(kernel.name) / "image.dmp"
    image.write_dump(path)
    return path, {"cache": CACHE, "kernel": kernel}


def test_vads(injected: tuple[Path, dict[str, Any]]) -> None:
    """Stock vadinfo lists the program, its DLL, its private memory and the shared page, each as it was declared."""
    path, how = injected
    found = [row for row in rows(path, "windows.vadinfo.VadInfo", **how) if row["PID"] == 1500]
    files = {row["File"]: (row["Tag"], row["Protection"], row["PrivateMemory"]) for row in found if row["File"]}
    assert files == {
        "\\Windows\\System32\\notepad.exe": ("Vad ", "PAGE_EXECUTE_WRITECOPY", 0),
        "\\Windows\\System32\\ntdll.dll": ("Vad ", "PAGE_EXECUTE_WRITECOPY", 0),
    }
    private = sorted((row["Protection"], row["Tag"], row["PrivateMemory"]) for row in found if not row["File"])
    assert private == [
        ("PAGE_EXECUTE_READWRITE", "VadS", 1),
        ("PAGE_READONLY", "VadS", 1),
        ("PAGE_READWRITE", "VadS", 1),
        ("PAGE_READWRITE", "VadS", 1),
    ]


def test_memory_at_the_target(injected: tuple[Path, dict[str, Any]]) -> None:
    """What the APC would run is read through the process's own page tables, and only through those."""
    path, how = injected
    plugin = construct(path, "windows.pslist.PsList", **how)
    processes = {
        int(each.UniqueProcessId): each for each in plugin.list_processes(plugin.context, plugin.config["kernel"])
    }
    vad = next(each for each in processes[1500].get_vad_root().traverse() if int(each.Protection or 0) == 6)
    layer = plugin.context.layers[processes[1500].add_process_layer()]
    assert layer.read(vad.get_start(), 10) == bytes.fromhex("fc4883e4f0e8c8000000")
    other = plugin.context.layers[processes[4].add_process_layer()]
    assert not other.is_valid(vad.get_start())
