"""An image is scanned again when something has changed that its rows depend on, and only then."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from apcaudit.bulk import fingerprint, store, worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.outcome import Failed, Outcome, Scanned, Settings
from apcaudit.bulk.readers import cache_folder
from apcaudit.synthetic.build import build
from apcaudit.synthetic.intermediate import Pdb
from apcaudit.synthetic.isf import write_derived
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import SCENES
from tests import bulk_images
from tests.bulk_images import in_turn, need_extra, put_index, shared_cache
from tests.command import run
from tests.conftest import ROOT

need_extra()


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[Path]:
    """The cache that tests share."""
    with shared_cache() as folder:
        yield folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose drivers are worth a look at their code."""
    return bulk_images.write(tmp_path_factory.mktemp("image") / "seed.dmp", "seed")


@pytest.fixture(scope="module")
def earlier(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of that image, as the command makes them."""
    results = tmp_path_factory.mktemp("earlier") / "results"
    assert not scan(image, Settings(results, offline=True)).reused
    return results


def scan(image: Path, settings: Settings) -> Outcome:
    """Scan an image as the command does."""
    basis = fingerprint.basis(settings)
    return worker.scan(Evidence(image), dataclasses.replace(settings, basis=basis))


COMPONENTS = ("apcaudit", "volatility3", "yara", "capstone", "rules", "symbol files")


def test_what_rows_depend_on() -> None:
    """The programs with their versions, the rules and the symbol files are what a scan's rows depend on."""
    basis = fingerprint.basis(Settings(Path("results")))
    assert tuple(name for name, _ in basis) == COMPONENTS
    assert all(value for _, value in basis)


@pytest.mark.parametrize("component", COMPONENTS[:-1])
def test_another_version(component: str, image: Path, earlier: Path, tmp_path: Path) -> None:
    """Where one of them is another than at the time of the earlier scan, the image is scanned again."""
    results = shutil.copytree(earlier, tmp_path / "results")
    settings = Settings(results, offline=True, basis=fingerprint.basis(Settings(Path("results"))))
    assert worker.scan(Evidence(image), settings).reused
    other = {**dict(settings.basis), component: "another"}
    assert not worker.scan(Evidence(image), dataclasses.replace(settings, basis=tuple(other.items()))).reused


def another_version(folder: Path) -> Path:
    """Make a folder by which Python takes capstone for version 4.0.0."""
    (folder / "capstone-4.0.0.dist-info").mkdir()
    (folder / "capstone-4.0.0.dist-info" / "METADATA").write_text("Name: capstone\nVersion: 4.0.0\n")
    return folder


def without(folder: Path, *names: str) -> Path:
    """Make a folder by which Python finds no such modules."""
    for name in names:
        (folder / f"{name}.py").write_text("raise ImportError('not installed')")
    return folder


def without_capstone(folder: Path) -> Path:
    return without(folder, "capstone")


def without_engine(folder: Path) -> Path:
    return without(folder, "yara", "yara_x")


def changed_code(folder: Path) -> Path:
    """Copy the checkout, with a plugin that has changed and has the same version."""
    for name in ("apcaudit", "vol_plugins", "symbols"):
        # With what is compiled of it: the command is then as quick as the checkout's.
        shutil.copytree(ROOT / name, folder / name)
    changed = folder / "vol_plugins" / "windows" / "apcaudit" / "findings.py"
    changed.write_text(changed.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    return folder


#: What is changed for a scan, and what that says it lacks.
CHANGES: dict[Callable[[Path], Path], str | None] = {
    another_version: None,
    without_capstone: "start addresses is not checked: capstone is not installed (pip install capstone)",
    without_engine: "YARA rules: no engine is installed (pip install yara-python)",
    changed_code: None,
}


@dataclass(frozen=True)
class Weaker:
    """What was said by a scan of an image with a change, by the same again, and by one without it, of all images."""

    image: Path
    weaker: tuple[int, str]
    again: tuple[int, str]
    whole: str

    @property
    def reused(self) -> list[bool]:
        """Whether each of them took what was there for the image."""
        every = (self.weaker[1], self.again[1], self.whole)
        lines = [[line for line in each.splitlines() if line.startswith(f"{self.image}: ")] for each in every]
        return ["scanned earlier" in line for (line,) in lines]


@pytest.fixture(scope="module")
def weaker(image: Path, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[Callable[[Path], Path], Weaker]:
    """Scan an image with each change, of which there are results of a whole scan; then scan all without any."""
    pytest.importorskip("capstone")
    folder = tmp_path_factory.mktemp("weaker")
    results = folder / "results"
    images, said = {}, {}
    for number, change in enumerate(CHANGES):
        images[change] = folder / f"{number}.dmp"
        images[change].write_bytes(bulk_images.distinct(image.read_bytes(), number))
        assert not scan(images[change], Settings(results, offline=True)).reused
    for change, path in images.items():
        before = folder / change.__name__
        before.mkdir()
        change(before)
        arguments = ("scan", path, "-o", results, "--offline", "--workers", 1)
        said[change] = in_turn(arguments, arguments, cache=cache, before=before, cwd=folder)
    whole = run("scan", *images.values(), "-o", results, "--offline", "--workers", 1).stderr
    return {change: Weaker(images[change], *said[change], whole) for change in CHANGES}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_weaker_scan_does_not_count(
    change: Callable[[Path], Path], weaker: dict[Callable[[Path], Path], Weaker]
) -> None:
    """What was done with another version, or without a program, is done again, and what is missing is said once."""
    done, lacks = weaker[change], CHANGES[change]
    assert done.weaker[0] == 0, done.weaker[1]
    assert done.reused == [False, True, False]
    every = (done.weaker[1], done.whole)
    said = [[line for line in each.splitlines() if line.startswith("not in this scan: ")] for each in every]
    if lacks is None:
        assert said[0] == said[1]
    else:
        (missing,) = set(said[0]) - set(said[1])
        assert missing.endswith(lacks)
        assert len(said[0]) == len(said[1]) + 1


@pytest.mark.parametrize(
    ("settings", "lacks"),
    [
        (Settings(Path()), {"(--scan)"}),
        (Settings(Path(), scan=True), set()),
        (Settings(Path(), offline=True), {"(--scan)", "(--offline)"}),
        (Settings(Path(), scan=True, basis=(("capstone", "none"),)), {"(pip install capstone)"}),
        (Settings(Path(), scan=True, basis=(("yara", "none"),)), {"(pip install yara-python)"}),
    ],
)
def test_what_a_scan_will_not_do(settings: Settings, lacks: set[str]) -> None:
    """What is not asked for and what is not installed are said, each with what would do it."""
    lines = list(fingerprint.lacking(settings))
    assert len(lines) == len(lacks)
    assert all(any(line.endswith(each) for line in lines) for each in lacks)


def kernel_of(guid: str) -> tuple[object, Pdb]:
    own = load_kernel("10-19041-x64")
    pdb = Pdb(own.pdb.name, guid + own.pdb.guid[8:], 1)
    return dataclasses.replace(own, pdb=pdb), pdb


def test_symbol_files(tmp_path: Path) -> None:
    """A symbol file that came, went or changed counts for the images whose rows may depend on it.

    A failed image may depend on any. One that was scanned does not depend on the files of other kernels.
    """
    symbols, packed = tmp_path / "symbols", tmp_path / "image.dmp"
    symbols.mkdir()
    kernel, _ = kernel_of("A9C0DEEE")
    other, _ = kernel_of("A9C0DEEF")
    build(SCENES["healthy"](kernel="10-19041-x64"), kernel).write_dump(packed)  # type: ignore[arg-type]
    settings = Settings(tmp_path / "results", (symbols,), offline=True)
    put_index(cache_folder(settings.symbols))
    assert isinstance(scan(packed, settings), Failed)
    assert scan(packed, settings).reused
    # It was missing: nobody has to ask for another try.
    file = write_derived(kernel, symbols)  # type: ignore[arg-type]
    found = scan(packed, settings)
    assert isinstance(found, Scanned)
    assert scan(packed, settings).reused
    write_derived(other, symbols)  # type: ignore[arg-type]
    assert scan(packed, settings).reused
    # A driver's symbol file gives names to its routines.
    driver = symbols / "windows" / "tcpip.pdb" / f"{'0' * 32}-1.json"
    driver.parent.mkdir()
    driver.write_text('{"symbols": {}}')
    assert not scan(packed, settings).reused
    assert scan(packed, settings).reused
    # The same size and name: in place, as a symbol file that was made anew.
    driver.write_text('{"symbols":  {}')
    assert not scan(packed, settings).reused
    # The same bytes in another folder are the same files.
    shutil.copytree(symbols, tmp_path / "copy")
    assert scan(packed, dataclasses.replace(settings, symbols=(tmp_path / "copy",))).reused
    file.write_bytes(file.read_bytes() + b"\0" * 4)
    assert not scan(packed, settings).reused


def test_included_rules(image: Path, tmp_path: Path) -> None:
    """A file that rules include is a part of them, wherever the include stands."""
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "own.yar").write_text('include "part.yara"\nrule Own { condition: part }')
    (rules / "part.yara").write_text('include "deep/last.yara"')
    (rules / "deep").mkdir()
    (rules / "deep" / "last.yara").write_text("rule part { condition: true }")
    settings = Settings(tmp_path / "results", offline=True, rules=rules / "own.yar")
    assert [scan(image, settings).reused for _ in range(2)] == [False, True]
    (rules / "beside.yara").write_text("rule beside { condition: true }")
    assert scan(image, settings).reused
    (rules / "deep" / "last.yara").write_text("rule part { condition: false }")
    assert not scan(image, settings).reused


def test_a_failure_depends_on_its_limits(tmp_path: Path) -> None:
    """What was too little is tried again where there is more; what is no image stays failed while nothing changes."""
    path = tmp_path / "a.raw"
    path.write_bytes(b"nothing" * 1000)
    settings = Settings(tmp_path / "results", offline=True)
    assert [scan(path, settings).reused for _ in range(2)] == [False, True]
    for changes in ({"memory": 5 << 30}, {"timeout": 7200.0}, {"offline": False}):
        changed = dataclasses.replace(settings, **changes)  # type: ignore[arg-type]
        assert [scan(path, each).reused for each in (changed, changed, settings)] == [False, True, False]


def test_limits_do_not_matter_to_what_was_scanned(image: Path, tmp_path: Path) -> None:
    """An image that was scanned within its limits is not scanned again with others."""
    settings = Settings(tmp_path / "results", offline=True)
    assert not scan(image, settings).reused
    for changes in ({"memory": 5 << 30}, {"timeout": 7200.0}):
        assert scan(image, dataclasses.replace(settings, **changes)).reused  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the process that reads images")
def test_what_was_short_of_memory_is_scanned_again_with_more(tmp_path: Path) -> None:
    """An image that came near its limit of memory, where parts may be missing, is scanned again with another limit."""
    calm = bulk_images.write(tmp_path / "healthy.dmp", "healthy")
    # The limit is of address space, of which libraries take more or less: the first that suffices is nearly too small.
    for limit in range(256, 1024, 64):
        settings = Settings(tmp_path / "results", offline=True, memory=limit << 20)
        outcome = scan(calm, settings)
        if isinstance(outcome, Scanned):
            break
    row = store.find(settings.results, outcome.image)
    assert row is not None
    assert "parts may be missing" in row.notes
    assert scan(calm, settings).reused
    assert not scan(calm, dataclasses.replace(settings, memory=4 << 30)).reused


def test_the_machines_failure_is_not_the_images(image: Path, tmp_path: Path) -> None:
    """What failed for the machine, a folder that was gone say, is tried again without being asked to."""
    settings = Settings(tmp_path / "results", offline=True, scratch=tmp_path / "gone")
    assert isinstance(worker.scan_or_fail(Evidence(image), settings, lambda _: None), Failed)
    (tmp_path / "gone").mkdir()
    assert isinstance(scan(image, settings), Scanned)
