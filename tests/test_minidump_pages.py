"""Memory known byte by byte."""

from __future__ import annotations

from volatility3.plugins.windows.apcaudit.dumps.pages import Extent, KnownMemory


def test_first_known_stays() -> None:
    """Of overlapping extents the earlier keeps its bytes; the later fills the gaps around it."""
    memory = KnownMemory()
    assert memory.add(Extent(0x1004, 4, None, b"kept")) == 4
    assert memory.add(Extent(0x1000, 12, None, b"made up here")) == 8
    assert memory.read(0x1000, 12, lambda offset, length: b"") == b"madekepthere"
    assert memory.read(0x1000, 13, lambda offset, length: b"") is None
