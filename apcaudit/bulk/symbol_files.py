"""Parsed symbol files that several images need, kept in the process from which the child for each image is forked."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

_KEPT = 8
"""How many parsed files are kept, the first that are used often enough; none is replaced, since others would be parsed
again. The file of a Windows kernel takes 20 to 35 MiB."""

_WORTH = 2
"""The number of uses at which a file is parsed and kept, so that files that only one image needs are not."""


class SymbolFiles:
    """Replaces the modules `json` and `schemas` in vol's parser of symbol files, and returns kept files at once.

    A file is identified by its contents, so a changed file is parsed again.

    Args:
        opened: opens a symbol file by its URL, as bytes.
        valid: tells whether parsed JSON is a symbol file; takes as long as parsing.
        folders: folders of symbol files; no other URLs are opened, since a compromised child may have sent the URL.
    """

    def __init__(
        self, opened: Callable[[str], IO[bytes]], valid: Callable[[Any], bool], folders: Sequence[str]
    ) -> None:
        self._opened = opened
        self._valid = valid
        self._folders = folders
        self._uses: Counter[str] = Counter()
        self._parsed: dict[bytes, Any] = {}

    def used(self, url: str) -> bool:
        """Count a use of a file; True if this call has parsed the file and keeps it."""
        if not self._lies_there(url):
            return False
        self._uses[url] += 1
        if self._uses[url] != _WORTH or len(self._parsed) == _KEPT:
            return False
        with self._opened(url) as file:
            text = file.read()
        parsed = json.loads(text)
        if not self._valid(parsed):
            return False
        self._parsed[_digest(text)] = parsed
        return True

    def _lies_there(self, url: str) -> bool:
        parts = urllib.parse.urlsplit(url)
        path = Path(os.path.abspath(urllib.request.url2pathname(parts.path)))
        return parts.scheme == "file" and any(path.is_relative_to(os.path.abspath(each)) for each in self._folders)

    def load(self, reader: Any) -> Any:
        """Parse a file, unless it is kept; replaces json.load."""
        text = reader.read().encode()
        kept = self._parsed.get(_digest(text))
        return json.loads(text) if kept is None else kept

    def validate(self, parsed: Any) -> bool:
        """Check parsed JSON, unless it is kept; replaces schemas.validate."""
        return any(parsed is each for each in self._parsed.values()) or self._valid(parsed)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
