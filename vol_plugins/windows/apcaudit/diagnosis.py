"""What is missing when no kernel was found in an image, and what to do about it, in one line."""

from __future__ import annotations

from typing import Any

from volatility3.framework import constants, exceptions, interfaces
from volatility3.framework.layers import intel
from volatility3.framework.symbols.windows import pdbutil

from .image_file import why_no_image
from .minidump.crash_header import DUMP_HEADER64_SIZE, parse_crash_header
from .regular import path_of
from .text import printable

# The first bytes of files that are sent to the audit by mistake or in a form that vol does not read.
_FORMATS = (
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"\xfd7zXZ\0", "is compressed with xz: unpack it first"),
    (b"PK\x03\x04", "is a zip archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"MDMP", "is a user-mode minidump of one process: kernel APC lists are in kernel memory only"),
    (b"EMiL", "is a LiME image, a memory format of Linux"),
    (b"MZ", "is a Windows program"),
    (b"EVF\x09", "is a disk image (EWF)"),
)

# DumpType in a crash dump's header that no layer reads (WDK, "Varieties of Kernel-Mode Dump Files").
_DUMP_TYPES = {2: "a kernel memory dump", 3: "a header only", 6: "an automatic (bitmap kernel) memory dump"}


def diagnose(context: interfaces.context.ContextInterface, kernel_path: str) -> str:
    """Say in one line what keeps the image from being audited and what to do.

    Args:
        context: the context after vol has tried.
        kernel_path: path of the kernel's requirement in the configuration.
    """
    layer_name = context.config.get(f"{kernel_path}.layer_name", None)
    location = str(context.config.get("automagic.LayerStacker.single_location", "") or "")
    if not isinstance(layer_name, str) or layer_name not in context.layers:
        return _without_layer(location)
    pdb = find_pdb(context, layer_name)
    if pdb is None:
        return (
            "page tables of Windows were found, but no kernel image with its PDB record: the image is truncated,"
            " or the pages of the kernel's header are missing; acquire it again or try `vol windows.info -vv`"
        )
    url = context.config.get(f"{kernel_path}.symbol_table_name.isf_url", None)
    return missing_symbols(*pdb) if not url else _unusable(context, layer_name, str(url))


def _unusable(context: interfaces.context.ContextInterface, layer_name: str, url: str) -> str:
    """Say what is wrong with a symbol file that was found and that vol could not make a table of."""
    from .borrowing.borrow import borrow

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


def _without_layer(location: str) -> str:
    path = path_of(location) if location else None
    if path is None:
        return f"no Windows memory was found in {printable(location) or 'the image: give one with -f'}"
    # Whoever gave the evidence named it.
    name = printable(path.name)
    try:
        why = why_no_image(location)
        if why is not None:
            return why
        size = path.stat().st_size
        with path.open("rb") as image:
            header = image.read(DUMP_HEADER64_SIZE)
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    if not size:
        return f"{name} is empty: acquire it again"
    for magic, meaning in _FORMATS:
        if header.startswith(magic):
            return f"{name} {meaning}"
    crash = parse_crash_header(header)
    if crash is not None:
        return _of_dump(name, crash.dump_type)
    return (
        f"{name} ({size:,} bytes) holds no page tables of Windows: it is no memory image of Windows,"
        " or it is truncated, encrypted or of a format that vol does not read; compare its size with the machine's"
        " memory and acquire it again"
    )


def _of_dump(name: str, dump_type: int | None) -> str:
    if dump_type == 4:
        return f"{name} is a kernel minidump whose kernel could not be identified: the warning above says what to fetch"
    kind = _DUMP_TYPES.get(dump_type or 0)
    if kind is not None:
        return (
            f"{name} is {kind} (DumpType {dump_type}), which vol does not read:"
            " set the machine to write complete or active memory dumps"
        )
    return f"{name} is a crash dump (DumpType {dump_type}) that is truncated or damaged"
