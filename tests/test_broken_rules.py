"""Rule files that cannot be used: all of them in one error, or with --skip-broken-rules in a note."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from volatility3.framework.exceptions import UnsatisfiedException
from volatility3.plugins.windows.apcaudit.signatures import rules
from volatility3.plugins.windows.apcaudit.signatures import rules as engines
from volatility3.plugins.windows.apcaudit.signatures.options import NAMED_BOUND, RuleError
from volatility3.plugins.windows.apcaudit.signatures.rules import compile_rules

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import healthy, seed
from tests.bulk_images import need_extra, shared_cache
from tests.command import run
from tests.signed_drivers import only, write
from tests.volatility import construct
from tests.volatility import rows as rows_of
from tests.yara_engines import ENGINES, NOTHING, imported

#: Ways in which a rule file is broken, the line that is told, None where there is none, and a word of the reason.
WAYS: dict[str, tuple[bytes, int | None, str]] = {
    "no rule": (b"\nthis is no rule\n", 2, "syntax error"),
    "unknown name": (b"rule a { condition: true }\nrule b {\n condition: unheard_of }", 3, "unheard_of"),
    "no end": (b"rule a { condition: true ", 1, "end of file"),
    "a name twice": (b"rule a { condition: true }\nrule a { condition: true }", 2, "duplicate"),
    "no such module": (b'import "unheard_of" rule a { condition: unheard_of.x }', 1, "module"),
    "no such include": (b'\n\ninclude "missing.yar"', None, "in line 3: there is no such file"),
    "an include of others": (b'include "../../outside.yar"', None, "in line 1: it is not below"),
    "not UTF-8": (b"// \n// \xff\nrule a { condition: true }", 2, "UTF-8"),
    "compiled": (b"YARA\x15\0\0\0", None, "compiled"),
    "a zero byte": (b"rule a { condition: true }\n\0 rule b { condition: nothing }", 2, "zero byte"),
}

GOOD = ("rule good { condition: true }", "rule good { condition: start_rva == -1 }")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> engines.Engine:
    """Each engine that can be imported, as the one that is found."""
    made = imported(request.param)
    monkeypatch.setattr(rules, "find_engine", lambda: made)
    monkeypatch.setattr(rules, "_kept", [])
    return made


def collection(folder: Path, count: int = 58, *, good: tuple[str, ...] = GOOD) -> dict[Path, str]:
    """Write so many broken files and some good ones; give the broken ones, and the way in which each is."""
    broken = {}
    for number in range(count):
        way = list(WAYS)[number % len(WAYS)]
        path = folder / f"{'abc'[number % 3]}" / f"broken{number}.yar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(WAYS[way][0])
        broken[path] = way
    for number, text in enumerate(good):
        write(folder, f"good{number}.yar", text)
    return broken


def entries(message: str) -> list[str]:
    """Take a message that names files apart, in any order."""
    return message.partition(": ")[2].split("; ")


def holds(entry: str, path: Path, way: str) -> bool:
    """Tell whether an entry names a file, with the line and the reason of how it is broken."""
    _, line, reason = WAYS[way]
    place = f"{path}: " if line is None else f"{path}:{line}: "
    return entry.startswith(place) and any(word in entry[len(place) :] for word in reason.split("|"))


@pytest.mark.usefixtures("engine")
def test_every_broken_file_is_named_at_once(tmp_path: Path) -> None:
    """Of 60 rule files 58 are broken: one error names each of them, with line and reason."""
    broken = collection(tmp_path)
    with pytest.raises(RuleError) as caught:
        compile_rules(only(file=str(tmp_path)))
    message = str(caught.value)
    assert message.startswith("58 of 60 rule files cannot be used: ")
    assert "\n" not in message
    told = entries(message)
    assert len(told) == 58
    wrong = [path for path, way in broken.items() if not any(holds(entry, path, way) for entry in told)]
    assert wrong == []
    assert caught.value.option == "yara-file"


@pytest.mark.usefixtures("engine")
def test_a_message_is_bounded(tmp_path: Path) -> None:
    """Of very many broken files, with long names and long words in them, as many are named as the bound says."""
    for number in range(NAMED_BOUND + 30):
        write(tmp_path, f"{'n' * 200}{number}.yar", f"rule a {{ condition: {'x' * 5000}{number} }}")
    with pytest.raises(RuleError) as caught:
        compile_rules(only(file=str(tmp_path)))
    assert str(caught.value).endswith("; and 30 more")
    assert len(str(caught.value)) < NAMED_BOUND * 600


def test_broken_files_are_skipped(engine: engines.Engine, tmp_path: Path) -> None:
    """With --skip-broken-rules the others are used as if those were not there, and a note says how many and which."""
    broken = collection(tmp_path)
    made = compile_rules(only(file=str(tmp_path), skip_broken=True))
    assert [hit.rule for part in made.parts for hit in part.scan(b"x", NOTHING)] == ["good", "good"]
    assert [part.wants_start for part in made.parts] == [False, True]
    assert made.note is not None
    assert made.note.startswith("YARA: 58 of 60 rule files cannot be used and are skipped: ")
    told = entries(made.note.removeprefix("YARA: "))
    assert len(told) == 58
    assert [path for path, way in broken.items() if not any(holds(entry, path, way) for entry in told)] == []


@pytest.mark.usefixtures("engine")
def test_nothing_is_skipped_where_nothing_is_broken(tmp_path: Path) -> None:
    """Where all files can be used, the option changes nothing: the same rules and no note."""
    collection(tmp_path, 0)
    skipping, not_skipping = (compile_rules(only(file=str(tmp_path), skip_broken=each)) for each in (True, False))
    assert skipping.note is None
    assert skipping.digest == not_skipping.digest


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(lambda folder: {"file": str(folder)}, id="all of a folder"),
        pytest.param(lambda folder: {"file": str(folder / "a" / "broken0.yar")}, id="the only file"),
        pytest.param(lambda folder: {"string": "{ no hexadecimal }"}, id="a string"),
        pytest.param(lambda folder: {"compiled_file": str(folder / "a" / "broken0.yar")}, id="compiled rules"),
        pytest.param(lambda folder: {"file": str(folder / "missing")}, id="no such folder"),
    ],
)
def test_what_is_never_skipped(options: Callable[[Path], dict[str, str]], tmp_path: Path) -> None:
    """Where nothing would be left of what was asked for, it stays an error."""
    collection(tmp_path, 3, good=())
    with pytest.raises(RuleError):
        compile_rules(only(**options(tmp_path), skip_broken=True))


@pytest.mark.usefixtures("engine")
def test_rules_of_one_name_in_several_files(tmp_path: Path) -> None:
    """A name that two files have is no error, and skips neither."""
    for name in ("a.yar", "b.yar"):
        write(tmp_path, name, "rule same { condition: true }")
    made = compile_rules(only(file=str(tmp_path), skip_broken=True))
    assert made.note is None
    assert [hit.rule for part in made.parts for hit in part.scan(b"x", NOTHING)] == ["same", "same"]


@pytest.mark.usefixtures("engine")
def test_names_and_reasons_are_harmless(tmp_path: Path) -> None:
    """What a stranger wrote into a file's name, or into a rule, cannot act on a terminal."""
    name = "a\x1b[31m\nb\u202e.yar"
    write(tmp_path, name, 'rule a { condition: "\x1b[2J" and nothing\u202e }')
    write(tmp_path, "c.yar", 'include "\x1b[2J"')
    (tmp_path / "good.yar").write_text(GOOD[0])
    surrogate = bytes(tmp_path) + b"/\xff.yar"
    Path(surrogate.decode(errors="surrogateescape")).write_text("rule a { condition: nothing }")
    with pytest.raises(RuleError) as caught:
        compile_rules(only(file=str(tmp_path)))
    assert str(caught.value).startswith("3 of 4 rule files")
    assert str(caught.value).isprintable()
    assert str(caught.value).encode()


@pytest.mark.usefixtures("engine")
def test_rules_are_others_where_others_are_skipped(tmp_path: Path) -> None:
    """The digest by which results are told apart has what is included, and what is skipped, in it."""
    digests = []
    for included, broken in (("true", "nothing"), ("false", "nothing"), ("false", "nought"), ("false", "true")):
        write(tmp_path, "part.inc", f"rule part {{ condition: {included} }}")
        write(tmp_path, "good.yar", 'include "part.inc"')
        write(tmp_path, "broken.yar", f"rule b {{ condition: {broken} }}")
        digests.append(compile_rules(only(file=str(tmp_path), skip_broken=True)).digest)
    assert len(set(digests)) == 4


def test_an_include_that_has_changed(engine: engines.Engine, tmp_path: Path) -> None:
    """What is kept of compiled rules is not used where a file that they include is another by now."""
    write(tmp_path, "part.inc", "rule first { condition: true }")
    path = write(tmp_path, "whole.yar", 'include "part.inc"')

    def hits() -> list[str]:
        return [hit.rule for part in compile_rules(only(file=path)).parts for hit in part.scan(b"x", NOTHING)]

    assert hits() == ["first"]
    write(tmp_path, "part.inc", "rule second { condition: true }")
    assert hits() == ["second"]
    write(tmp_path, "part.inc", "rule second { condition: nothing }")
    with pytest.raises(RuleError):
        hits()
    write(tmp_path, "part.inc", "rule third { condition: true }")
    assert hits() == ["third"]


@pytest.mark.parametrize(("scene", "suspects"), [(seed.scene, True), (healthy.scene, False)])
def test_the_plugin(scene: Any, suspects: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The plugin refuses a folder with broken files and names them, and skips them where it is told to, with a note."""
    image = tmp_path / "image.dmp"
    build(scene(kernel="xp-sp3-x86") if not suspects else scene(), load_kernel("xp-sp3-x86")).write_dump(image)
    folder = tmp_path / "rules"
    broken = collection(folder, 4)
    options = {"cache": tmp_path / "cache", "yara_file": str(folder), "no_default_rules": True}
    with pytest.raises(UnsatisfiedException) as caught:
        construct(image, "windows.apcaudit.ApcAudit", **options)
    (requirement,) = caught.value.unsatisfied.values()
    assert requirement.description.startswith("4 of 6 rule files cannot be used: ")
    assert all(str(path) in requirement.description for path in broken)
    with caplog.at_level(logging.WARNING):
        found = rows_of(image, **options, skip_broken_rules=True, wide=True)
    assert [row["Yara"] for row in found if row["Severity"] == "critical"] == (["good"] if suspects else [])
    notes = [each.getMessage() for each in caplog.records if "rule files" in each.getMessage()]
    assert len(notes) == 1
    assert notes[0].startswith("YARA: 4 of 6 rule files cannot be used and are skipped: ")


def test_the_command(tmp_path: Path) -> None:
    """`apcaudit scan` does the same: an error with every file, or a line at its start and a note of each image."""
    need_extra()
    from apcaudit.bulk import store

    folder, results = tmp_path / "rules", tmp_path / "results"
    broken = collection(folder, 4)
    image = tmp_path / "seed.dmp"
    build(seed.scene(), load_kernel("xp-sp3-x86")).write_dump(image)
    command = ["scan", image, "-o", results, "--workers", "1", "--offline", "--yara-file", folder]
    with shared_cache():
        refused, done = run(*command), run(*command, "--skip-broken-rules")
    assert refused.returncode == 1
    assert refused.stderr.startswith("apcaudit: YARA rules: 4 of 6 rule files cannot be used: ")
    assert refused.stderr.count("\n") == 1
    assert all(str(path) in refused.stderr for path in broken)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("4 of 6 rule files cannot be used and are skipped: ") == 1
    (row,) = (store.find(results, path.name) for path in results.iterdir() if path.name[0] != ".")
    assert row is not None
    assert "YARA: 4 of 6 rule files cannot be used and are skipped: " in row.notes
