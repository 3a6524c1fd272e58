"""Least-frequency analysis: in how many images each routine, driver, finding or rule is, the rarest first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from apcaudit.bulk.records import HIDDEN, TABLES, UNLISTED, UNLOADED
from apcaudit.bulk.store import Results
from apcaudit.errors import ApcAuditError

NO_MODULE = "<no module>"
"""Stands for all addresses outside of modules, which differ on each machine and cannot be compared."""

# Code is compared by (module, rva, name): module and offset, since modules are loaded at different addresses.
_ROUTINE = """
    SELECT DISTINCT image, coalesce({module}, '{none}') AS module, {rva} AS rva,
        -- Where an unloaded driver lay, the audit names no routine.
        CASE WHEN {module} IS NULL THEN '{none}' WHEN {routine} LIKE '0x%' OR {routine} = '{none}'
            THEN {module} || ' (unloaded)' ELSE {routine} END AS name
    FROM {table} WHERE {routine} IS NOT NULL AND {routine} <> '0x0'"""


def _routine(table: str, prefix: str) -> str:
    names = {"module": f"{prefix}_module", "rva": f"{prefix}_rva", "routine": f"{prefix}_routine"}
    return _ROUTINE.format(table="{prefix}" + table, none=NO_MODULE, **names)


# The status behind the name of code in no listed module: a hidden driver is not the listed driver of that name.
_MARK = rf"regexp_extract({{}}.name, ' \(({HIDDEN}|{UNLISTED}|{UNLOADED})\)$', 1)"

KINDS: dict[str, str] = {
    "kernel-routine": _routine("apcs", "kernel"),
    "normal-routine": _routine("apcs", "normal") + " AND kind <> 'user'",
    "start-routine": _routine("threads", "start") + " AND start_backing IS NOT NULL",
    "finding": "SELECT DISTINCT image, NULL AS module, NULL::BIGINT AS rva, code AS name FROM {prefix}findings",
    "yara": """
    SELECT DISTINCT image, NULL AS module, NULL::BIGINT AS rva, trim(rule) AS name
    FROM (SELECT image, unnest(string_split(yara, ',')) AS rule FROM {prefix}threads WHERE yara <> '')""",
    "driver": """
    SELECT DISTINCT image, lower(name) AS module, NULL::BIGINT AS rva,
        lower(name) || CASE status WHEN 'loaded' THEN '' ELSE ' (' || status || ')' END AS name
    FROM {prefix}drivers""",
}
"""The kinds that can be counted: a query for each, with a place for the prefix of the tables' names.

Equally rare things are listed in this order, drivers last: one machine may have a hundred that no other has.
"""


@dataclass(frozen=True, slots=True)
class Stacked:
    """A routine, driver, finding or rule, and the images that have it.

    `module` and `rva` (bytes) locate code; `name` is the text of the audit. `images` are named by SHA-256, `sources`
    are their files and `image_names` the short names of these, in the same order; `of` is how many images were scanned.
    """

    kind: str
    name: str
    module: str | None
    rva: int | None
    images: tuple[str, ...]
    sources: tuple[str, ...]
    image_names: tuple[str, ...]
    of: int


def tables_for(kinds: Iterable[str]) -> set[str]:
    """Return the tables that the queries of kinds read.

    Raises:
        ApcAuditError: a kind is not known.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ApcAuditError(f"{', '.join(unknown)}: can stack {', '.join(KINDS)}")
    return {table for table in TABLES if any(f"{{prefix}}{table}" in KINDS[kind] for kind in kinds)}


def stack(
    results: Results, kinds: Sequence[str] = tuple(KINDS), baseline: Results | None = None, database: Any = None
) -> list[Stacked]:
    """Count in how many images each thing is, the rarest first.

    Args:
        results: the tables that the kinds need.
        kinds: names from KINDS.
        baseline: results of machines known to be good; things in any of them are left out.
        database: a connection that has the results' tables; a new one when None.

    Raises:
        ApcAuditError: there are no results.
    """
    database = database if database is not None else results.connect()
    if baseline is not None:
        baseline.connect(prefix="baseline_", database=database)
    found = database.execute("SELECT count(*) FROM images WHERE status = 'scanned'").fetchone()
    names = results.names
    stacked: list[Stacked] = []
    for kind in kinds:
        rows = database.execute(_query(kind, with_baseline=baseline is not None)).fetchall()
        for module, rva, name, images, sources in rows:
            short = tuple(names[image] for image in images)
            stacked.append(Stacked(kind, name, module, rva, tuple(images), tuple(sources), short, found[0]))
    return sorted(stacked, key=lambda each: (len(each.images), list(KINDS).index(each.kind), each.name))


def _query(kind: str, *, with_baseline: bool) -> str:
    # Code is the same if module, the module's status and offset are the same. Its names depend on the symbols at hand,
    # so any of them is taken.
    by_place = "routine" in kind
    same = "lower(a.module) = lower(b.module) AND a.rva IS NOT DISTINCT FROM b.rva" if by_place else "a.name = b.name"
    same += f" AND {_MARK.format('a')} = {_MARK.format('b')}" if by_place else ""
    known = KINDS[kind].format(prefix="baseline_")
    only_new = f"WHERE NOT EXISTS (FROM ({known}) b WHERE {same})" if with_baseline else ""
    group = f"lower(a.module), a.rva, {_MARK.format('a')}" if by_place else "a.name"
    return f"""
    WITH a AS (SELECT * FROM ({KINDS[kind].format(prefix="")}) a {only_new}),
    -- A name a thing, and an image once a thing.
    b AS (SELECT min(module) AS module, min(rva) AS rva, min(name) AS name, image FROM a GROUP BY {group}, image)
    SELECT min(a.module), min(a.rva), min(a.name), list(image ORDER BY source, image),
        list(source ORDER BY source, image)
    FROM b a JOIN images USING (image) WHERE images.status = 'scanned' GROUP BY {group}
    """  # noqa: S608 - all of its parts are constants of this module
