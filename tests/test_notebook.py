"""The notebook: its cells run, and print what stands below them."""

from __future__ import annotations

from pathlib import Path

from apcaudit.bulk import store
from docs import notebook
from tests.bulk_images import indexed, need_extra, own_cache

need_extra()


def test_the_notebook_prints_this(tmp_path: Path) -> None:
    """Every cell runs, and what it prints stands in the page; `python -m docs.notebook` writes it anew."""
    text = notebook.PAGE.read_text(encoding="utf-8")
    with own_cache(indexed(tmp_path / "cache")):
        assert notebook.run(text, tmp_path, notebook.copies) == text
    assert len(store.images(tmp_path / "results")) == 300
