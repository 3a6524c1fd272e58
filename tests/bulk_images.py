"""Folders of small images for the tests of many images: whole ones of several kernels, and ones broken in ten ways."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apcaudit.bulk import worker
from apcaudit.bulk.outcome import Settings
from apcaudit.bulk.reader_cache import INDEX
from apcaudit.bulk.readers import cache_folder
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import SCENES

ROOT = Path(__file__).resolve().parent.parent

NO_EXTRA = "an extra is missing: pip install '.[bulk]'"


def need_extra() -> None:
    """Skip a module's tests where the extra `bulk` is not installed."""
    for module in ("pyarrow", "duckdb", "rich"):
        pytest.importorskip(module, reason=NO_EXTRA)


@contextlib.contextmanager
def own_cache(folder: Path) -> Iterator[Path]:
    """Give the workers of this process a cache folder meanwhile, and end the processes that read images for them."""
    with _cache(folder):
        try:
            yield folder
        finally:
            worker.readers.stop()
            worker.readers.reopen()


@contextlib.contextmanager
def shared_cache() -> Iterator[Path]:
    """Give the workers of this process the cache that its tests share, and the processes that read images with it."""
    with _cache(Path(_shared.name)) as folder:
        yield folder


_shared = tempfile.TemporaryDirectory(prefix="apcaudit-tests-")


@contextlib.contextmanager
def _cache(folder: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def indexed(folder: Path, *symbols: Path) -> Path:
    """Make a cache folder in which vol has indexed the symbol files: that takes longer than to read an image.

    It is that of processes with these folders of symbol files beside ours, which are not in the index.
    """
    with _cache(folder):
        put_index(cache_folder(symbols))
    return folder


def put_index(folder: Path) -> Path:
    """Put the index of our symbol files and vol's own into a folder that processes will share."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).write_bytes(_index())
    return folder


@functools.cache
def _index() -> bytes:
    with shared_cache() as shared:
        index = cache_folder(()) / INDEX
        if not index.exists():
            # The process makes it before it answers anything.
            ask = {"do": "hash", "path": __file__, "member": None, "memory": 1 << 32, "scratch": str(shared)}
            with worker.readers.acquire(Settings(shared, offline=True)) as reader:
                reader.ask(ask, time.monotonic() + 240, lambda _: None)
        return index.read_bytes()


def write(path: Path, scene: str, kernel: str | None = None, **arguments: Any) -> Path:
    """Build a scene as a crash dump, which vol opens without a search for page tables."""
    declared = SCENES[scene](**({"kernel": kernel} if kernel else {}), **arguments)
    build(declared, load_kernel(declared.kernel)).write_dump(path)
    return path


def write_raw(path: Path, scene: str, kernel: str | None = None) -> Path:
    """Build a scene as raw memory, in which vol searches for page tables: seconds."""
    declared = SCENES[scene](**({"kernel": kernel} if kernel else {}))
    build(declared, load_kernel(declared.kernel)).write_raw(path)
    return path


def distinct(data: bytes, number: int) -> bytes:
    """Make another image of the same machine: the end of the file gets a byte that nobody reads."""
    return data + number.to_bytes(4, "little")


#: What is broken, and a word that the reason of its failure has.
BROKEN = {
    "empty.raw": "empty",
    "cut.dmp": "truncated",
    "text.raw": "no page tables",
    "zeros.raw": "no page tables",
    "noise.raw": "no page tables",
    "cut.raw.gz": "archive is damaged",
    "flipped.raw.xz": "archive is damaged",
    "wrong.zip": "archive",
    "bitmap.dmp": "automatic",
    "stranger.dmp": "symbol file",
}


def write_broken(folder: Path) -> None:
    """Write images broken in ten ways, named as in BROKEN."""
    folder.mkdir(parents=True, exist_ok=True)
    dump = write(folder / "cut.dmp", "healthy").read_bytes()
    (folder / "empty.raw").write_bytes(b"")
    (folder / "cut.dmp").write_bytes(dump[:60_000])
    (folder / "text.raw").write_bytes(b"This is no memory image.\n" * 400)
    (folder / "zeros.raw").write_bytes(bytes(1 << 20))
    (folder / "noise.raw").write_bytes(bytes(index * index * 7919 >> 8 & 0xFF for index in range(1 << 18)))
    (folder / "cut.raw.gz").write_bytes(gzip.compress(dump)[:5000])
    packed = bytearray(lzma.compress(dump))
    packed[len(packed) // 2] ^= 0xFF
    (folder / "flipped.raw.xz").write_bytes(packed)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("memory.raw", dump)
    # The member's bytes no longer have its CRC.
    (folder / "wrong.zip").write_bytes(archive.getvalue().replace(b"PAGEDU64", b"PAGEDU65", 1))
    # DumpType of a 64-bit dump's header, 6 is an automatic dump.
    (folder / "bitmap.dmp").write_bytes(dump[:0xF98] + (6).to_bytes(4, "little") + dump[0xF9C:])
    # The RSDS record's GUID: of a kernel that nobody has symbols of.
    at = dump.index(b"RSDS") + 4
    (folder / "stranger.dmp").write_bytes(dump[:at] + bytes(range(16)) + dump[at + 16 :])


def apcaudit(
    *arguments: object,
    cache: Path,
    before: Path | None = None,
    temporary: Path | None = None,
    timeout: float | None = 240,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; modules of a folder `before` are found first."""
    command = [sys.executable, "-m", "apcaudit", *map(str, arguments)]
    changed = environment(cache, before) | ({} if temporary is None else {"TMPDIR": str(temporary)})
    return subprocess.run(command, capture_output=True, text=True, check=False, env=changed, timeout=timeout, **options)


_IN_TURN = """
import json, sys
from apcaudit.cli import main
for arguments in json.loads(sys.argv[1]):
    print(main(arguments), file=sys.stderr)
    print(file=sys.stderr)
"""


def in_turn(*commands: tuple[object, ...], cache: Path, before: Path, **options: Any) -> list[tuple[int, str]]:
    """Run commands in one process that finds modules of a folder first; give their exit codes and stderr."""
    given = json.dumps([[str(each) for each in arguments] for arguments in commands])
    done = subprocess.run(
        [sys.executable, "-c", _IN_TURN, given],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        env=environment(cache, before),
        timeout=240,
        **options,
    )
    parts = done.stderr.removesuffix("\n\n").split("\n\n")
    said = [part.rpartition("\n") for part in parts]
    return [(int(code), text) for text, _, code in said]


def start(*arguments: object, cache: Path, before: Path | None = None, **variables: str) -> subprocess.Popen[str]:
    """Start the command, with further variables of the environment; modules of a folder `before` are found first."""
    command = [sys.executable, "-m", "apcaudit", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(cache, before) | variables)


def environment(cache: Path, before: Path | None = None) -> dict[str, str]:
    """Return the environment in which the checkout is run, with a cache of the tests' own."""
    paths = (None if before is None else str(before), str(ROOT), os.environ.get("PYTHONPATH"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "XDG_CACHE_HOME": str(cache)}


def descendants(pid: int) -> dict[int, int]:
    """Return the processes below one as (process, its parent), by /proc."""
    below: dict[int, list[int]] = {}
    # Tests ask again and again until they see something: a Path for each process took longer than to read it.
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                    parent = int(file.read(1024).rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            below.setdefault(parent, []).append(int(name))
    found: dict[int, int] = {}
    pending = [pid]
    while pending:
        above = pending.pop()
        found |= dict.fromkeys(below.get(above, ()), above)
        pending += below.get(above, ())
    return found


def reading(pid: int) -> list[int]:
    """Return the processes that are reading an image for a worker: forked from the one that was started for it."""
    found = descendants(pid)
    servers = {each for each in found if "apcaudit.bulk.child" in command_line(each)}
    return [each for each in servers if found[each] in servers]


def command_line(pid: int) -> str:
    """Return a process's command line, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def wait_for_reader(pid: int, after: float) -> int:
    """Return a process that has been reading an image for so many seconds."""
    since: dict[int, float] = {}
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        for each in reading(pid):
            if time.monotonic() - since.setdefault(each, time.monotonic()) >= after:
                return each
        time.sleep(0.01)
    raise AssertionError("nobody reads an image")


def gone(processes: dict[int, int]) -> bool:
    """Tell whether processes end within seconds."""
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        if not any("apcaudit" in command_line(each) for each in processes):
            return True
        time.sleep(0.05)
    return False


def folder_of(tmp_path: Path, planted: dict[str, tuple[str, str | None]], count: int = 4) -> Path:
    """Make so many images of each scene."""
    evidence = tmp_path / "evidence"
    evidence.mkdir(exist_ok=True)
    for name, (scene, kernel) in planted.items():
        data = write(tmp_path / "image.dmp", scene, kernel).read_bytes()
        for number in range(count):
            (evidence / f"{name}{number}.dmp").write_bytes(distinct(data, number))
    return evidence


def two_at_once(process: subprocess.Popen[str]) -> bool:
    """Tell whether two images are read at the same time below a process, while that or its scan runs."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit and process.poll() is None:
        if len(reading(process.pid)) == 2:
            return True
        time.sleep(0.01)
    return False


LISTEN = "0A"
"""TCP_LISTEN as /proc/net/tcp writes it (Linux, include/net/tcp_states.h)."""


def listening(pid: int) -> list[str]:
    """Name the listening TCP sockets that a process has open, empty when it is gone."""
    try:
        folder = f"/proc/{pid}/fd"
        opened = {os.readlink(f"{folder}/{each}") for each in os.listdir(folder)}
        if not any(each.startswith("socket:") for each in opened):
            return []
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return []
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return [f"{pid}: {row[1]}" for row in rows if row[3] == LISTEN and f"socket:[{row[9]}]" in opened]


def watched(process: subprocess.Popen[str]) -> tuple[set[str], set[int]]:
    """Look at a process and all below it until it ends: which sockets listened, and which processes there were."""
    sockets: set[str] = set()
    seen: set[int] = set()
    while process.poll() is None:
        every = {process.pid, *descendants(process.pid)}
        seen |= every
        for each in every:
            sockets.update(listening(each))
        time.sleep(0.005)
    return sockets, seen
