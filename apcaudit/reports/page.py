"""The page: template, style and script in one file that loads nothing else, and its content security policy."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files
from typing import Any

import apcaudit
from apcaudit.bulk.extra import load
from apcaudit.reports import chain, diagram, guide, made, matrix, prevalence, summary
from apcaudit.reports.dataset import WORST_FIRST, Dataset, rank
from apcaudit.text import seams, visible

_FINDINGS = 5000
"""How many findings the page's table has, the most severe; more would make it slow, and `apcaudit export` has all."""

_CHAINS = 300

_OPEN = 3
"""How many of the first chains show at once what was found."""

MARKS = {"critical": "◆", "high": "▲", "medium": "■", "low": "●", "info": "○"}
"""The shape shown for each severity, since colour alone is not enough."""


def render(dataset: Dataset, title: str) -> str:
    """Make the page.

    Args:
        dataset: what it shows.
        title: what it is about: the results' folder or the image.
    """
    template = _template()
    safe = template.environment.filters["safe"]
    style, script = _asset("report.css"), _asset("report.js")
    chains = chain.make_chains(dataset)
    sources = {each.image: each.source for each in dataset.images}
    findings = sorted(dataset.findings, key=lambda each: (rank(each.severity), sources.get(each.image, ""), each.image))
    laid_out = matrix.lay_out(dataset)
    explained = guide.guidance((column.code, column.severity) for column in laid_out.columns)
    page: str = template.render(
        title=title,
        policy=policy(style, script),
        # Not from an image; HTML has no escapes within the elements style and script.
        style=safe(style),
        script=safe(script),
        summary=summary.summarize(dataset),
        dataset=dataset,
        names=dataset.names,
        chains=[(each, diagram.draw(each)) for each in chains[:_CHAINS]],
        chains_left_out=max(0, len(chains) - _CHAINS),
        matrix=laid_out,
        charts=prevalence.charts(dataset),
        explained=[(each, safe(each.means), safe(each.check)) for each in explained],
        known={each.code for each in explained},
        ways=made.ways(dataset),
        symbol_files=made.symbol_files(dataset),
        version=apcaudit.__version__,
        findings=findings[:_FINDINGS],
        findings_left_out=max(0, len(findings) - _FINDINGS),
    )
    return page


@functools.cache
def _template() -> Any:
    """Compile the template, once for all reports: that takes longer than to fill it in."""
    jinja2 = load("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # Applied to every value before it is escaped, so that no template can forget it.
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": summary.moment,
        "address": address,
        "about": guide.anchor,
        "number": "{:,}".format,
        "seams": seams,
    }
    environment.globals |= {"marks": MARKS, "severities": WORST_FIRST, "rank": rank, "opened": _OPEN}
    return environment.get_template("report.html.j2")


def policy(style: str, script: str) -> str:
    """Return the content security policy: nothing is loaded, and only this style and this script apply."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none';"
        " form-action 'none'"
    )


def address(value: int | None) -> str:
    """Format an address in hexadecimal, None as an empty text."""
    return "" if value is None else f"{value:#x}"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")
