"""The text of YARA rules: from files, folders and strings, and those that ship."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib import parse, request

from volatility3.framework.layers import resources

from .options import RuleError, RuleOptions

SHIPPED = Path(__file__).resolve().parent.parent / "rules"

SUFFIXES = (".yar", ".yara")
"""How rule files of a folder end."""

FILES_BOUND = 20_000
"""How many rule files a folder may hold, in all of its folders."""


@dataclass(frozen=True, slots=True)
class Source:
    """One rule file or string: its text, where messages say it is, its folder for includes, the option it came by."""

    text: str
    name: str
    folder: str | None = None
    option: str | None = None


def gather(options: RuleOptions) -> list[Source]:
    """Read the rules that options ask for, compiled files excepted.

    Raises:
        RuleError: a file cannot be read, or a folder has no rules.
    """
    sources: list[Source] = []
    if options.file is not None:
        sources += _of_location(options.file)
    if options.string is not None:
        sources.append(Source(_of_string(options), "the rule of --yara-string", option="yara-string"))
    if options.defaults:
        sources += [_of_path(path, None) for path in sorted(SHIPPED.glob("*.yar"))]
    return sources


def local_path(location: str) -> Path | None:
    """Return the path that a file URL names, None for another URL."""
    url = parse.urlparse(location)
    if url.scheme == "file":
        return Path(request.url2pathname(url.path))
    return Path(location) if len(url.scheme) <= 1 else None


def read_bytes(location: str, option: str) -> bytes:
    """Read a location, unpacked as vol does with compressed files.

    Raises:
        RuleError: it cannot be read.
    """
    path = local_path(location)
    try:
        with resources.ResourceAccessor().open(location if path is None else path.resolve().as_uri(), "rb") as file:
            data: bytes = file.read()
    except OSError as error:
        raise RuleError(f"{location}: {error.strerror or error}", option) from error
    return data


def _of_location(location: str) -> list[Source]:
    path = local_path(location)
    if path is None or not path.is_dir():
        name = location if path is None else str(path)
        folder = None if path is None else str(path.parent)
        return [Source(_decoded(read_bytes(location, "yara-file"), name, "yara-file"), name, folder, "yara-file")]
    files = _rule_files(path)
    if not files:
        raise RuleError(f"{path}: no {' or '.join(SUFFIXES)} file in this folder", "yara-file")
    return [_of_path(file, "yara-file") for file in files]


def _rule_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path, folders, files in os.walk(folder):
        folders.sort()
        found += [Path(path, name) for name in sorted(files) if name.lower().endswith(SUFFIXES)]
        if len(found) > FILES_BOUND:
            raise RuleError(f"{folder}: more than {FILES_BOUND} rule files", "yara-file")
    return found


def _of_path(path: Path, option: str | None) -> Source:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RuleError(f"{path}: {error.strerror or error}", option) from error
    return Source(_decoded(data, str(path), option), str(path), str(path.parent), option)


def _decoded(data: bytes, name: str, option: str | None) -> str:
    if data.startswith(b"YARA"):
        raise RuleError(f"{name}: these rules are compiled: give them with --yara-compiled-file", option)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RuleError(f"{name}:{line}: rules have to be UTF-8", option) from error


def _of_string(options: RuleOptions) -> str:
    """Make the rule that vol's yarascan makes of a string: text, { hexadecimal } or /regular expression/."""
    pattern = options.string or ""
    if not pattern.startswith(("{", "/")):
        pattern = f'"{pattern}"'
    if options.insensitive:
        pattern += " nocase"
    if options.wide:
        pattern += " wide ascii"
    return f"rule r1 {{strings: $a = {pattern} condition: $a}}"
