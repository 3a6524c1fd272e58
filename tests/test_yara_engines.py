"""The YARA engines: which rules they take, what they say of others, and where they stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.signatures import rules as engines
from volatility3.plugins.windows.apcaudit.signatures import sources
from volatility3.plugins.windows.apcaudit.signatures.engines import YaraPython, YaraX
from volatility3.plugins.windows.apcaudit.signatures.options import RuleError
from volatility3.plugins.windows.apcaudit.signatures.rules import Start, UnitFacts, externals

from tests.signed_drivers import only, write
from tests.yara_engines import ENGINES, NOTHING, imported


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> engines.Engine:
    """Each engine that can be imported."""
    return imported(request.param)


@pytest.mark.parametrize(
    ("rules", "place"),
    [
        ("rule a { condition: true }\nrule b {\n condition: $x }", "one.yar:3: "),
        ("rule a { condition: unheard_of }", "one.yar:1: "),
        ('rule a { strings: $a = "unclosed', "one.yar:1: "),
    ],
)
def test_a_rule_that_does_not_compile(rules: str, place: str, engine: engines.Engine, tmp_path: Path) -> None:
    """The message gives file, line and reason, whichever of many files it is."""
    write(tmp_path, "all.yar", "rule z { condition: false }")
    write(tmp_path, "one.yar", rules)
    with pytest.raises(RuleError) as caught:
        engine.compile(sources.gather(only(file=str(tmp_path))))
    assert str(caught.value).startswith(str(tmp_path / place))
    assert len(str(caught.value)) > len(str(tmp_path / place))
    assert "\n" not in str(caught.value)
    assert caught.value.option == "yara-file"


def test_an_include_beside_its_file(engine: engines.Engine, tmp_path: Path) -> None:
    """A rule file includes what lies beside it, not beside whoever runs vol."""
    write(tmp_path, "parts/part.yar", "rule part { condition: true }")
    path = write(tmp_path, "parts/whole.yar", 'include "part.yar"\nrule whole { condition: part }')
    hits = engine.compile(sources.gather(only(file=path))).scan(b"x", NOTHING)
    assert [hit.rule for hit in hits] == ["part", "whole"]


def test_an_included_rule_that_asks_for_the_start(engine: engines.Engine, tmp_path: Path) -> None:
    """What a file includes may ask for the start as well as the file itself."""
    write(tmp_path, "part.yar", "rule part { condition: start_rva == 0x1400 }")
    path = write(tmp_path, "whole.yar", 'import "pe" include "part.yar"')
    rules = engine.compile(sources.gather(only(file=path)))
    assert rules.wants_start
    assert [hit.rule for hit in rules.scan(b"x", externals(UnitFacts(), Start(0x1400, 0x10)))] == ["part"]


def test_rules_of_many_files_may_have_one_name(engine: engines.Engine, tmp_path: Path) -> None:
    """Each file has a namespace of its own, and folders below a folder count; other files do not."""
    for name in ("a.yar", "deep/b.YARA", "notes.txt"):
        write(tmp_path, name, "rule same { condition: true }")
    hits = engine.compile(sources.gather(only(file=str(tmp_path)))).scan(b"x", NOTHING)
    assert [hit.rule for hit in hits] == ["same", "same"]


@pytest.mark.parametrize(
    ("string", "insensitive", "wide", "data", "hits"),
    [
        ("Secret", False, False, b"-Secret-", True),
        ("Secret", False, False, b"-secret-", False),
        ("Secret", True, False, b"-SECRET-", True),
        ("Secret", False, True, "-Secret-".encode("utf-16-le"), True),
        ("Secret", False, True, b"-Secret-", True),
        ("{ 53 65 ?? 72 }", False, False, b"-Secret-", True),
        ("/Se[ck]ret/", False, False, b"-Sekret-", True),
    ],
)
def test_a_string_as_vol_takes_it(
    string: str, insensitive: bool, wide: bool, data: bytes, hits: bool, engine: engines.Engine
) -> None:
    """--yara-string is text, hexadecimal or a regular expression, as in vol's yarascan; its rule is r1."""
    options = only(string=string, insensitive=insensitive, wide=wide)
    found = engine.compile(sources.gather(options)).scan(data, NOTHING)
    assert [hit.rule for hit in found] == (["r1"] if hits else [])


def test_compiled_files(tmp_path: Path) -> None:
    """A compiled file is taken by the engine that wrote it; the other one, and rule text, say what is wrong."""
    yara = pytest.importorskip("yara")
    rules = yara.compile(source='rule packed { strings: $a = "abc" condition: $a }')
    rules.save(str(tmp_path / "python.yarc"))
    data = (tmp_path / "python.yarc").read_bytes()
    assert [hit.rule for hit in YaraPython(yara).load(data, "python.yarc").scan(b"xabc", NOTHING)] == ["packed"]
    with pytest.raises(RuleError, match=r"x\.yarc: compiled by yara-x, but the engine in use is yara-python"):
        YaraPython(yara).load(b"YARA-X\0\0" + bytes(100), "x.yarc")
    with pytest.raises(RuleError, match=r"text.yar: no compiled YARA rules: give rule text with --yara-file"):
        YaraPython(yara).load(b"rule a { condition: true }", "text.yar")
    with pytest.raises(RuleError, match=r"damaged.yarc: not by this version of YARA"):
        YaraPython(yara).load(data[:20], "damaged.yarc")
    with pytest.raises(RuleError, match="these rules are compiled: give them with --yara-compiled-file"):
        sources.gather(only(file=str(tmp_path / "python.yarc")))


def test_compiled_files_of_yara_x(tmp_path: Path) -> None:
    """The same with yara-x."""
    yara_x = pytest.importorskip("yara_x")
    with open(tmp_path / "x.yarc", "wb") as file:
        yara_x.compile('rule packed { strings: $a = "abc" condition: $a }').serialize_into(file)
    data = (tmp_path / "x.yarc").read_bytes()
    assert [hit.rule for hit in YaraX(yara_x).load(data, "x.yarc").scan(b"xabc", NOTHING)] == ["packed"]
    with pytest.raises(RuleError, match="compiled by yara-python, but the engine in use is yara-x"):
        YaraX(yara_x).load(b"YARA\x15" + bytes(100), "python.yarc")


def test_what_collections_for_files_expect(engine: engines.Engine, tmp_path: Path) -> None:
    """Rules that ask for a file's name, path, type and owner compile, and see those of the driver."""
    text = (
        'rule named { condition: filename == "b.sys" and filepath contains "drivers" and extension == "sys"'
        ' and filetype == "" and owner == "" and driver == "b" and not hidden }'
    )
    rules = engine.compile(sources.gather(only(file=write(tmp_path, "a.yar", text))))
    known = UnitFacts("b", "\\SystemRoot\\System32\\drivers\\b.sys")
    assert [hit.rule for hit in rules.scan(b"x", externals(known, Start()))] == ["named"]


def test_the_time_limit(engine: engines.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that takes longer than the limit is given up, and that is said."""
    monkeypatch.setattr(engines, "TIME_LIMIT", 1)
    endless = "rule endless { condition: for all i in (0..100000000000) : (uint8(i % 64) == 0) }"
    rules = engine.compile(sources.gather(only(file=write(tmp_path, "a.yar", endless))))
    with pytest.raises(engines.TimeLimitError):
        rules.scan(bytes(64), NOTHING)


def test_matches_are_bounded(engine: engines.Engine, tmp_path: Path) -> None:
    """A string that is everywhere keeps so many matches, and writes nothing to stderr."""
    text = "rule zeros { strings: $a = { 00 00 } condition: $a }"
    rules = engine.compile(sources.gather(only(file=write(tmp_path, "a.yar", text))))
    (hit,) = rules.scan(bytes(2 << 20), NOTHING)
    assert len(hit.places) == engines.MATCHES_KEPT
