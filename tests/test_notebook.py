"""The notebook: its cells run, and print what stands below them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from apcaudit.bulk import store, worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.outcome import Scanned, Settings
from apcaudit.bulk.records import TABLES
from docs import notebook
from tests.bulk_images import need_extra, own_cache

need_extra()

#: The hosts of each machine that the notebook builds.
HOSTS = {
    "w10": range(1, 201),
    "w11": range(201, 261),
    "w7": range(261, 294),
    "implant": range(294, 295),
    "kiosk": range(295, 301),
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own."""
    with own_cache(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


def copies(folder: Path) -> None:
    """Write the results of 300 hosts: each machine is scanned once, and those of its copies are the same rows."""
    from pyarrow import array, parquet

    settings = Settings(folder / "scanned", offline=True)
    for kind, hosts in HOSTS.items():
        outcome = worker.scan(Evidence(folder / "kinds" / f"{kind}.dmp"), settings)
        assert isinstance(outcome, Scanned)
        for table in TABLES:
            rows = parquet.read_table(settings.results / outcome.image / f"{table}.parquet")
            for host in hosts:
                name = hashlib.sha256(f"{kind} {host}".encode()).hexdigest()
                changed = {"image": name, "source": f"/evidence/WKS{host:03}/memory.dmp.gz"}
                of_host = rows
                for column in changed.keys() & set(rows.column_names):
                    at = rows.column_names.index(column)
                    values = array([changed[column]] * rows.num_rows, rows.schema.field(at).type)
                    of_host = of_host.set_column(at, rows.schema.field(at), values)
                (folder / "results" / name).mkdir(parents=True, exist_ok=True)
                parquet.write_table(of_host, folder / "results" / name / f"{table}.parquet")
    shutil.rmtree(settings.results)
    assert len(store.images(folder / "results")) == 300


def test_the_notebook_prints_this(tmp_path: Path) -> None:
    """Every cell runs, and what it prints stands in the page; `python -m docs.notebook` writes it anew."""
    text = notebook.PAGE.read_text(encoding="utf-8")
    assert notebook.run(text, tmp_path, copies) == text
