"""Rules as the audit uses them: everything that the options ask for, compiled once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..regular import path_of
from .engines import Compiled, Engine, find_engine, wants_start
from .options import Broken, BrokenRulesError, RuleError, RuleOptions, counted, named
from .sources import Source, UnreadRulesError, gather, read_bytes, read_text

_COMPILED = "yara-compiled-file"
_FILE = "yara-file"


@dataclass(frozen=True, slots=True)
class Rules:
    """Compiled rules of all origins, each part to be scanned by itself.

    What cannot ask for a thread's start is a part of its own: thousands of rules need not see a driver again for
    every thread that starts in it, because a few ask where. `skipped` are the files that were passed by, `of` how many
    there are with those that were not.
    """

    parts: tuple[Compiled, ...]
    digest: str
    skipped: tuple[Broken, ...] = ()
    of: int = 0

    @property
    def note(self) -> str | None:
        """Which rule files were passed by, None where none was."""
        if not self.skipped:
            return None
        return f"YARA: {counted(len(self.skipped), self.of)} cannot be used and are skipped: {named(self.skipped)}"

    @property
    def included(self) -> dict[str, str]:
        """What rules included: texts by path."""
        return {path: text for part in self.parts for path, text in part.included.items()}


# Vol asks a requirement several times whether it is met, and then the plugin runs: the last rules are kept, with
# what their sources were, so that they are compiled once.
_kept: list[tuple[object, Rules | RuleError]] = []


def compile_rules(options: RuleOptions) -> Rules:
    """Compile the rules that options ask for.

    Raises:
        BrokenRulesError: some of them cannot be used; the message says which, where and why, of all of them.
        RuleError: nothing can be used, for another reason.
    """
    unread: tuple[Broken, ...] = ()
    try:
        sources = gather(options)
    except UnreadRulesError as error:
        sources, unread = list(error.sources), error.broken
    loaded = None if options.compiled_file is None else read_bytes(options.compiled_file, _COMPILED)
    key = (tuple(sources), unread, loaded, options.compiled_file, options.skip_broken)
    for known, result in _kept:
        if known == key:
            if isinstance(result, RuleError):
                raise result
            if _unchanged(result.included):
                return result
    _kept.clear()
    try:
        rules = _compile(options, sources, unread, loaded)
    except RuleError as error:
        # What is wrong may lie in a file that is included, and be put right there.
        if not any("include" in source.text for source in sources):
            _kept[:] = [(key, error)]
        raise
    _kept[:] = [(key, rules)]
    return rules


def _compile(options: RuleOptions, sources: Sequence[Source], unread: Sequence[Broken], loaded: bytes | None) -> Rules:
    engine = find_engine()
    parts: list[Compiled] = []
    broken = list(unread)
    for asking in (False, True):
        alike = [source for source in sources if wants_start(source.text) is asking]
        made = _part(engine, alike, broken, skip=options.skip_broken)
        parts += [] if made is None else [made]
    files = sum(source.option == _FILE for source in sources) + len(unread)
    if broken:
        broken.sort(key=lambda each: each.name)
        if not options.skip_broken or len(broken) == files or any(each.option != _FILE for each in broken):
            raise BrokenRulesError(broken, of=files)
    if loaded is not None:
        parts.append(engine.load(loaded, str(path_of(options.compiled_file or "") or options.compiled_file)))
    return Rules(tuple(parts), _digest(sources, parts, broken, loaded), tuple(broken), files)


def _part(engine: Engine, sources: Sequence[Source], broken: list[Broken], *, skip: bool) -> Compiled | None:
    """Compile rules together, where they are to be skipped without what cannot be; None where nothing is left."""
    try:
        return engine.compile(sources) if sources else None
    except BrokenRulesError as error:
        broken += error.broken
        usable = [source for number, source in enumerate(sources) if number not in error.at]
    return engine.compile(usable) if skip and usable else None


def _digest(
    sources: Sequence[Source], parts: Sequence[Compiled], broken: Sequence[Broken], loaded: bytes | None
) -> str:
    """Tell rules from others by what was compiled: texts, what these include, and what was skipped."""
    digest = hashlib.sha256()
    included = [text for part in parts for _, text in sorted(part.included.items())]
    for text in (*(source.text for source in sources), *included, *map(str, broken)):
        digest.update(f"{len(text)}:{text}".encode())
    digest.update(loaded or b"")
    return digest.hexdigest()


def _unchanged(included: Mapping[str, str]) -> bool:
    try:
        return all(read_text(path) == text for path, text in included.items())
    except (OSError, ValueError):
        return False
