"""Rules and symbol files are input too: what they may not do, and the clear error or bounded run instead."""

from __future__ import annotations

import gzip
import io
import json
import lzma
from importlib import import_module
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.dumps.kernel_match import SymbolCache
from volatility3.plugins.windows.apcaudit.formats import symbol_file
from volatility3.plugins.windows.apcaudit.signatures import rules as engines
from volatility3.plugins.windows.apcaudit.signatures import sources
from volatility3.plugins.windows.apcaudit.signatures.engines import YaraPython
from volatility3.plugins.windows.apcaudit.signatures.options import RuleError, RuleOptions
from volatility3.plugins.windows.apcaudit.signatures.sources import Source, gather

from tests.yara_engines import ENGINES, NOTHING, imported

SECRET = "root_of_all_secrets"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> engines.Engine:
    """Each engine that can be imported."""
    return imported(request.param)


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yar").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["absolute", "climbing", "by a link"])
def test_an_include_of_what_is_not_there_for_it(kind: str, engine: engines.Engine, tmp_path: Path) -> None:
    """Rules include nothing outside of the folder that was given, and no word of it reaches the message."""
    outside = tmp_path / "outside.txt"
    outside.write_text(f"rule {SECRET} {{", encoding="utf-8")
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "link.yar").symlink_to(outside)
    named = {"absolute": str(outside), "climbing": "../outside.txt", "by a link": "link.yar"}[kind]
    write(folder, first=f'include "{named}"\nrule a {{ condition: true }}')
    with pytest.raises(RuleError, match=r"first\.yar: cannot include .* not below") as caught:
        engine.compile(gather(RuleOptions(defaults=False, file=str(folder / "first.yar"))))
    assert SECRET not in str(caught.value)


def test_an_include_from_another_folder_of_the_collection(tmp_path: Path) -> None:
    """Below the folder that was given, files include one another, also from one of its folders to another."""
    (tmp_path / "sub").mkdir()
    write(tmp_path, common="rule common { condition: true }")
    write(tmp_path / "sub", own='include "../common.yar"\nrule own { condition: common }')
    compiled = YaraPython(import_module("yara")).compile(
        [each for each in gather(RuleOptions(defaults=False, file=str(tmp_path))) if "own" in each.name]
    )
    assert [hit.rule for hit in compiled.scan(b"x", NOTHING)] == ["common", "own"]


def test_includes_that_multiply(engine: engines.Engine, tmp_path: Path) -> None:
    """Files that each include the next one many times over are refused once they are more than any collection has."""
    files = {f"n{number}": f'include "n{number + 1}.yar"\n' * 30 for number in range(8)}
    write(tmp_path, **files, n8="")
    with pytest.raises(RuleError, match="more files or characters than the limit"):
        engine.compile(gather(RuleOptions(defaults=False, file=str(tmp_path / "n0.yar"))))


def test_an_include_in_a_rule_of_the_command_line(engine: engines.Engine) -> None:
    """A rule that is no file has no folder to include from."""
    with pytest.raises(RuleError, match="in no folder"):
        engine.compile([Source('include "/etc/hostname"\nrule a { condition: true }', "the string")])


def test_strings_that_match_everywhere(engine: engines.Engine) -> None:
    """Strings that match a million times each end the scan of the unit, or are cut: nobody keeps all of them."""
    names = [f"$a{number}" for number in range(engines.FLOODS_BOUND + 2)]
    strings = " ".join(
        f'{name} = "A"' if not number else f"{name} = {{ 41 {'?? ' * number}41 }}" for number, name in enumerate(names)
    )
    rules = engine.compile([Source(f"rule flood {{ strings: {strings} condition: any of them }}", "flood")])
    data = b"A" * 1_100_000
    if isinstance(engine, YaraPython):
        with pytest.raises(engines.ScanError, match="match a million times"):
            rules.scan(data, NOTHING)
    else:
        assert len(rules.scan(data, NOTHING)[0].places) <= len(names) * engines.MATCHES_KEPT


def test_a_packed_rule_file_that_is_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a packed rule file no more is unpacked than the bound, here a smaller one."""
    monkeypatch.setattr(sources, "SIZE_BOUND", 8 << 20)
    path = tmp_path / "bomb.yar.gz"
    path.write_bytes(gzip.compress(bytes(9 << 20)))
    with pytest.raises(RuleError, match="more than 8 MiB"):
        gather(RuleOptions(defaults=False, file=path.as_uri()))


def test_a_damaged_packed_rule_file(tmp_path: Path) -> None:
    """A packed rule file that ends in the middle is an error with its name."""
    path = tmp_path / "cut.yar.gz"
    path.write_bytes(gzip.compress(b"rule a { condition: true }" * 100)[:40])
    with pytest.raises(RuleError, match=r"cut\.yar\.gz"):
        gather(RuleOptions(defaults=False, file=path.as_uri()))


BAD = {
    "no JSON": (b"no json at all", "no JSON"),
    "no text": (b"\xff\xfe\xfd", "no JSON"),
    "a list": (b"[]", "no JSON object"),
    "too deep": (b"[" * 200_000, "too deep"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_symbol_file_that_is_none(case: str) -> None:
    """A symbol file that is no JSON object is one error, whatever it is instead."""
    content, says = BAD[case]
    with pytest.raises(symbol_file.SymbolFileError, match=says):
        symbol_file.load(io.BytesIO(content))


def test_a_symbol_file_that_is_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a packed symbol file no more is unpacked than the bound, here a smaller one."""
    monkeypatch.setattr(symbol_file, "SIZE_BOUND", 8 << 20)
    packed = lzma.compress(bytes(9 << 20), preset=0)
    with lzma.open(io.BytesIO(packed)) as stream, pytest.raises(symbol_file.SymbolFileError, match="more than 8 MiB"):
        symbol_file.load(stream)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_symbol_file_that_is_damaged(damage: str) -> None:
    """A packed symbol file that is cut or changed is the same one error."""
    packed = bytearray(lzma.compress(json.dumps({"symbols": {}}).encode() * 50))
    packed = packed[:-40] if damage == "cut" else packed[:30] + b"\0\0\0\0" + packed[34:]
    with lzma.open(io.BytesIO(bytes(packed))) as stream, pytest.raises(symbol_file.SymbolFileError, match="damaged"):
        symbol_file.load(stream)


@pytest.mark.parametrize("case", [*BAD, "other shapes"])
def test_the_search_for_a_minidumps_kernel_passes_them_by(case: str, tmp_path: Path) -> None:
    """A symbol file that is none ends the search for a minidump's kernel no more than one of another kernel does."""
    odd = {"metadata": {"windows": {"pdb": {"GUID": 1, "age": None, "database": []}}}, "symbols": [], "user_types": 3}
    content = json.dumps(odd).encode() if case == "other shapes" else BAD[case][0]
    memory = SymbolCache(str(tmp_path / "memory.json"))
    assert memory.symbols("file:x", [1, 1], lambda _: io.BytesIO(content)) is None
