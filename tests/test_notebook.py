"""The notebook: its cells run, and print what stands below them."""

from __future__ import annotations

from pathlib import Path

from docs import notebook
from tests.bulk_images import indexed, need_extra, own_cache
from tests.volatility import put_index

need_extra()


def test_the_notebook_prints_this(tmp_path: Path) -> None:
    """Every cell runs, and what it prints stands in the page; `python -m docs.notebook` writes it anew."""
    text = notebook.PAGE.read_text(encoding="utf-8")
    (tmp_path / ".cache").mkdir()
    put_index(tmp_path / ".cache")
    with own_cache(indexed(tmp_path / "cache")):
        assert notebook.run(text, tmp_path, notebook.copies) == text
    # That all of them can be read a cell says: it counts in how many of 300 images a routine is.
    assert len(list((tmp_path / "results").iterdir())) == 300
    assert "of 300  kernel-routine" in text
