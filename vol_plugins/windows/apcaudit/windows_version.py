"""Which Windows the image is of, by the kernel's own variables."""

from __future__ import annotations

from .memory import Memory
from .structures import read_member
from .symbols import KernelSymbols

# Where the kernel sees KUSER_SHARED_DATA (WDK, KI_USER_SHARED_DATA), by size of a pointer.
SHARED_DATA = {4: 0xFFDF0000, 8: 0xFFFFF78000000000}

_BUILD_MASK = 0xFFFF  # nt!NtBuildNumber has 0xF or 0xC (free, checked) in its highest bits (WRK, init/initos.c)


def read_build(memory: Memory, symbols: KernelSymbols) -> int | None:
    """Return the build number, 19041 say: nt!NtBuildNumber, or nt!NtBuildLab (`2600.xpsp_sp3_gdr...`)."""
    number, lab = symbols.address("NtBuildNumber"), symbols.address("NtBuildLab")
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
    build = read_build(memory, symbols)
    return (major, minor, build) if major and minor is not None and build else None
