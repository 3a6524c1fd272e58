"""What the guide says of the findings that a report shows: their meaning and what to check next, as HTML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from apcaudit import explain
from apcaudit.bulk.extra import load


@dataclass(frozen=True, slots=True)
class Guidance:
    """The two sections of a finding's page, as HTML that is ours: nothing of an image is in it."""

    code: str
    severity: str
    means: str
    check: str


def guidance(codes: Iterable[tuple[str, str]]) -> tuple[Guidance, ...]:
    """Return the guidance on findings.

    Args:
        codes: findings with their highest severities, in the order of the result. A finding without a page, of a later
            release for example, is left out.
    """
    known = explain.codes()
    shown = {code: severity for code, severity in codes if code in known}
    markdown = load("markdown_it").MarkdownIt("commonmark").enable("table")
    made = []
    for code, severity in shown.items():
        sections = explain.sections(code)
        means, check = (_html(markdown, sections[title], shown) for title in (explain.MEANING, explain.NEXT))
        made.append(Guidance(code, severity, means, check))
    return tuple(made)


def anchor(code: str) -> str:
    """Return the anchor of a finding's guidance in the page."""
    return f"about-{code}"


def _html(markdown: Any, text: str, shown: Iterable[str]) -> str:
    """Render a section; a link to another finding leads to its guidance in the page, where that is shown."""
    tokens = markdown.parse(text)
    for token in tokens:
        open_link = None
        for each in token.children or ():
            if each.type == "link_open":
                code = str(each.attrs["href"]).removesuffix(".md")
                if code in shown:
                    each.attrs["href"] = f"#{anchor(code)}"
                else:
                    # The text of the link stays.
                    open_link = each
                    each.tag, each.attrs = "span", {}
            elif each.type == "link_close" and open_link is not None:
                open_link, each.tag = None, "span"
        if token.type == "fence":
            token.info = ""
    html: str = markdown.renderer.render(tokens, markdown.options, {})
    return html
