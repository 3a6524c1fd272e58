"""Text from files and images on its way to a terminal: the one place where it becomes harmless."""

from __future__ import annotations

from apcaudit.reports.visible import visible


def one_line(text: str) -> str:
    r"""Return the text with all that could act on a terminal, or begin another line, as `\xNN` or `\uNNNN`."""
    return str(visible(text)).replace("\n", "\\x0a")
