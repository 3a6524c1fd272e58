"""What rules include: by whatever spelling, with either engine, no file is opened that they may not include."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.signatures import rules as engines
from volatility3.plugins.windows.apcaudit.signatures.options import RuleError, RuleOptions
from volatility3.plugins.windows.apcaudit.signatures.sources import gather

from tests.canaries import NO_FILES, Canary, canary, no_file
from tests.signed_drivers import only, write
from tests.yara_engines import ENGINES, NOTHING, imported


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> engines.Engine:
    """Each engine that can be imported."""
    return imported(request.param)


@pytest.fixture
def forbidden(tmp_path: Path) -> Iterator[Canary]:
    """A FIFO beside the folder of rules: whoever opens it is seen."""
    watched = tmp_path / "watched"
    watched.mkdir()
    (tmp_path / "rules").mkdir()
    with canary(tmp_path / "canary.yar", watched) as made:
        yield made


A = "rule a { condition: true }"

#: How rules may ask for what they may not have; FILE is the canary's path. Where an engine does not know a spelling, it
#: is an error as well.
SPELLINGS = {
    "behind a rule": f'{A} include "FILE"',
    "between rules": f'{A} include "FILE" rule b {{ condition: true }}',
    "on the next line": f'{A}\ninclude\n"FILE"',
    "without a space": f'{A}\ninclude"FILE"',
    "behind a comment": f'{A} /* include */ include "FILE"',
    "a comment between": f'{A} include/**/"FILE"',
    "a comment that quotes between": f'{A} include /* "part.yar" */ "FILE"',
    "a comment to the end of the line between": f'{A} include // "part.yar"\n"FILE"',
    "three quotes": f'{A} include """FILE"""',
    "behind an import": f'import "pe" include "FILE" {A}',
    "behind a string that ends like a comment": 'rule a { meta: m = "/*" condition: true } include "FILE" // */',
    "behind a quoted quote": 'rule a { meta: m = "\\"" condition: true } include "FILE" // "',
    "behind a regular expression with a quote": 'rule a { strings: $a = /["]/ condition: $a } include "FILE" // "',
    "behind two slashes in a regular expression": 'rule a { strings: $a = /a[/][/]/ condition: $a }  include "FILE"',
    "a space that is no space": f'{A} include\u00a0"FILE"',
    "a form feed": f'{A} include\f"FILE"',
    "carriage returns": f'{A}\rinclude\r"FILE"',
    "in a rule": 'rule a { condition: include "FILE" }',
    "escaped": f'{A} include "\\x2e\\x2e/canary.yar"',
    "climbing": f'{A} include "../canary.yar"',
    "climbing twice": f'{A} include "parts/../../canary.yar"',
    "by a link to it": f'{A} include "link.yar"',
    "by a link to its folder": f'{A} include "out/canary.yar"',
    "by the file itself": f'{A} include "/proc/self/cwd/FILE"',
    "in a file that is included": f'{A} include "bad.yar"',
    "in a file two includes away": f'{A} include "worse.yar"',
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_opens_a_file_outside(
    spelling: str, engine: engines.Engine, forbidden: Canary, tmp_path: Path
) -> None:
    """However rules spell it, an include of a file outside of their folder opens nothing, and is an error."""
    folder = tmp_path / "rules"
    (folder / "parts").mkdir()
    (folder / "link.yar").symlink_to(forbidden.path)
    (folder / "out").symlink_to(tmp_path)
    write(folder, "bad.yar", f'{A.replace(" a ", " bad ")} include "{forbidden.path}"')
    write(folder, "worse.yar", 'include "bad.yar"')
    path = write(folder, "first.yar", SPELLINGS[spelling].replace("FILE", str(forbidden.path)))
    with pytest.raises(RuleError, match=r"first\.yar"):
        engine.compile(gather(only(file=path)))
    assert not forbidden.opened


@pytest.mark.parametrize("kind", NO_FILES)
def test_an_include_of_what_is_no_file(kind: str, engine: engines.Engine, tmp_path: Path) -> None:
    """What lies in the folder and is no file is not opened either; the message says what it is."""
    folder = tmp_path / "rules"
    folder.mkdir()
    write(folder, "first.yar", f'{A} include "odd.yar"')
    says = "it is not below" if kind == "a device" else f"it is {kind}"
    message = rf"first\.yar: cannot include 'odd\.yar' in line 1: {says}"
    with no_file(kind, folder / "odd.yar"), pytest.raises(RuleError, match=message):
        engine.compile(gather(only(file=str(folder / "first.yar"))))


#: What only looks like an include, and what each engine makes of it.
NO_INCLUDES = {
    "in a comment": '/* include "FILE" */ // include "FILE"\nrule a { condition: true }',
    "in a text": 'rule a { meta: m = "include \\"FILE\\"" strings: $a = "include \\"FILE\\"" condition: not $a }',
    "in a regular expression": 'rule a { strings: $a = /include "x"/ condition: not $a }',
    "in the comment of a hexadecimal string": 'rule a { strings: $a = { 41 // include "x"\n 42 } condition: not $a }',
    "in a name": "rule include_a { condition: true } rule a { condition: include_a }",
}


@pytest.mark.parametrize("case", NO_INCLUDES)
def test_what_is_no_include(case: str, engine: engines.Engine, forbidden: Canary, tmp_path: Path) -> None:
    """The word in a comment, a string or a name asks for nothing."""
    path = write(tmp_path / "rules", "first.yar", NO_INCLUDES[case].replace("FILE", str(forbidden.path)))
    hits = engine.compile(gather(only(file=path))).scan(b"x", NOTHING)
    assert "a" in [hit.rule for hit in hits]
    assert not forbidden.opened


def test_an_include_is_where_it_stands(engine: engines.Engine, tmp_path: Path) -> None:
    """What is included knows the rules before it and is known to those behind it, on one line with them as well."""
    write(tmp_path, "parts/part.yar", 'rule part { condition: first } include "deep/more.yar"')
    write(tmp_path, "parts/deep/more.yar", "rule more { condition: part }")
    text = 'import "pe"\nrule first { condition: true } include "parts/part.yar" rule last'
    text += " { condition: more and not pe.is_pe }"
    path = write(tmp_path, "whole.yar", text)
    hits = engine.compile(gather(only(file=path))).scan(b"x", NOTHING)
    assert [hit.rule for hit in hits] == ["first", "part", "more", "last"]


def test_a_private_rule_that_is_included(engine: engines.Engine, tmp_path: Path) -> None:
    """Modifiers of rules hold across an include: private ones do not hit, global ones hold for all."""
    write(tmp_path, "part.yar", "private rule inner { condition: true } global rule no { condition: filesize > 1 }")
    path = write(tmp_path, "whole.yar", 'include "part.yar" rule seen { condition: inner }')
    rules = engine.compile(gather(only(file=path)))
    assert [hit.rule for hit in rules.scan(b"xx", NOTHING)] == ["no", "seen"]
    assert rules.scan(b"x", NOTHING) == []


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"whole": 'include "whole.yar"'}, "circular"),
        ({"whole": 'include "a.yar"', "a": 'include "b.yar"', "b": 'include "a.yar"'}, "circular"),
        (
            {
                "whole": 'include "n0.yar"',
                **{f"n{each}": f'include "n{each + 1}.yar"' for each in range(40)},
                "n40": "",
            },
            "depth",
        ),
        ({"whole": f'{A}\ninclude "missing.yar"'}, r"cannot include 'missing\.yar' in line 2: there is no such file"),
        ({"whole": 'include "a.yar"', "a": "\nrule a { condition: no }"}, r"a\.yar:2: .*\(included by .*whole\.yar\)"),
        ({"whole": f'{A} include "a.yar"\nrule b {{\n condition: no }}', "a": ""}, r"whole\.yar:3: "),
        ({"whole": f'{A} include "a.yar"', "a": A}, r"a\.yar:1: duplicate.*\(included by .*whole\.yar\)"),
        ({"whole": 'include "a.yar"', "a": "rule a { condition: true } \0 rule b { condition: true }"}, "zero byte"),
    ],
)
def test_includes_that_cannot_be(files: dict[str, str], says: str, engine: engines.Engine, tmp_path: Path) -> None:
    """Circles, depths, missing and broken files: an error with file and line, and the same one with either engine."""
    for name, text in files.items():
        write(tmp_path, f"{name}.yar", text)
    with pytest.raises(RuleError, match=says) as caught:
        engine.compile(gather(only(file=str(tmp_path / "whole.yar"))))
    assert "whole.yar" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_behind_many_includes(engine: engines.Engine, tmp_path: Path) -> None:
    """A message gives the line of the file as it is, whatever was included before it."""
    write(tmp_path, "part.yar", "\n\n\n// four lines\n")
    text = 'include "part.yar" include "part.yar"\n\n\tinclude "part.yar"\nrule a { condition:\n nothing }'
    path = write(tmp_path, "whole.yar", text)
    with pytest.raises(RuleError, match=r"whole\.yar:5: "):
        engine.compile(gather(only(file=path)))


def test_text_that_is_no_ascii_before_an_include(engine: engines.Engine, tmp_path: Path) -> None:
    """An include is found by where it is in the text, whatever characters are in comments and strings before it."""
    write(tmp_path, "größe.yar", "rule part { condition: true }")
    text = '/* \u00e4\u20ac\U0001f600 */ rule a { meta: m = "\u00e9\u00e9" condition: true } include "größe.yar"'
    path = write(tmp_path, "whole.yar", text + " rule b { condition: part }")
    assert [hit.rule for hit in engine.compile(gather(only(file=path))).scan(b"x", NOTHING)] == ["a", "part", "b"]


#: More than Python calls functions within one another.
MANY = 1_200


def test_many_includes(engine: engines.Engine, tmp_path: Path) -> None:
    """An index of a large collection, each line of which includes a file, takes no longer than its lines."""
    for number in range(MANY):
        write(tmp_path, f"r{number}.yar", f"rule r{number} {{ condition: true }}")
    index = write(tmp_path, "index.yar", "".join(f'include "r{number}.yar"\n' for number in range(MANY)))
    assert len(engine.compile(gather(only(file=index))).scan(b"x", NOTHING)) == MANY


def test_an_included_rule_asks_for_the_start_whatever_its_spelling(engine: engines.Engine, tmp_path: Path) -> None:
    """That a rule asks for the start is known of what was included, not guessed from how that was spelt."""
    write(tmp_path, "part.yar", "rule part { condition: start_rva == 0x1400 }")
    for spelling in ('include   "part.yar"', 'include/**/"part.yar"', 'include // "\n "part.yar"'):
        try:
            rules = engine.compile(gather(only(file=write(tmp_path, "whole.yar", f"{A} {spelling}"))))
        except RuleError:
            continue  # a spelling that this engine does not know
        assert rules.wants_start


def test_yara_x_without_the_switch() -> None:
    """A yara-x that cannot be told to include nothing is refused, whatever the rules are."""
    from volatility3.plugins.windows.apcaudit.signatures.engines import YaraX

    class Old:
        class Compiler:
            def add_source(self, text: str) -> None: ...

    with pytest.raises(RuleError, match=r"yara-x is too old: it lacks Compiler\.enable_includes"):
        YaraX(Old)


def test_the_shipped_rules_include_nothing() -> None:
    """The rules that ship stand alone."""
    assert not any("include" in source.text for source in gather(RuleOptions()))
