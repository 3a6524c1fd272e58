"""Write the symbol files of synthetic kernels.

python -m apcaudit.synthetic.isf            rewrites the repository's symbols/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from apcaudit.synthetic import intermediate, kernels
from apcaudit.synthetic.kernels import Kernel


def relative_path(kernel: Kernel) -> Path:
    """Name a kernel's symbol file below a symbol directory, as Volatility looks for it."""
    return Path("windows", kernel.pdb.name, f"{kernel.pdb.guid}-{kernel.pdb.age}.json.xz")


def content(kernel: Kernel, source: str, *, preset: int = 9) -> bytes:
    """Make the symbol file of a kernel, packed with one of xz's presets; the same facts give the same bytes."""
    version = (*kernel.version, 0)
    addresses = {} if kernel.name in kernels.TYPES_ONLY else kernel.addresses
    document = intermediate.to_document(kernel.layout, addresses, kernel.pdb, version, source)
    return intermediate.pack(document, preset=preset)


def write_own(directory: Path) -> list[Path]:
    """Write the symbol files of all our kernels below a symbol directory."""
    names = (*kernels.OWN, *kernels.TYPES_ONLY)
    return [_write(kernels.load_kernel(name), kernels.own_layout(name)[1], directory) for name in names]


def write_derived(kernel: Kernel, directory: Path) -> Path:
    """Write the symbol file of a kernel that was loaded from a types-only file; it is packed fast, not small."""
    return _write(kernel, f"layouts of {kernel.name}", directory, preset=1)


def _write(kernel: Kernel, source: str, directory: Path, *, preset: int = 9) -> Path:
    path = directory / relative_path(kernel)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(kernel, source, preset=preset))
    return path


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the symbol files of all our kernels."""
    parser = argparse.ArgumentParser(
        prog="python -m apcaudit.synthetic.isf", description="Write the symbol files of the synthetic kernels."
    )
    default = Path(__file__).parents[2] / "symbols"
    parser.add_argument("directory", type=Path, nargs="?", default=default, help="symbol directory (default: symbols/)")
    for path in write_own(parser.parse_args(arguments).directory):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
