"""Builds scenes whose threads' stacks are walked, and gives the stacks."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path

from volatility3.plugins.windows.apcaudit.audit import Audit, Selection
from volatility3.plugins.windows.apcaudit.unwind import Stack

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Scene
from tests import volatility

Change = Callable[[Image], None]


def audit_of(scene: Scene, folder: Path, *changes: Change, symbols: Path | None = None) -> Audit:
    """Audit a scene's image after changes; `symbols` is a symbol file that the kernel is made by and read with."""
    image = build(scene, load_kernel(symbols or scene.kernel))
    for change in changes:
        change(image)
    path = folder / "stack.dmp"
    image.write_dump(path)
    plugin = volatility.construct(
        path,
        "windows.apcaudit.ApcAudit",
        cache=volatility.CACHE,
        symbols=(volatility.REPOSITORY_SYMBOLS if symbols is None else symbols.parents[2],),
        kernel=image.kernel,
    )
    return Audit(plugin.context, plugin.config["kernel"])


def stack_of(audit: Audit, tid: int) -> Stack:
    """Give the stack of a thread by its TID."""
    stacks = {each.thread.members.tid: each.stack for each in audit.run(Selection(clean_too=True, stacks=True))}
    found = stacks[tid]
    assert found is not None
    return found


def texts(stack: Stack) -> list[str]:
    """Give the names of a stack's frames."""
    return [frame.code.text for frame in stack.frames]


def with_symbols(
    folder: Path, added: Mapping[str, int], kernel: str = "xp-sp3-x86", pointers: Mapping[str, int] | None = None
) -> Path:
    """Write one of our kernels' symbol files with more symbols, by relative virtual address, and with more pointers.

    `pointers` are members of _KPRCB with their offsets.
    """
    pdb = load_kernel(kernel).pdb
    source = volatility.REPOSITORY_SYMBOLS / "windows" / pdb.name / f"{pdb.guid}-{pdb.age}.json.xz"
    document = json.loads(lzma.decompress(source.read_bytes()))
    for name, address in added.items():
        document["symbols"][name] = {"address": address}
    for name, offset in (pointers or {}).items():
        pointer = {"kind": "pointer", "subtype": {"kind": "base", "name": "void"}}
        document["user_types"]["_KPRCB"]["fields"][name] = {"offset": offset, "type": pointer}
    path = folder / "symbols" / "windows" / source.parent.name / source.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(json.dumps(document).encode()))
    return path
