"""Rules as the audit uses them: everything that the options ask for, compiled once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .engines import Compiled, RuleHit, find_engine
from .externals import External
from .options import RuleError, RuleOptions
from .sources import Source, gather, local_path, read_bytes

_COMPILED = "yara-compiled-file"


@dataclass(frozen=True, slots=True)
class Rules:
    """Compiled rules of all origins."""

    parts: tuple[Compiled, ...]

    @property
    def wants_start(self) -> bool:
        """Whether a rule may ask for a thread's start."""
        return any(part.wants_start for part in self.parts)

    def scan(self, data: bytes, externals: Mapping[str, External]) -> list[RuleHit]:
        """Scan a unit by all of them."""
        return [hit for part in self.parts for hit in part.scan(data, externals)]


# Vol asks a requirement several times whether it is met, and then the plugin runs: the last rules are kept, with
# what their sources were, so that they are compiled once.
_kept: list[tuple[object, Rules | RuleError]] = []


def compile_rules(options: RuleOptions) -> Rules:
    """Compile the rules that options ask for.

    Raises:
        RuleError: some of them cannot be used; the message says which, where and why.
    """
    sources = gather(options)
    loaded = None if options.compiled_file is None else read_bytes(options.compiled_file, _COMPILED)
    key = (tuple(sources), loaded, options.compiled_file)
    for known, result in _kept:
        if known == key:
            if isinstance(result, RuleError):
                raise result
            return result
    try:
        rules = _compile(sources, loaded, options.compiled_file or "")
    except RuleError as error:
        _kept[:] = [(key, error)]
        raise
    _kept[:] = [(key, rules)]
    return rules


def _compile(sources: list[Source], loaded: bytes | None, location: str) -> Rules:
    engine = find_engine()
    parts: list[Compiled] = []
    if sources:
        parts.append(engine.compile(sources))
    if loaded is not None:
        parts.append(engine.load(loaded, str(local_path(location) or location)))
    return Rules(tuple(parts))
