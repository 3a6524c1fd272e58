"""YARA over driver images: which rules are taken, what is scanned, what rules see, and whose a hit is."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from volatility3.framework.exceptions import UnsatisfiedException
from volatility3.plugins.windows.apcaudit.model import YaraHit
from volatility3.plugins.windows.apcaudit.signatures import engines, sources
from volatility3.plugins.windows.apcaudit.signatures.engine_yara_python import YaraPython
from volatility3.plugins.windows.apcaudit.signatures.engine_yara_x import YaraX
from volatility3.plugins.windows.apcaudit.signatures.externals import Known, Start, externals
from volatility3.plugins.windows.apcaudit.signatures.options import RuleError, RuleOptions
from volatility3.plugins.windows.apcaudit.signatures.signatures import Signatures

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Driver, Thread
from apcaudit.synthetic.scenes import seed
from apcaudit.synthetic.scenes.common import FLTMGR, HAL
from tests.views_image import Audits, audited
from tests.volatility import construct, rows

ENGINES = {"yara-python": ("yara", YaraPython), "yara-x": ("yara_x", YaraX)}
NOTHING = externals(Known(), Start())

#: Two routines with a mark of their own, in one driver; the mark of the first spans no page, that of .data another.
MARKED = Driver(
    "Marked.sys",
    size=0x9000,
    exports={"First": 0x1400, "Second": 0x1800},
    imports={"nt": ("KeInsertQueueApc",), "fltMgr.sys": ("FltSendMessage",)},
    code={0x1410: b"MARK-ONE", 0x1810: b"MARK-TWO", 0x6F00: b"MARK-DATA"},
)
SUSPECT = {"kernel_apc_pending": True}


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> engines.Engine:
    """Each engine that can be imported."""
    module, kind = ENGINES[request.param]
    pytest.importorskip(module)
    made: engines.Engine = kind(import_module(module))
    return made


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def only(**options: object) -> RuleOptions:
    """Options without the rules that ship."""
    return RuleOptions(defaults=False, **options)  # type: ignore[arg-type]


def signed(found: Audits, rules: str, folder: Path, tid: int, *, every: bool = False) -> list[str] | None:
    """Scan what a thread of an audited image depends on by one rule file: the hits as the column shows them."""
    options = only(file=write(folder, "rules.yar", rules), every_driver=every)
    hits = Signatures(found.audit.memory, found.audit.drivers, options).of(found.of[tid].thread)
    return None if hits is None else [str(hit) for hit in hits]


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
    known = Known("b", "\\SystemRoot\\System32\\drivers\\b.sys")
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


KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])


def _marked(kernel: str, folder: Path) -> Audits:
    threads = (
        Thread(8, start="Marked!First", **SUSPECT),
        Thread(12, start="Marked!Second", **SUSPECT),
        Thread(16, start="Marked!First"),
        Thread(20, start=0x401000, system=False, **SUSPECT),
    )
    return audited(kernel, folder, threads, drivers=(HAL, FLTMGR, MARKED))


@KERNELS
def test_hits_and_the_start_routine(kernel: str, tmp_path: Path) -> None:
    """A hit in the function at the thread's start comes first, as rule@start; elsewhere in the driver as the rule."""
    found = _marked(kernel, tmp_path)
    rules = "\n".join(
        f'rule {name} {{ strings: $a = "{mark}" condition: $a }}'
        for name, mark in (("a_data", "MARK-DATA"), ("b_first", "MARK-ONE"), ("c_second", "MARK-TWO"))
    )
    assert signed(found, rules, tmp_path, 8) == ["b_first@start", "a_data", "c_second"]
    assert signed(found, rules, tmp_path, 12) == ["c_second@start", "a_data", "b_first"]


@KERNELS
def test_what_rules_see(kernel: str, tmp_path: Path) -> None:
    """Imports are those of the import address table in memory, start_rva and start_size those of the routine."""
    found = _marked(kernel, tmp_path)
    rules = (
        'rule imported { condition: imports == "fltMgr!FltSendMessage,nt!KeInsertQueueApc" }\n'
        "rule placed { condition: start_rva == 0x1400 and start_size == 0x400 }\n"
        'rule named { condition: driver == "Marked" and driver_path iendswith "\\\\Marked.sys" and not hidden }\n'
        "rule whole { condition: filesize == 0x9000 and uint16(0) == 0x5a4d and uint32(0x8000) == 0 }\n"
    )
    assert signed(found, rules, tmp_path, 8) == ["imported", "named", "placed", "whole"]
    assert signed(found, rules, tmp_path, 12) == ["imported", "named", "whole"]


@KERNELS
def test_a_patched_import(kernel: str, tmp_path: Path) -> None:
    """An import that leads to no module is not named, and it is said."""

    def patch(image: Image) -> None:
        base, width = image.address_of["driver:Marked.sys"], image.memory.pointer_size
        wanted = (image.resolve("nt!KeInsertQueueApc") & image.memory.layout.pointer_mask).to_bytes(width, "little")
        data = image.read(base, MARKED.size - 0x1000)
        image.write(base + data.index(wanted), (image.kernel.base - 0x5000).to_bytes(8, "little")[:width])

    threads = (Thread(8, start="Marked!First", **SUSPECT),)
    found = audited(kernel, tmp_path, threads, drivers=(HAL, FLTMGR, MARKED), changes=(patch,))
    rules = 'rule left { condition: imports == "fltMgr!FltSendMessage" }'
    assert signed(found, rules, tmp_path, 8) == ["left"]
    assert any("Marked: 1 of 2 imports lead to no loaded module" in note for note in found.audit.notes)


@KERNELS
def test_only_suspect_threads_by_default(kernel: str, tmp_path: Path) -> None:
    """Drivers of threads with findings of medium severity and above are scanned, those of others are not."""
    found = _marked(kernel, tmp_path)
    assert {tid: found.of[tid].yara for tid in (8, 16, 20)} == {8: "", 16: None, 20: None}


@KERNELS
def test_every_driver(kernel: str, tmp_path: Path) -> None:
    """With --yara-all a driver that is hit has its threads listed, and is named where none starts in it."""
    _marked(kernel, tmp_path)
    rules = write(
        tmp_path,
        "rules.yar",
        'rule marked { strings: $a = "MARK-ONE" condition: $a }\n'
        'rule manager { condition: driver iequals "fltMgr" and imports contains "KeWaitForMultipleObjects" }',
    )
    plugin = construct(
        tmp_path / "views.raw",
        "windows.apcaudit.ApcAudit",
        cache=tmp_path.parent / "views-cache",
        yara_file=rules,
        no_default_rules=True,
        yara_all=True,
        wide=True,
    )
    listed = {}

    def visit(node: object, _: object) -> None:
        values = dict(zip((column.name for column in grid.columns), node.values, strict=True))  # type: ignore[attr-defined]
        listed[values["TID"]] = values["Yara"]

    grid = plugin.run()
    grid.populate(visit, None)
    assert {tid: listed.get(tid) for tid in (8, 12, 16)} == {8: "marked@start", 12: "marked", 16: "marked@start"}
    signatures = Signatures(*_parts(plugin), only(file=rules, every_driver=True))
    assert not signatures.marks(0)
    assert any("manager in fltMgr" in note and "no listed thread starts" in note for note in signatures.notes)


def _parts(plugin: object) -> tuple[object, object]:
    from volatility3.plugins.windows.apcaudit.audit import Audit

    audit = Audit(plugin.context, plugin.config["kernel"])  # type: ignore[attr-defined]
    return audit.memory, audit.drivers


@KERNELS
def test_memory_around_an_orphan_start(kernel: str, tmp_path: Path) -> None:
    """Where no image holds a start address or a routine, the memory around it is scanned by itself."""
    x86 = kernel == "xp-sp3-x86"
    page = 0xF6801000 if x86 else 0xFFFFF80040001000

    def write_code(image: Image) -> None:
        image.memory.space.map(page, 0x2000)
        image.write(page + 0x100, b"LOOSE-CODE")
        image.write(page + 0x1100, b"LOOSE-ROUTINE")

    threads = (
        Thread(8, start=page + 0xF8),
        Thread(12, kernel_apc_disable=-1, kernel_apcs=(Apc(page + 0x10F8, normal_routine=page + 0x1100),)),
        Thread(16, start=page + 0x400000),
    )
    found = audited(kernel, tmp_path, threads, changes=(write_code,))
    rules = (
        'rule code { strings: $a = "LOOSE-CODE" condition: $a and hidden and driver == "" }\n'
        'rule routine { strings: $a = "LOOSE-ROUTINE" condition: $a }'
    )
    assert signed(found, rules, tmp_path, 8) == ["code@start", "routine"]
    assert set(signed(found, rules, tmp_path, 12) or ()) >= {"code", "routine"}
    assert signed(found, rules, tmp_path, 16) is None


def test_a_driver_is_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads start in it: once, or once a start where a rule asks for that."""
    found = _marked("10-19041-x64", tmp_path)
    for rules, scans in (("rule a { condition: false }", 1), ("rule a { condition: start_rva == 1 }", 2)):
        signatures = Signatures(found.audit.memory, found.audit.drivers, only(file=write(tmp_path, "rules.yar", rules)))
        signatures.compile()
        counted: list[int] = []
        kind = type(signatures._rules.parts[0])  # type: ignore[union-attr]
        scan = kind.scan

        def counting(*arguments: object, scan: object = scan, counted: list[int] = counted) -> object:
            counted.append(1)
            return scan(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(kind, "scan", counting)
        for tid in (8, 12, 16, 8):
            signatures.of(found.of[tid].thread)
        monkeypatch.undo()
        assert len(counted) == scans


@pytest.mark.parametrize("option", ["yara_file", "yara_compiled_file"])
def test_rules_that_cannot_be_used_stop_the_plugin(option: str, tmp_path: Path) -> None:
    """Vol does not run the plugin, and prints what is wrong with the rules."""
    image = tmp_path / "seed.dmp"
    build(seed.scene(), load_kernel("xp-sp3-x86")).write_dump(image)
    rules = write(tmp_path, "bad.yar", "rule a {\n condition: nothing }")
    with pytest.raises(UnsatisfiedException) as caught:
        construct(image, "windows.apcaudit.ApcAudit", cache=tmp_path / "cache", **{option: rules})
    (requirement,) = caught.value.unsatisfied.values()
    assert requirement.description.startswith(f"{rules}:2: " if option == "yara_file" else f"{rules}: no compiled")
    assert list(caught.value.unsatisfied) == [f"plugins.ApcAudit.{option.replace('_', '-')}"]


def test_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit does without YARA, and says that drivers were not scanned."""
    monkeypatch.setattr(engines, "import_module", _missing)
    from volatility3.plugins.windows.apcaudit.signatures import rules

    monkeypatch.setattr(rules, "_kept", [])
    found = _marked("10-19041-x64", tmp_path)
    assert found.codes(8) == {"pending-empty": "medium"}
    assert found.of[8].yara is None
    assert any("no YARA engine can be imported" in note for note in found.audit.notes)


def _missing(name: str, package: str | None = None) -> object:
    raise ImportError(name)


def test_the_seed(tmp_path: Path) -> None:
    """The case that started the project: its thread's routine by name, and the shipped rule in it."""
    image = tmp_path / "seed.dmp"
    build(seed.scene(), load_kernel("xp-sp3-x86")).write_dump(image)
    (row,) = rows(image, cache=tmp_path / "cache", wide=True)
    assert row["StartRoutine"] == "Bfilter!ScUnInitExcludePath+0x30"
    assert row["Yara"].split(",")[0] == "bfilter_message_sender@start"


def test_a_hit_says_where() -> None:
    """A hit is written as the column shows it."""
    assert [str(YaraHit("r", "d", at_start, 1)) for at_start in (True, False)] == ["r@start", "r"]
