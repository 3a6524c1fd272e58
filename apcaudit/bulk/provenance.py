"""What an image's results were made with: programs and versions, options, rule files, and what was not done."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from apcaudit.bulk import fingerprint
from apcaudit.bulk.outcome import Settings
from apcaudit.errors import ApcAuditError
from apcaudit.text import one_line

_LISTED = 100
"""How many rule files are listed; collections of thousands would be most of the results."""


def describe(settings: Settings) -> dict[str, Any]:
    """Return the columns of the table `images` that say what its rows were made with, the symbol file excepted."""
    digest = dict(settings.basis).get("rules")
    return {
        "versions": ", ".join(versions(settings)),
        "options": options(settings),
        "rules": _rules(settings.rules, settings.skip_broken_rules, digest),
        "not_done": "\n".join(fingerprint.lacking(settings)),
    }


def versions(settings: Settings | None = None) -> list[str]:
    """Return programs with their versions: those of a scan, and this machine's Python and system."""
    has = dict(settings.basis if settings is not None and settings.basis else fingerprint.programs())
    return [
        f"apcaudit {has.get('apcaudit', fingerprint.NONE)}",
        f"volatility3 {has.get('volatility3', fingerprint.NONE)}",
        "no YARA engine" if has.get("yara") == fingerprint.NONE else str(has.get("yara")),
        "no capstone" if has.get("capstone") == fingerprint.NONE else f"capstone {has.get('capstone')}",
        f"Python {platform.python_version()} on {platform.system() or 'an unknown system'}",
    ]


def options(settings: Settings) -> str:
    """Return the options of a scan that rows may depend on, as on a command line."""
    made = [each for folder in settings.symbols for each in ("-s", str(folder))]
    made += ["--offline"] * settings.offline + ["--scan"] * settings.scan
    if settings.rules is not None:
        made += ["--yara-file", str(settings.rules), *["--skip-broken-rules"] * settings.skip_broken_rules]
    made += ["--memory", f"{settings.memory >> 20}M", "--timeout", f"{settings.timeout:g}"]
    return shlex.join(made)


def symbol_file(url: str) -> str:
    """Return the path of a symbol file by its URL, another URL as it is."""
    parts = urlsplit(url)
    return url2pathname(parts.path) if parts.scheme == "file" and not parts.netloc else url


@functools.lru_cache(maxsize=4)
def _rules(rules: Path | None, skip_broken: bool, digest: str | None) -> str:  # noqa: ARG001 - tells changed rules apart
    """List the rule files with their SHA-256, as `sha256sum` prints them."""
    lines = [f"{_sha256(path)}  {path.name} (ships with apcaudit)" for path in sorted(fingerprint.shipped_rules())]
    if rules is not None:
        from apcaudit.bulk import framework

        top = rules if rules.is_dir() else rules.parent
        try:
            files = framework.rule_files(rules, skip_broken=skip_broken)
        except ApcAuditError as error:
            # They could be used when the scan began.
            return "\n".join([*lines, one_line(str(error))])
        lines += _bounded([f"{_sha256(path)}  {_below(path, top)}" for path in files], rules)
    return "\n".join(lines)


def _bounded(lines: list[str], rules: Path) -> Iterable[str]:
    if len(lines) <= _LISTED:
        return lines
    listed = hashlib.sha256("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")).hexdigest()
    return [f"{listed}  the list of the {len(lines):,} files in {rules}, each as above"]


def _below(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        # Windows: on another drive.
        return str(path)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"cannot be read any more ({error.strerror})"
