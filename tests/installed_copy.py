"""What an installed copy of the project would bring into the tests of the checkout: symbol files of another state."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def other_symbol_files(own: Path, folders: Iterable[Path]) -> list[Path]:
    """Find symbol files that have the name of one of the checkout's and another content.

    Where two folders have a file for the same kernel, vol uses either: its index takes the last one that was put in,
    and it puts them in by the order of a set, which differs from process to process.

    Args:
        own: the checkout's folder of symbol files.
        folders: where vol looks for symbol files too.
    """
    names = [path.relative_to(own) for path in sorted(own.rglob("*.json.xz"))]
    others = [folder / name for folder in folders if folder.resolve() != own.resolve() for name in names]
    return [other for other in others if other.is_file() and other.read_bytes() != _own(own, other).read_bytes()]


def _own(own: Path, other: Path) -> Path:
    # windows/PDB/GUID-AGE.json.xz
    return own.joinpath(*other.parts[-3:])
