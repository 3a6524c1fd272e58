"""Completing symbol files that lack structures: with those of another kernel, checked against the image's threads."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from volatility3.framework import constants, interfaces
from volatility3.framework.layers import resources
from volatility3.framework.symbols import intermed

from .. import windows
from ..formats import symbol_file
from ..formats.files import check_url
from ..formats.layout import Layout, LayoutError, read_layout
from ..formats.lists import walk
from ..formats.symbol_file import IsfTypes, merge_types, missing_types, size_conflict
from ..image import Memory
from ..image.structures import read_build
from ..image.symbols import canonical
from ..model import ThreadMembers
from ..windows import PAGE_SIZE

# The first digits of the invented GUIDs of the symbol files that ship. Those of genuine kernels are left out: they are
# many and large, and do not name their build.
_GUID = "A9C0DE00"

_PAE_ENTRY = 8  # sizeof(_MMPTE) of an x86 kernel with PAE (Intel SDM volume 3, 4.4)


@dataclass(frozen=True, slots=True)
class Donor:
    """A symbol file to take types from: URL, document, build, bytes of a pointer, whether its kernel uses PAE."""

    url: str
    document: Mapping[str, Any]
    build: int
    pointer_size: int
    pae: bool

    @property
    def name(self) -> str:
        """Its name in messages."""
        pe = self.document["metadata"]["windows"]["pe"]
        bits = "x64" if self.pointer_size == 8 else "x86 PAE" if self.pae else "x86"
        return f"Windows {pe['major']}.{pe['minor']}.{self.build} {bits} ({'/'.join(self.url.split('/')[-2:])})"


def read_document(url: str) -> dict[str, Any]:
    """Read a symbol file's JSON.

    Raises:
        OSError, SymbolFileError: it cannot be read or is no JSON.
    """
    check_url(url)
    with resources.ResourceAccessor().open(url) as file:
        document: dict[str, Any] = symbol_file.load(file)
    return document


def find_donors(pointer_size: int, *, pae: bool, build: int | None) -> list[Donor]:
    """Return the shipped files in Volatility's symbol path that fit a machine, the nearest build first.

    Args:
        pointer_size: bytes of a pointer.
        pae: whether the machine uses PAE; files whose PAE agrees come first.
        build: the machine's build number, None if unknown.
    """
    found: dict[str, Donor] = {}
    for name in constants.windows.KERNEL_MODULE_NAMES:
        for url in intermed.IntermediateSymbolTable.file_symbol_url(f"windows/{name}.pdb"):
            file = url.split("/")[-1]
            if file.upper().startswith(_GUID) and file not in found:
                donor = _read_donor(url)
                if donor is not None and donor.pointer_size == pointer_size:
                    found[file] = donor
    return sorted(found.values(), key=lambda donor: (donor.pae != pae, abs(donor.build - (build or 0)), donor.url))


def _read_donor(url: str) -> Donor | None:
    try:
        document = read_document(url)
        size = int(document["base_types"]["pointer"]["size"])
        # The third part of the version is the build; pdbconv and the schema call it revision.
        build = int(document["metadata"]["windows"]["pe"]["revision"])
        pae = size == 4 and document["user_types"]["_MMPTE"]["size"] == _PAE_ENTRY
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Donor(url, document, build, size, pae)


THREADS = 64
"""How many threads of the System process are compared with the layout."""

_SYSTEM_PID = 4  # of every Windows from XP on (Windows Internals, "System process")
_MOST_WRONG = 8
"""One thread in this many may contradict the layout, since an image of a running machine is smeared."""

_HIGHEST_COUNT = 0x1000  # of KernelApcDisable, positive or negative; genuine dumps have down to -12

# A KAPC that is a member of every thread, and whose Thread is that thread: since Windows 8, and before.
_EMBEDDED = ("Tcb.SchedulerApc", "Tcb.SuspendApc")


@dataclass(frozen=True, slots=True)
class Fit:
    """How many of the threads agree with the layout; `reason` says why the layout does not fit, None if it does."""

    agreeing: int
    threads: int
    reason: str | None = None


def probe(memory: Memory, address_of: Callable[[str], int | None], types: IsfTypes) -> Fit:
    """Check a layout against the image.

    Args:
        memory: the image.
        address_of: virtual address of a symbol of the kernel, None for one that it lacks.
        types: the structures to check.
    """
    try:
        layout = read_layout(types.member, types.size_of)
    except LayoutError as error:
        return Fit(0, 0, str(error))
    symbol = address_of("PsInitialSystemProcess")
    process = None if symbol is None else memory.pointer(symbol)
    if not process:
        return Fit(0, 0, "PsInitialSystemProcess cannot be read")
    reason = _not_system(memory, types, process)
    if reason is not None:
        return Fit(0, 0, reason)
    links = types.member("_EPROCESS", "ThreadListHead.Flink")
    if links is None:
        return Fit(0, 0, "_EPROCESS has no ThreadListHead")
    ring = walk(memory.links, process + links.offset, pointer_size=memory.pointer_size, bound=THREADS).entries
    threads = [entry - layout.thread_list_entry for entry in ring]
    agreeing = sum(_agrees(memory, layout, types, thread, process) for thread in threads)
    if not threads or (len(threads) - agreeing) * _MOST_WRONG > len(threads):
        return Fit(agreeing, len(threads), f"{agreeing} of {len(threads)} threads of System agree with it")
    return Fit(agreeing, len(threads))


def _not_system(memory: Memory, types: IsfTypes, process: int) -> str | None:
    pid, name = types.member("_EPROCESS", "UniqueProcessId"), types.member("_EPROCESS", "ImageFileName")
    if pid is None or name is None:
        return "_EPROCESS has no UniqueProcessId or ImageFileName"
    if memory.read(process, 1) != bytes([windows.PROCESS_OBJECT]):
        return f"PsInitialSystemProcess points to {process:#x}, where no process is"
    if memory.pointer(process + pid.offset) != _SYSTEM_PID or memory.read(process + name.offset, 7) != b"System\0":
        return "PsInitialSystemProcess is not System with PID 4 in it"
    return None


def _agrees(memory: Memory, layout: Layout, types: IsfTypes, thread: int, process: int) -> bool:
    """Tell whether the members at an address are consistent as those of a thread of a process."""
    data = memory.read(thread, layout.thread.size)
    if data is None:
        return False
    members = ThreadMembers._make(layout.thread(data))
    base, limit = members.stack_base or 0, members.stack_limit or 0
    return (
        members.dispatcher_type == windows.THREAD_OBJECT
        and members.pid == _SYSTEM_PID
        and bool(members.tid)
        and (members.tid or 0) % windows.ID_STEP == 0
        and members.process == process
        and (members.state or 0) <= windows.IN_SWAP
        and members.system_thread != 0
        and members.apc_state_index in (0, 1)
        and (members.apc_process if members.apc_state_index == 0 else members.saved_process) == process
        and (members.apc_state_index == 1 or not members.saved_process)
        and base % PAGE_SIZE == limit % PAGE_SIZE == 0
        and limit < base
        and abs(members.kernel_apc_disable or 0) <= _HIGHEST_COUNT
        and _linked(memory, thread + layout.kernel_head, members.apc_kernel_flink)
        and _linked(memory, thread + layout.user_head, members.apc_user_flink)
        and _has_own_kapc(data, types, thread)
    )


def _linked(memory: Memory, head: int, flink: int | None) -> bool:
    """Tell whether the entry that a list head points to points back; the head of an empty list points to itself."""
    links = memory.links(flink) if flink else None
    return links is not None and links[1] == head


def _has_own_kapc(data: bytes, types: IsfTypes, thread: int) -> bool:
    for path in _EMBEDDED:
        kind, owner = types.member("_ETHREAD", f"{path}.Type"), types.member("_ETHREAD", f"{path}.Thread")
        if kind is not None and owner is not None:
            end = owner.offset + owner.size
            return (
                data[kind.offset] == windows.APC_OBJECT and int.from_bytes(data[owner.offset : end], "little") == thread
            )
    return False


# The structures that vol requires of a symbol file or that the audit cannot do without; others may be missing.
_INDISPENSABLE = ("_ETHREAD", "_KTHREAD", "_EPROCESS", "_KPROCESS", "_KAPC", "_KAPC_STATE", "_LIST_ENTRY")


@dataclass(frozen=True, slots=True)
class Borrowed:
    """The completed symbol file and a sentence on it; `url` is None where no types fit, and the sentence says why."""

    url: str | None
    sentence: str


def missing_structures(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the indispensable structures that a symbol file lacks."""
    return tuple(name for name in _INDISPENSABLE if name not in document["user_types"])


def borrow(
    context: interfaces.context.ContextInterface, layer_name: str, kernel_base: int, url: str
) -> Borrowed | None:
    """Complete the symbol file of a kernel; None where it lacks nothing or cannot be read.

    Args:
        context: the context that has the layer.
        layer_name: the layer of the kernel's virtual memory.
        kernel_base: virtual address of the kernel's image.
        url: the kernel's symbol file.
    """
    try:
        own = read_document(url)
        lacks = missing_structures(own)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not lacks:
        return None
    try:
        return _borrow(context, layer_name, kernel_base, url, own, lacks)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # The document comes from anybody; if it has not the form of a symbol file, one of these errors shows it.
        return Borrowed(None, f"the kernel's symbol file {_file(url)} has not the form of one: {error!r}")


def _borrow(
    context: interfaces.context.ContextInterface,
    layer_name: str,
    kernel_base: int,
    url: str,
    own: Mapping[str, Any],
    lacks: tuple[str, ...],
) -> Borrowed:
    memory = Memory(context, layer_name)
    base = canonical(kernel_base, memory.bits)

    def address_of(symbol: str) -> int | None:
        found = own["symbols"].get(symbol)
        return None if found is None else base + int(found["address"])

    build = read_build(memory, address_of)
    refused = []
    pae = memory.pointer_size == 4 and memory.paging.entry_size == memory.pointer_size * 2
    for donor in find_donors(memory.pointer_size, pae=pae, build=build):
        reason = size_conflict(own, donor.document)
        if reason is None:
            document = merge_types(own, donor.document, donor.name)
            fit = probe(memory, address_of, IsfTypes(document))
            if fit.reason is None:
                return _save(document, url, donor, _sentence(own, url, lacks, donor, fit))
            reason = fit.reason
        refused.append(f"{donor.name}: {reason}")
    return Borrowed(None, _refusal(url, lacks, build, refused))


def _file(url: str) -> str:
    return "/".join(url.split("/")[-2:])


def _sentence(own: Mapping[str, Any], url: str, lacks: tuple[str, ...], donor: Donor, fit: Fit) -> str:
    others = len(missing_types(own, donor.document)) - len(lacks)
    return (
        f"the kernel's symbol file {_file(url)} lacks {', '.join(lacks)}{f' and {others} others' if others else ''}:"
        f" they are taken from {donor.name}, the nearest that ships; {fit.agreeing} of {fit.threads} threads of System"
        " agree with them, other structures were not checked"
    )


def _refusal(url: str, lacks: tuple[str, ...], build: int | None, refused: list[str]) -> str:
    return (
        f"the kernel's symbol file {_file(url)} lacks {', '.join(lacks)}, as Microsoft published its PDB, and none of"
        f" the {len(refused)} that ship fits the image (build {build or 'unknown'})"
        f"{': ' if refused else ''}{'; '.join(refused)}; put a symbol file that has these types in its place, made by"
        " pdbconv from a PDB of the same build that has them, with the addresses of this one"
    )


def _save(document: Mapping[str, Any], url: str, donor: Donor, sentence: str) -> Borrowed:
    try:
        return Borrowed(_write(document, url, donor.url), sentence)
    except OSError as error:
        reason = f"the file that would complete it cannot be written into {constants.CACHE_PATH}: {error.strerror}"
        return Borrowed(None, f"{sentence}; {reason}")


def _write(document: Mapping[str, Any], url: str, donor_url: str) -> str:
    """Write a document into Volatility's cache, under the name of the kernel's symbol file, and return its URL."""
    key = hashlib.sha256(f"{url}\0{donor_url}".encode()).hexdigest()[:16]
    folder = pathlib.Path(constants.CACHE_PATH, f"apcaudit_types_{key}", url.split("/")[-2])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (url.split("/")[-1].partition(".json")[0] + ".json")
    # Another process may be reading it.
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            # Not dump: that encodes each value by itself, in Python.
            file.write(json.dumps(document))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path.absolute().as_uri()
