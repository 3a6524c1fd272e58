"""A machine with a driver that the module list lacks and a driver object tells of, on a genuine kernel's symbols."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import Kernel, load_kernel
from apcaudit.synthetic.scene import Code, Driver, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import FLTMGR, HAL
from tests.volatility import alone


def unlisted_driver(
    symbols: Path,
    folder: Path,
    *,
    start: str = "Ghost+0x1230",
    code: dict[int, Code] | None = None,
    changes: tuple[Callable[[Image], None], ...] = (),
) -> tuple[Path, Path, Kernel]:
    """Build the machine, with a thread that starts in the driver Ghost or elsewhere.

    Args:
        symbols: the kernel's genuine symbol file: the project's own have no object directories.
        folder: where image and symbol folder are put.
        start: where the thread starts.
        code: pieces of the driver's bytes.
        changes: what is done to the image before its driver object is hung into the directory.

    Returns:
        The image, the symbol folder for vol, and the kernel.
    """
    driver = Driver("Ghost.sys", size=0x9000, listed=False, code=code or {})
    processes = (Process("System", 4, (Thread(8, start=start),), parent=0),)
    scene = Scene("objects", "a driver object", str(symbols), processes, (HAL, FLTMGR, driver))
    kernel = load_kernel(symbols)
    image = build(scene, kernel)
    for change in changes:
        change(image)
    _directories(image, "Ghost.sys")
    dump = folder / "objects.dmp"
    image.write_dump(dump)
    return dump, alone(symbols, folder), kernel


def _directories(image: Image, driver: str) -> None:
    r"""Hang a driver object into \Driver below the root directory, as the object manager keeps them."""
    memory, pool = image.memory, image._machine.pool

    def directory(name: str, bucket: int, content: int) -> int:
        body = pool.place_object("Driver", memory.size("_OBJECT_DIRECTORY"), name=name)
        entry = pool.allocate(memory.size("_OBJECT_DIRECTORY_ENTRY"), b"ObDi")
        memory.write(entry, "_OBJECT_DIRECTORY_ENTRY", "Object", content)
        # A chain that comes back to itself ends where it does.
        memory.write(entry, "_OBJECT_DIRECTORY_ENTRY", "ChainLink", entry)
        memory.write(body, "_OBJECT_DIRECTORY", f"HashBuckets[{bucket}]", entry)
        return int(body)

    root = directory("\\", 36, directory("Driver", 7, image.address_of[f"driver-object:{driver}"]))
    memory.write_pointer(image.kernel.address("ObpRootDirectoryObject"), root)
