"""Rules as the audit uses them: everything that the options ask for, compiled once."""

from __future__ import annotations

from dataclasses import dataclass

from .engines import Compiled, find_engine, wants_start
from .options import RuleError, RuleOptions
from .sources import Source, gather, local_path, read_bytes

_COMPILED = "yara-compiled-file"


@dataclass(frozen=True, slots=True)
class Rules:
    """Compiled rules of all origins, each part to be scanned by itself.

    What cannot ask for a thread's start is a part of its own: thousands of rules need not see a driver again for
    every thread that starts in it, because a few ask where.
    """

    parts: tuple[Compiled, ...]


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
    for asking in (False, True):
        alike = [source for source in sources if wants_start(source.text) is asking]
        if alike:
            parts.append(engine.compile(alike))
    if loaded is not None:
        parts.append(engine.load(loaded, str(local_path(location) or location)))
    return Rules(tuple(parts))
