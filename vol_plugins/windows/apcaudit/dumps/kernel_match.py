"""Finds the symbol file of a minidump's kernel by comparing addresses of variables that the dump's headers contain."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from ..formats import symbol_file

CACHE_VERSION = 2
"""Increase when the tables below change; then cached results of earlier versions are ignored."""

# Symbols whose addresses are compared, or whose variables synthesized.py fills from the dump's headers.
WANTED_SYMBOLS = (
    "CmNtCSDVersion",
    "ExpSystemResourcesList",
    "IopErrorLogListHead",
    "KdDebuggerDataBlock",
    "KdVersionBlock",
    "KeBugCheckCallbackListHead",
    "KeNumberProcessors",
    "KernelVerifier",
    "KeTimeIncrement",
    "KiProcessorBlock",
    "MmHighestUserAddress",
    "MmLastUnloadedDriver",
    "MmPfnDatabase",
    "MmPhysicalMemoryBlock",
    "MmSpecialPoolTag",
    "MmSystemRangeStart",
    "MmUnloadedDrivers",
    "MmUserProbeAddress",
    "MmVerifierData",
    "ObpRootDirectoryObject",
    "ObpTypeObjectType",
    "PsActiveProcessHead",
    "PsLoadedModuleList",
    "PspCidTable",
)

_LDR_MEMBERS = (
    "BaseDllName",
    "CheckSum",
    "DllBase",
    "FullDllName",
    "InLoadOrderLinks",
    "SizeOfImage",
    "TimeDateStamp",
)
WANTED_TYPES: Mapping[str, tuple[str, ...]] = {
    "_CLIENT_ID": ("UniqueProcess",),
    "_DBGKD_GET_VERSION64": ("KernBase", "MachineType", "MajorVersion", "MinorVersion", "PsLoadedModuleList"),
    "_EPROCESS": ("ActiveProcessLinks", "ImageFileName", "Pcb", "UniqueProcessId"),
    "_ETHREAD": ("Cid",),
    "_KAPC_STATE": ("Process",),
    "_KLDR_DATA_TABLE_ENTRY": _LDR_MEMBERS,
    "_KPRCB": ("CurrentThread", "Number"),
    "_KPROCESS": ("DirectoryTableBase",),
    "_KTHREAD": ("ApcState", "ApcStateIndex", "SavedApcState"),
    "_KUSER_SHARED_DATA": (
        "InterruptTime",
        "NtMajorVersion",
        "NtMinorVersion",
        "NtProductType",
        "NtSystemRoot",
        "SystemTime",
    ),
    "_LDR_DATA_TABLE_ENTRY": _LDR_MEMBERS,
}

CACHE_FOLDER = "apcaudit_kernel_symbols"
"""Name of the folder of a SymbolCache."""

_NAME_SIZE = 32

# How many addresses must agree at least to identify a kernel; two builds differ in nearly all of them.
_FEWEST_AGREEING = 3


@dataclass(frozen=True, slots=True)
class TypeLayout:
    """The size of a structure, and the offsets of those WANTED_TYPES members that this kernel has, in bytes."""

    size: int
    members: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class KernelSymbolFile:
    """The needed contents of a kernel's symbol file; addresses are relative to the kernel's base."""

    url: str
    pdb_name: str
    guid: str
    age: int
    symbols: Mapping[str, int]
    types: Mapping[str, TypeLayout]


@dataclass(frozen=True, slots=True)
class KernelMatch:
    """The result of a search: the matching symbol file; None if no file, or several different ones, match.

    `agreeing` names the symbols whose addresses agree, `candidates` are all matching files.
    """

    kernel: KernelSymbolFile | None
    agreeing: tuple[str, ...]
    candidates: tuple[KernelSymbolFile, ...]
    files_seen: int


def match_kernel(addresses: Mapping[str, int], files: Iterable[KernelSymbolFile]) -> KernelMatch:
    """Find the kernel whose symbols have the given addresses, which are relative to its base.

    A file is a candidate if at least three addresses agree and none differs. Several files of one PDB count as one;
    if the candidates are of different PDBs, the kernel stays unknown.
    """
    candidates: list[KernelSymbolFile] = []
    agreeing: tuple[str, ...] = ()
    seen = 0
    for kernel in files:
        seen += 1
        common = addresses.keys() & kernel.symbols.keys()
        if len(common) >= _FEWEST_AGREEING and all(addresses[name] == kernel.symbols[name] for name in common):
            candidates.append(kernel)
            agreeing = tuple(sorted(common))
    unambiguous = len({(kernel.guid, kernel.age) for kernel in candidates}) == 1
    return KernelMatch(candidates[0] if unambiguous else None, agreeing, tuple(candidates), seen)


def kernel_symbols_from_isf(url: str, isf: Any) -> KernelSymbolFile | None:
    """Extract the needed contents of a decoded symbol file (ISF); None if it does not name its PDB or is malformed."""
    try:
        pdb = isf["metadata"]["windows"]["pdb"]
        symbols = {name: int(isf["symbols"][name]["address"]) for name in WANTED_SYMBOLS if name in isf["symbols"]}
        types = {
            name: TypeLayout(
                int(isf["user_types"][name]["size"]),
                {
                    member: int(isf["user_types"][name]["fields"][member]["offset"])
                    for member in members
                    if member in isf["user_types"][name]["fields"]
                },
            )
            for name, members in WANTED_TYPES.items()
            if name in isf["user_types"]
        }
        return KernelSymbolFile(url, str(pdb["database"]), str(pdb["GUID"]).upper(), int(pdb["age"]), symbols, types)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None


class SymbolCache:
    """Caches the needed contents of symbol files in a folder, a JSON file for each; any may be missing or damaged.

    Each is written as soon as its symbol file was read, whole or not at all. So a search that is killed keeps what it
    has read, and processes may use one folder at the same time.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def symbols(self, url: str, stamp: list[int], opener: Callable[[str], IO[bytes]]) -> KernelSymbolFile | None:
        """Return a symbol file's needed contents, from the cache if its `stamp` (size, mtime) has not changed.

        None for a file that is not a kernel's or cannot be read.
        """
        path = os.path.join(
            self._folder, f"{hashlib.sha256(url.encode('utf-8', 'backslashreplace')).hexdigest()[:_NAME_SIZE]}.json"
        )
        try:
            with open(path, encoding="utf-8") as cached:
                entry = json.load(cached)
            if (entry["version"], entry["url"], entry["stamp"]) == (CACHE_VERSION, url, stamp):
                return _from_entry(url, entry)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        kernel = None
        try:
            with opener(url) as stream:
                kernel = kernel_symbols_from_isf(url, symbol_file.load(stream))
        except (symbol_file.SymbolFileError, EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error):
            pass  # damaged: cached as a file without a kernel
        except OSError:
            return None
        self._save(path, {"version": CACHE_VERSION, "url": url, "stamp": stamp, **_to_entry(kernel)})
        return kernel

    def _save(self, path: str, entry: dict[str, Any]) -> None:
        # Errors of the file system are ignored: then the symbol file is read again the next time.
        temporary = None
        try:
            os.makedirs(self._folder, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".unfinished-")
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                # Not dump: that encodes each value by itself, in Python.
                stream.write(json.dumps(entry))
            os.replace(temporary, path)
        except OSError:
            if temporary is not None:
                with suppress(OSError):
                    os.unlink(temporary)


def _to_entry(kernel: KernelSymbolFile | None) -> dict[str, Any]:
    if kernel is None:
        return {"pdb": None}
    return {
        "pdb": [kernel.pdb_name, kernel.guid, kernel.age],
        "symbols": dict(kernel.symbols),
        "types": {name: [layout.size, dict(layout.members)] for name, layout in kernel.types.items()},
    }


def _from_entry(url: str, entry: dict[str, Any]) -> KernelSymbolFile | None:
    if entry["pdb"] is None:
        return None
    pdb_name, guid, age = entry["pdb"]
    symbols = {str(name): int(address) for name, address in entry["symbols"].items()}
    types = {
        str(name): TypeLayout(int(size), {str(member): int(offset) for member, offset in members.items()})
        for name, (size, members) in entry["types"].items()
    }
    return KernelSymbolFile(url, str(pdb_name), str(guid), int(age), symbols, types)
