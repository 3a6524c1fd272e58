"""Why an image cannot be audited, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from volatility3.framework import constants, exceptions, interfaces
from volatility3.framework.layers import intel
from volatility3.framework.symbols.windows import pdbutil

from ..dumps.cut import describe_truncation, parse_lime
from ..dumps.header_facts import read_header_facts
from ..formats.crash_header import (
    DUMP_HEADER64_SIZE,
    DUMP_SIGNATURE,
    DUMP_TYPE_BITMAP_FULL,
    DUMP_TYPE_BITMAP_KERNEL,
    DUMP_TYPE_FULL,
    DUMP_TYPE_SUMMARY,
    DUMP_TYPE_TRIAGE,
    VALID_DUMP32,
    VALID_DUMP64,
    parse_crash_header,
)
from ..formats.files import ReadFile, path_of, why_no_image
from ..formats.text import printable

READ = {
    DUMP_TYPE_FULL: "a complete memory dump",
    DUMP_TYPE_TRIAGE: "a kernel minidump",
    DUMP_TYPE_BITMAP_FULL: "an active memory dump",
    DUMP_TYPE_SUMMARY: "a kernel memory dump",
    DUMP_TYPE_BITMAP_KERNEL: "a kernel, automatic or live kernel memory dump",
}
"""The kinds of crash dumps that vol or the plugin reads, by DumpType."""

_OF_WINDOWS = {
    3: "the header of a dump, without memory",
    7: "an automatic memory dump",
}
_OF_WINDBG = {
    8: "a dump of the kernel's memory that WinDbg wrote (.dump /k)",
    9: "a dump of the kernel's and the programs' memory that WinDbg wrote (.dump /ka)",
    10: "a dump of all memory that WinDbg wrote (.dump /f)",
}

_SET = "set the machine to write kernel, active or complete memory dumps"


def why_not_read(dump_type: int) -> str | None:
    """Say which kind of dump it is and what to do if vol does not read that kind; None if it does.

    Args:
        dump_type: DumpType of the dump's header, 0 where it is not set.
    """
    if dump_type in READ:
        return None
    if dump_type in _OF_WINDOWS:
        return f"is {_OF_WINDOWS[dump_type]} (DumpType {dump_type}), which vol does not read: {_SET}"
    if dump_type in _OF_WINDBG:
        return (
            f"is {_OF_WINDBG[dump_type]} (DumpType {dump_type}), in a format that vol does not read: acquire raw"
            f" memory, or {_SET}"
        )
    if dump_type in (0, 0xFFFFFFFF):
        return f"is a crash dump whose header does not say of which kind (DumpType {dump_type:#x}): acquire it again"
    return f"is a crash dump of a kind that is not known (DumpType {dump_type:#x}): acquire raw memory, or {_SET}"


# The first bytes of files that users give by mistake, or in a form that vol does not read.
_FORMATS = (
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"\xfd7zXZ\0", "is compressed with xz: unpack it first"),
    (b"PK\x03\x04", "is a zip archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"MDMP", "is a user-mode minidump of one process: kernel APC lists are in kernel memory only"),
    (b"MZ", "is a Windows program"),
    (b"EVF\x09", "is a disk image (EWF)"),
)

_NONE = "holds no page tables of Windows"


def diagnose(context: interfaces.context.ContextInterface, kernel_path: str) -> str:
    """Say in one line why the image cannot be audited, what to do, and what a crash dump's header tells nevertheless.

    Args:
        context: the context after vol has failed.
        kernel_path: path of the kernel's requirement in the configuration.
    """
    location = str(context.config.get("automagic.LayerStacker.single_location", "") or "")
    why = _why(context, kernel_path, location)
    file = _open_file(location)
    facts = None if isinstance(file, str) else read_header_facts(file.read, file.size)
    return why if facts is None or facts.crash is None else f"{why}. The machine stopped: {facts.crash}"


def _why(context: interfaces.context.ContextInterface, kernel_path: str, location: str) -> str:
    layer_name = context.config.get(f"{kernel_path}.layer_name", None)
    if not isinstance(layer_name, str) or layer_name not in context.layers:
        return _without_layer(location)
    pdb = find_pdb(context, layer_name)
    if pdb is None:
        found = "page tables of Windows were found, but no kernel image with its PDB record"
        file = _open_file(location)
        note = None if isinstance(file, str) else _unread(file) or _cut(file)
        if not isinstance(file, str) and _is_minidump(file):
            return note or _whole(file) or found
        if note is not None:
            return f"{note}; {found}"
        return (
            f"{found}: the image is truncated, or the pages of the kernel's header are missing; acquire it again or try"
            " `vol windows.info -vv`"
        )
    url = context.config.get(f"{kernel_path}.symbol_table_name.isf_url", None)
    return missing_symbols(*pdb) if not url else _unusable(context, layer_name, str(url))


def _unusable(context: interfaces.context.ContextInterface, layer_name: str, url: str) -> str:
    """Say what is wrong with a symbol file that was found but that vol could not load."""
    from .borrowing import borrow

    base = context.config.get(f"{context.layers[layer_name].config_path}.kernel_virtual_offset", None)
    borrowed = borrow(context, layer_name, int(base), url) if base is not None else None
    return f"the symbol file {url} cannot be loaded: it is damaged" if borrowed is None else borrowed.sentence


def missing_symbols(pdb_name: str, guid: str, age: int) -> str:
    """Say which symbol file is missing, where it goes, and the command that makes it on a connected machine."""
    path = f"windows/{pdb_name}/{guid}-{age}.json.xz"
    return (
        f"no symbol file for this kernel, {pdb_name} {guid}-{age}; on a connected machine run"
        f" `python -m volatility3.framework.symbols.windows.pdbconv -p {pdb_name} -g {guid}{age}"
        f" -o {guid}-{age}.json.xz`, then put the file at {path} below a folder given with -s"
    )


def find_pdb(context: interfaces.context.ContextInterface, layer_name: str) -> tuple[str, str, int] | None:
    """Find the kernel's PDB record in the physical memory below a layer: PDB name, GUID, age."""
    layer: Any = context.layers[layer_name]
    if isinstance(layer, intel.Intel):
        layer_name = str(layer.config["memory_layer"])
    names = [f"{name}.pdb".encode() for name in constants.windows.KERNEL_MODULE_NAMES]
    try:
        for found in pdbutil.PDBUtility.pdbname_scan(context, layer_name, 0x1000, names):
            return str(found["pdb_name"]), str(found["GUID"]), int(found["age"] or 0)
    except exceptions.InvalidAddressException:
        pass
    return None


@dataclass(frozen=True, slots=True)
class _File:
    """An image's file: printable name, size in bytes, first bytes, and a function that reads the others."""

    name: str
    size: int
    head: bytes
    read: ReadFile


def _open_file(location: str) -> _File | str:
    """Read the first bytes of the file at a location; return a message where that is not possible."""
    path = path_of(location) if location else None
    if path is None:
        return f"no Windows memory was found in {printable(location) or 'the image: give one with -f'}"
    why = why_no_image(location)
    if why is not None:
        return why
    # The name may have been chosen by an attacker.
    name = printable(path.name)

    def read(offset: int, length: int) -> bytes:
        with path.open("rb") as image:
            image.seek(offset)
            return image.read(length)

    try:
        return _File(name, path.stat().st_size, read(0, DUMP_HEADER64_SIZE), read)
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


def _without_layer(location: str) -> str:
    file = _open_file(location)
    if isinstance(file, str):
        return file
    if not file.size:
        return f"{file.name} is empty: acquire it again"
    for magic, meaning in _FORMATS:
        if file.head.startswith(magic):
            return f"{file.name} {meaning}"
    return (
        _unread(file)
        or _cut(file)
        or _whole(file)
        or (
            f"{file.name} ({file.size:,} bytes) {_NONE}: it is no memory image of Windows, or it is truncated,"
            " encrypted or of a format that vol does not read; compare its size with the machine's memory and acquire"
            " it again"
        )
    )


def _unread(file: _File) -> str | None:
    """Say which kind of dump it is, if vol does not read that kind."""
    header = parse_crash_header(file.head)
    why = None if header is None else why_not_read(header.dump_type)
    if header is not None and header.is_encrypted:
        why = "is an encrypted crash dump: decrypt it first, with the key that the machine was given"
    return None if why is None else f"{file.name} {why}"


def _cut(file: _File) -> str | None:
    """Say where an image is truncated and what it lacks, None if it is not."""
    lime = parse_lime(file.read, file.size)
    header = parse_crash_header(file.head)
    if lime is not None:
        why = None if lime.cut is None else f"is a LiME image that {lime.cut}, and ranges behind that are not known"
    elif header is not None:
        why = describe_truncation(header, file.read, file.size)
        why = None if why is None else f"is {READ.get(header.dump_type)} (DumpType {header.dump_type}) that {why}"
    else:
        begun = file.head.startswith((DUMP_SIGNATURE + VALID_DUMP32, DUMP_SIGNATURE + VALID_DUMP64))
        why = f"is a crash dump that is truncated in its header, at {file.size:#x}" if begun else None
    return None if why is None else f"{file.name} {why}: acquire it again"


def _is_minidump(file: _File) -> bool:
    header = parse_crash_header(file.head)
    return header is not None and header.dump_type == DUMP_TYPE_TRIAGE


def _whole(file: _File) -> str | None:
    """Say that an image in a known format is complete, and yet no Windows was found in it."""
    lime = parse_lime(file.read, file.size)
    if lime is not None:
        ranges = f"{len(lime.ranges)} range{'' if len(lime.ranges) == 1 else 's'}"
        return f"{file.name} is a whole LiME image ({ranges}) that {_NONE}: the format is mostly of Linux machines"
    header = parse_crash_header(file.head)
    if header is None:
        return None
    if header.dump_type == DUMP_TYPE_TRIAGE:
        why = "whose kernel could not be identified: the warning above says what to fetch"
        return f"{file.name} is a kernel minidump {why}"
    return (
        f"{file.name} is {READ.get(header.dump_type)} (DumpType {header.dump_type}) that {_NONE} where its header says,"
        f" at {header.directory_table_base:#x}: it is damaged or truncated; acquire it again"
    )
