"""The engine yara-x: VirusTotal's rewrite of YARA."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from . import engines
from .externals import AT_COMPILATION, External
from .includes import Includes
from .options import RuleError
from .sources import Source

_PLACE = re.compile(r"--> (.*):(\d+):\d+")


class YaraX:
    """Compiles and loads rules by yara-x."""

    name = "yara-x"
    magic = b"YARA-X"

    def __init__(self, module: Any) -> None:
        self._yara_x = module

    def compile(self, sources: Sequence[Source]) -> CompiledByYaraX:
        """Compile rules together."""
        # Collections that were written for YARA escape more than they need to in regular expressions.
        compiler = self._yara_x.Compiler(relaxed_re_syntax=True)
        for name, value in AT_COMPILATION.items():
            compiler.define_global(name, value)
        for folder in dict.fromkeys(source.folder for source in sources if source.folder is not None):
            compiler.add_include_dir(folder)
        includes = Includes({f"s{number}": source for number, source in enumerate(sources)})
        for number, source in enumerate(sources):
            includes.check(f"s{number}")
            compiler.new_namespace(f"s{number}")
            try:
                compiler.add_source(source.text, origin=source.name)
            except self._yara_x.CompileError as error:
                raise RuleError(_message(str(error), source), source.option) from error
        return CompiledByYaraX(
            self._yara_x, compiler.build(), any(engines.wants_start(source.text) for source in sources)
        )

    def load(self, data: bytes, name: str) -> CompiledByYaraX:
        """Take rules that yara-x has compiled."""
        engines.check_compiled(data, name, self)
        try:
            rules = self._yara_x.Rules.deserialize_from(file=io.BytesIO(data))
        except (OSError, ValueError) as error:
            raise RuleError(f"{name}: not by this version of yara-x: {error}", "yara-compiled-file") from error
        return CompiledByYaraX(self._yara_x, rules, engines.wants_start(data))


class CompiledByYaraX:
    """Rules that yara-x has compiled."""

    def __init__(self, module: Any, rules: Any, wants_start: bool) -> None:
        self.wants_start = wants_start
        self._yara_x = module
        self._rules = rules
        self._of_thread = threading.local()

    def scan(self, data: bytes | bytearray, externals: Mapping[str, External]) -> list[engines.RuleHit]:
        """Scan a unit; what the rules do not declare of the externals is passed over."""
        scanner = self._scanner()
        for name, value in externals.items():
            try:
                scanner.set_global(name, value)
            except ValueError:
                continue
        try:
            matching = scanner.scan(bytes(data)).matching_rules  # it takes nothing else
        except self._yara_x.TimeoutError as error:
            raise engines.TimeLimitError from error
        except self._yara_x.ScanError as error:
            raise engines.ScanError(str(error)) from error
        hits = []
        for rule in matching:
            places: list[tuple[int, int]] = []
            for pattern in rule.patterns:
                kept = islice(pattern.matches, engines.MATCHES_KEPT)
                places += [(match.offset, match.length) for match in kept]
            hits.append(engines.RuleHit(rule.identifier, tuple(places)))
        return hits

    def _scanner(self) -> Any:
        """Return this thread's scanner: one may not be used in another thread than it was made in."""
        scanner = getattr(self._of_thread, "scanner", None)
        if scanner is None:
            scanner = self._of_thread.scanner = self._yara_x.Scanner(self._rules)
            scanner.set_timeout(engines.TIME_LIMIT)
            scanner.max_matches_per_pattern(engines.MATCHES_KEPT)
        return scanner


def _message(error: str, source: Source) -> str:
    """Put yara-x's drawing of an error into one line: file, line, and what is wrong."""
    what = re.sub(r"^error(\[\w+\])?: ", "", error.partition("\n")[0])
    place = _PLACE.search(error)
    note = re.search(r"\^+ (.*)", error)
    details = f" ({note[1]})" if note is not None else ""
    return f"{place[1]}:{place[2]}: {what}{details}" if place is not None else f"{source.name}: {what}{details}"
