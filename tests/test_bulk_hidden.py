"""Drivers that the module list lacks, from the image to what is rare: told apart from listed ones of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.modules import HIDDEN_MARK, UNLISTED_MARK

from apcaudit.bulk import store, worker
from apcaudit.bulk.evidence import Evidence
from apcaudit.bulk.outcome import Scanned, Settings
from apcaudit.bulk.readers import cache_folder
from apcaudit.bulk.records import HIDDEN, UNLISTED
from apcaudit.bulk.stack import stack
from apcaudit.reports import chain, dataset
from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Driver, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL
from tests.bulk_images import need_extra, put_index, shared_cache
from tests.driver_objects import unlisted_driver

need_extra()

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])
OBJECTS = pytest.mark.parametrize("driver_object", [True, False])

#: RVAs of the export, and of the start behind it.
MAIN, START = 0x1400, 0x1410


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[None]:
    """The cache that tests share."""
    with shared_cache():
        yield


def write(
    path: Path, kernel: str, *before: Driver, listed: bool, driver_object: bool = True, cut: bool = False
) -> Path:
    """Write a machine with a thread that starts in the driver Ghost and has an APC of it queued.

    Args:
        path: the image.
        kernel: its kernel.
        before: drivers that lie before Ghost, so that it lies elsewhere.
        listed: whether the module list has Ghost.
        driver_object: whether a driver object tells of it.
        cut: whether the module list cannot be read whole.
    """
    ghost = Driver("Ghost.sys", size=0x9000, exports={"GhostMain": MAIN}, listed=listed, driver_object=driver_object)
    # Another one that no code of the image has to do with.
    idle = Driver("Idle.sys", size=0x9000, exports={"IdleMain": MAIN}, listed=False, driver_object=driver_object)
    thread = Thread(8, start="Ghost!GhostMain+0x10", kernel_apc_disable=-1, kernel_apcs=(Apc("Ghost!GhostMain"),))
    processes = (Process("System", 4, (thread, Thread(12)), parent=0),)
    image = build(
        Scene("hidden", "a driver", kernel, processes, (HAL, FLTMGR, *before, ghost, idle)), load_kernel(kernel)
    )
    if cut:
        _cut(image)
    image.write_dump(path)
    return path


def _cut(image: Image) -> None:
    """Break PsLoadedModuleList behind its first entry."""
    image.memory.write_pointer(image.address_of["module:ntoskrnl.exe"], 0)


def scan(results: Path, *images: Path, symbols: tuple[Path, ...] = ()) -> Settings:
    """Scan images."""
    settings = Settings(results, symbols, offline=True)
    if symbols:
        put_index(cache_folder(symbols))
    outcomes = [worker.scan(Evidence(image), settings) for image in images]
    assert [type(each) for each in outcomes] == [Scanned] * len(images)
    return settings


@KERNELS
@OBJECTS
def test_a_hidden_driver_stands_apart(kernel: str, driver_object: bool, tmp_path: Path) -> None:
    """Its code is the same in every image, wherever it lies, and is none of a listed driver with the same name."""
    hidden = {"listed": False, "driver_object": driver_object}
    scan(
        tmp_path / "results",
        write(tmp_path / "a.dmp", kernel, **hidden),
        write(tmp_path / "b.dmp", kernel, DISK, **hidden),
        write(tmp_path / "c.dmp", kernel, listed=True),
    )
    database = store.connect(tmp_path / "results")
    assert database.execute(
        "SELECT source[-5:], d.status FROM drivers d JOIN images USING (image) WHERE name = 'Ghost.sys' ORDER BY source"
    ).fetchall() == [("a.dmp", "hidden"), ("b.dmp", "hidden"), ("c.dmp", "loaded")]
    # What no code of the image lies in has not been looked for.
    assert database.execute("SELECT count(*) FROM drivers WHERE name = 'Idle.sys'").fetchall() == [(0,)]
    starts = database.execute("SELECT DISTINCT start_module, start_rva FROM threads").fetchall()
    routines = database.execute("SELECT DISTINCT kernel_module, kernel_rva FROM apcs").fetchall()
    assert (starts, routines) == ([("Ghost.sys", START)], [("Ghost.sys", MAIN)])
    (bases,) = database.execute("SELECT count(DISTINCT base) FROM drivers WHERE status = 'hidden'").fetchall()
    assert bases == (2,)
    stacked = {
        (each.kind, each.name): (each.module, each.rva, [source[-5:] for source in each.sources])
        for each in stack(store.read(tmp_path / "results"), ("kernel-routine", "start-routine", "driver"))
        if "ghost" in each.name.lower()
    }
    both, one = ["a.dmp", "b.dmp"], ["c.dmp"]
    assert stacked == {
        ("kernel-routine", "Ghost!GhostMain (hidden)"): ("Ghost.sys", MAIN, both),
        ("kernel-routine", "Ghost!GhostMain"): ("Ghost.sys", MAIN, one),
        ("start-routine", "Ghost!GhostMain+0x10 (hidden)"): ("Ghost.sys", START, both),
        ("start-routine", "Ghost!GhostMain+0x10"): ("Ghost.sys", START, one),
        ("driver", "ghost.sys (hidden)"): ("ghost.sys", None, both),
        ("driver", "ghost.sys"): ("ghost.sys", None, one),
    }


def test_a_baseline_with_the_listed_driver(tmp_path: Path) -> None:
    """Where known good machines list a driver, one that hides behind its name is new."""
    scan(tmp_path / "results", write(tmp_path / "a.dmp", "10-19041-x64", listed=False))
    scan(tmp_path / "baseline", write(tmp_path / "b.dmp", "10-19041-x64", listed=True))
    found = stack(
        store.read(tmp_path / "results"),
        ("kernel-routine", "start-routine", "driver"),
        store.read(tmp_path / "baseline"),
    )
    assert {(each.kind, each.name) for each in found} == {
        ("kernel-routine", "Ghost!GhostMain (hidden)"),
        ("start-routine", "Ghost!GhostMain+0x10 (hidden)"),
        ("driver", "ghost.sys (hidden)"),
    }


@KERNELS
def test_where_the_list_was_not_read_whole(kernel: str, tmp_path: Path) -> None:
    """An image that a list lacks which was cut short is unlisted: nobody knows whether it is hidden."""
    scan(tmp_path / "results", write(tmp_path / "a.dmp", kernel, listed=False, cut=True))
    database = store.connect(tmp_path / "results")
    assert database.execute("SELECT status FROM drivers WHERE name = 'Ghost.sys'").fetchall() == [("unlisted",)]
    found = stack(store.read(tmp_path / "results"), ("start-routine",))
    assert "Ghost!GhostMain+0x10 (unlisted)" in [each.name for each in found]


def _nameless(image: Image) -> None:
    """Take the PDB record, which alone names a driver without exports."""
    base = image.address_of["driver:Spook.sys"]
    at = image.read(base, 0x8000).index(b"RSDS")
    image.memory.space.write(base + at, bytes(4))


@KERNELS
def test_an_image_without_a_name(kernel: str, tmp_path: Path) -> None:
    """An image that nothing names is compared by its offsets all the same, wherever it lies."""
    spook = Driver("Spook.sys", size=0x9000, listed=False, driver_object=False)
    for name, before in (("a.dmp", ()), ("b.dmp", (DISK,))):
        processes = (Process("System", 4, (Thread(8, start="Spook+0x1230"),), parent=0),)
        drivers = (HAL, FLTMGR, *before, spook)
        image = build(Scene("nameless", "", kernel, processes, drivers, events=(_nameless,)), load_kernel(kernel))
        image.write_dump(tmp_path / name)
    scan(tmp_path / "results", tmp_path / "a.dmp", tmp_path / "b.dmp")
    found = stack(store.read(tmp_path / "results"), ("start-routine", "driver"))
    both = {(each.kind, each.module, each.rva): len(each.images) for each in found if each.module == "<no name>"}
    assert both == {("start-routine", "<no name>", 0x1230): 2, ("driver", "<no name>", None): 2}


def test_an_image_that_only_a_driver_object_names(tmp_path: Path, shared: Path) -> None:
    r"""An image whose header is wiped is in the tables as the driver object in \Driver says it is."""
    kernel = shared / "symbols" / "windows" / "ntkrnlmp.pdb" / "5278AFF86C341677D7D7835C85B7B844-1.json.xz"

    def wipe(image: Image) -> None:
        image.memory.space.write(image.address_of["driver:Ghost.sys"], bytes(0x400))

    dump, symbols, _ = unlisted_driver(kernel, tmp_path, changes=(wipe,))
    scan(tmp_path / "results", dump, symbols=(symbols,))
    database = store.connect(tmp_path / "results")
    query = "SELECT d.name, d.status, start_rva FROM drivers d JOIN threads ON start_module = d.name"
    assert database.execute(query).fetchall() == [("Ghost", "hidden", 0x1230)]


def test_a_listed_driver_that_makes_itself_look_hidden(tmp_path: Path) -> None:
    """An export may be called anything: its module in the tables is the one that the list says it is."""
    fake = Driver("Fake.sys", size=0x9000, exports={"Main (hidden)": MAIN})
    threads = (Thread(8, kernel_apc_disable=-1, kernel_apcs=(Apc("Fake!Main (hidden)"),)),)
    scene = Scene("fake", "", "10-19041-x64", (Process("System", 4, threads, parent=0),), (HAL, FLTMGR, fake))
    build(scene, load_kernel(scene.kernel)).write_dump(tmp_path / "a.dmp")
    scan(tmp_path / "results", tmp_path / "a.dmp")
    database = store.connect(tmp_path / "results")
    query = "SELECT kernel_routine, kernel_module, kernel_rva FROM apcs"
    assert database.execute(query).fetchall() == [("Fake!Main (hidden)", "Fake.sys", MAIN)]


def test_the_report_says_so(tmp_path: Path) -> None:
    """In a report the driver's box of such a routine is marked, and that of a listed one is not."""
    settings = scan(
        tmp_path / "results",
        write(tmp_path / "a.dmp", "10-19041-x64", listed=False),
        write(tmp_path / "c.dmp", "10-19041-x64", listed=True),
    )
    drivers = {
        (each.image, routine.role): (routine.driver.name, routine.driver.status, routine.driver.suspect)
        for each in chain.make_chains(dataset.read(settings.results))
        for link in each.links
        for routine in link.routines
    }
    assert drivers["a.dmp", "start routine"] == drivers["a.dmp", "KernelRoutine"] == ("Ghost.sys", "hidden", True)
    assert drivers["c.dmp", "KernelRoutine"] == ("Ghost.sys", "loaded", False)


def test_an_id_that_is_no_id(tmp_path: Path) -> None:
    """A thread whose CLIENT_ID was overwritten hides no image: the row has its 64 bits as a signed number."""
    threads = (Thread((1 << 64) - 4, kernel_apcs=(Apc(),)), Thread(12))
    scene = Scene("ids", "an overwritten ID", "10-19041-x64", (Process("System", 4, threads, parent=0),), (HAL,))
    build(scene, load_kernel(scene.kernel)).write_dump(tmp_path / "ids.dmp")
    settings = scan(tmp_path / "results", tmp_path / "ids.dmp")
    assert store.read(settings.results).tables["apcs"]["tid"].to_pylist() == [-4]


def test_the_marks_are_the_audits() -> None:
    """What the results are told apart by is what the audit writes behind the name of such code."""
    assert (f" ({HIDDEN})", f" ({UNLISTED})") == (HIDDEN_MARK, UNLISTED_MARK)
