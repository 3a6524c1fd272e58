"""The process that runs the plugin is its user's: rows may be stopped or kept, and nothing in it stays changed."""

from __future__ import annotations

import gc
from pathlib import Path

from tests import bulk_images
from tests.volatility import construct


def test_the_collector_is_as_it_was_while_rows_come(tmp_path: Path) -> None:
    """Between two rows the garbage collector is the user's own: nothing is frozen, it runs, and as often as before."""
    plugin = construct(
        bulk_images.write(tmp_path / "seed.dmp", "seed"), "windows.apcaudit.ApcAudit", cache=tmp_path / "cache"
    )
    grid = plugin.run()

    def state() -> tuple[object, ...]:
        return gc.get_freeze_count(), gc.isenabled(), gc.get_threshold()

    before = state()
    seen: list[tuple[object, ...]] = []
    grid.populate(lambda _node, _: seen.append(state()), None)
    assert seen
    assert set(seen) == {before}
