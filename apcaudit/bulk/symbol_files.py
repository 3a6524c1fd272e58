"""Symbol files that several images need: parsed and checked once, by the process from which each image's is forked."""

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
"""So many are kept, the first that are worth it: to take turns would be to parse again.

That of a Windows kernel takes 20 to 35 MiB when it is parsed.
"""

_WORTH = 2
"""The use at which a file is parsed to be kept: where each image has a Windows of its own, none is for nothing."""


class SymbolFiles:
    """Stands before vol's parser of symbol files, in the place of the modules `json` and `schemas`.

    A file is known by its contents: one that was changed is parsed anew.

    Args:
        opened: opens a symbol file, by its URL, for bytes.
        valid: tells whether what was parsed is a symbol file; takes as long as parsing.
        folders: where symbol files lie; others are not opened, since an image may have said which.
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
        """Count a use of a file; True when the file was parsed, to be kept."""
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
        """Parse a file, unless it is kept; takes the place of json.load."""
        text = reader.read().encode()
        kept = self._parsed.get(_digest(text))
        return json.loads(text) if kept is None else kept

    def validate(self, parsed: Any) -> bool:
        """Check what was parsed, unless it is kept; takes the place of schemas.validate."""
        return any(parsed is each for each in self._parsed.values()) or self._valid(parsed)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
