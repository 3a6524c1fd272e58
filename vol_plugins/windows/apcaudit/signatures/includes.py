"""What rule files may include: other rule files of the folder that was given, within bounds, and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from .options import RuleError
from .sources import Source

INCLUDES_BOUND = 10_000
BYTES_BOUND = 256 << 20
"""How many files rules may include, and how many bytes, all of them together: files may include one another."""

_DIRECTIVE = re.compile(r'^\s*include\s+"([^"\n]*)"', re.MULTILINE)


class Includes:
    """Reads what the sources of one compilation include; `refused` is the error where that was refused.

    Rule files come from strangers. One that includes `/etc/shadow` would show words of it in YARA's messages, and one
    that includes a device would never end.
    """

    def __init__(self, named: Mapping[str, Source]) -> None:
        self._named = named
        self._paths: dict[str, str] = {}
        self._files = 0
        self._bytes = 0
        self.refused: RuleError | None = None

    def read(self, requested: str, including: str | None, namespace: str) -> str | None:
        """Read an included file; None where it may not be or cannot be.

        Args:
            requested: the name that `include` gives it.
            including: the name of the included file that asks for it, None for the source itself.
            namespace: the source's.
        """
        source = self._named[namespace]
        root = None if source.root is None else os.path.realpath(source.root)
        path = None if root is None else self._path(requested, including, source)
        why = self._forbidden(root, path)
        if why is None and path is not None:
            try:
                with open(path, encoding="utf-8-sig") as file:
                    text = file.read()
            except (OSError, UnicodeDecodeError) as error:
                why = str(error)
            else:
                self._paths[requested] = path
                return text
        if self.refused is None:
            self.refused = RuleError(f"{source.name}: cannot include {requested!r}: {why}", source.option)
        return None

    def _forbidden(self, root: str | None, path: str | None) -> str | None:
        """Say why a path may not be included, None where it may; what may is counted."""
        if root is None or path is None:
            return "these rules are in no folder"
        if path != root and not path.startswith(root.rstrip(os.sep) + os.sep):
            return f"it is not below {root}"
        if not os.path.isfile(path):
            return "there is no such file"
        self._files += 1
        self._bytes += os.path.getsize(path)
        return (
            "the rules include more than is taken"
            if self._files > INCLUDES_BOUND or self._bytes > BYTES_BOUND
            else None
        )

    def check(self, namespace: str) -> None:
        """Read all that a source includes, for an engine that reads it by itself.

        Raises:
            RuleError: it may not be included, or cannot be read.
        """
        pending: list[tuple[str, str | None]] = [(self._named[namespace].text, None)]
        while pending:
            text, including = pending.pop()
            for requested in _DIRECTIVE.findall(text):
                included = self.read(requested, including, namespace)
                if included is None:
                    raise self.refused or RuleError(f"cannot include {requested!r}")
                pending.append((included, requested))

    def _path(self, requested: str, including: str | None, source: Source) -> str:
        beside = os.path.dirname(self._paths.get(including or "", ""))
        folders = [folder for folder in (beside, source.folder) if folder]
        paths = [os.path.realpath(os.path.join(folder, requested)) for folder in folders]
        return next((path for path in paths if os.path.isfile(path)), paths[-1])
