"""Which Windows the image is of, by the kernel's own variables."""

from __future__ import annotations

from collections.abc import Callable

from .memory import Memory
from .structures import read_member
from .symbols import KernelSymbols

# Where the kernel sees KUSER_SHARED_DATA (WDK, KI_USER_SHARED_DATA), by size of a pointer.
SHARED_DATA = {4: 0xFFDF0000, 8: 0xFFFFF78000000000}

_BUILD_MASK = 0xFFFF  # nt!NtBuildNumber has 0xF or 0xC (free, checked) in its highest bits (WRK, init/initos.c)


def read_build(memory: Memory, address_of: Callable[[str], int | None]) -> int | None:
    """Return the build number, 19041 say: nt!NtBuildNumber, or nt!NtBuildLab (`2600.xpsp_sp3_gdr...`).

    Args:
        memory: the image.
        address_of: virtual address of a symbol of the kernel, None for one that it lacks.
    """
    number, lab = address_of("NtBuildNumber"), address_of("NtBuildLab")
    data = None if number is None else memory.read(number, 4)
    build = 0 if data is None else int.from_bytes(data, "little") & _BUILD_MASK
    if not build and lab is not None:
        digits = (memory.read(lab, 8) or b"").partition(b".")[0]
        build = int(digits) if digits.isdigit() else 0
    return build or None


def read_version(memory: Memory, symbols: KernelSymbols) -> tuple[int, int, int] | None:
    """Return (major, minor, build), None unless all of them can be read."""
    address = SHARED_DATA[memory.pointer_size]
    major, minor = (
        read_member(memory, symbols, "_KUSER_SHARED_DATA", name, address)
        for name in ("NtMajorVersion", "NtMinorVersion")
    )
    build = read_build(memory, symbols.address)
    return (major, minor, build) if major and minor is not None and build else None
