"""What each parser of bytes is given to begin with: small inputs that are right, made here and nowhere stored."""

from __future__ import annotations

import json
import lzma
import struct

from fuzz.machine import ROOT

_GUID = "A9C0DE00112233445566778899AABBCC"


def pe() -> list[bytes]:
    """Two drivers, x86 and x64, with exports, imports, a PDB record and a function table."""
    from apcaudit.synthetic import pe as images
    from apcaudit.synthetic.intermediate import Pdb

    found = []
    for is_64bit in (False, True):
        made = images.PeImage(
            "Ghost.sys",
            0x4000,
            is_64bit,
            Pdb("ghost.pdb", _GUID, 3),
            (6, 1, 7601),
            0x10000,
            {"GhostMain": 0x1400, "GhostOther": 0x1800},
            {"ntoskrnl.exe": {"KeInitializeApc": 0x81111111}},
        )
        data = bytearray(0x4000)
        for rva, piece in images.lay_out(made).items():
            data[rva : rva + len(piece)] = piece
        found.append(bytes(data))
    return found


def unwind() -> list[bytes]:
    """An x64 driver, and unwind data at 0x40 alone: of every operation, and chained to itself."""
    codes = bytes.fromhex("0632 0401 2200 0230 0d03 1f64 1000 2068 0300 001a".replace(" ", ""))
    plain = bytes([1, 0x20, len(codes) // 2, 5]) + codes
    chained = bytes([1 | 4 << 3, 0, 0, 0]) + struct.pack("<III", 0x1000, 0x1100, 0x40)
    return [pe()[1], bytes(0x40) + plain.ljust(0x40, b"\0"), bytes(0x40) + chained + bytes(0x3000)]


def minidump() -> list[bytes]:
    """The minidumps that the tests build."""
    from tests.minidump_builder import write_minidump
    from tests.minidump_machine import Machine

    return [write_minidump(Machine(is_64bit).scene()) for is_64bit in (False, True)]


def page_bitmap() -> list[bytes]:
    """Kernel memory dumps of DumpType 2 and 6 with the first, the third and the last of 130 pages."""
    bits = (1 | 1 << 2 | 1 << 129).to_bytes(17, "little")
    dumps = []
    for data in crash_header():
        wide = data[4:8] == b"DU64"
        header = bytearray(data[: 0x2000 if wide else 0x1000])
        first = len(header) + 0x1000
        old = struct.pack("<4s4s4x5I", b"SDMP", b"DUMP", first, 130, 3, 130, 0) + bytes(8 if wide else 0)
        new = struct.pack("<4s4s24x3Q", b"SDMP", b"DUMP", first, 3, 130)
        for kind, summary in ((2, old), (6, new)):
            struct.pack_into("<I", header, 0xF98 if wide else 0xF88, kind)
            dumps.append((bytes(header) + summary + bits).ljust(first, b"\0") + bytes(0x3000))
    return dumps


def crash_header() -> list[bytes]:
    """The headers of those."""
    return [data[:0x2000] for data in minidump()]


def lime() -> list[bytes]:
    """A LiME image of two ranges, and one whose second range is cut."""
    ranges = [struct.pack("<4sI3Q", b"EMiL", 1, at, at + 0x1FF, 0) + bytes(0x200) for at in (0, 0x100000)]
    return [b"".join(ranges), b"".join(ranges)[:-8]]


def debugger_data() -> list[bytes]:
    """A block that states its base and nothing else."""
    block = bytearray(0x340)
    block[0x10:0x20] = b"KDBG" + struct.pack("<IQ", len(block), 0xFFFFF80000000000)
    return [bytes(block)]


def text() -> list[bytes]:
    """Names, harmless and not."""
    return [b"svchost.exe\0", "=cmd|' /C'\u202e\x1b[2J".encode("utf-16-le"), b"\x00\xd8", b"a" * 600]


def lists() -> list[bytes]:
    """A ring of three entries, and one that is a cycle without its head."""
    return [struct.pack("<6I", 8, 16, 16, 0, 0, 8), struct.pack("<6I", 8, 16, 16, 0, 8, 8)]


def symbol_file() -> list[bytes]:
    """A symbol file with few types and symbols."""
    file = min((ROOT / "symbols" / "windows").rglob("*.json.xz"))
    document = json.loads(lzma.decompress(file.read_bytes()))
    kept = {
        name: document["user_types"][name] for name in ("_ETHREAD", "_KAPC_STATE") if name in document["user_types"]
    }
    symbols = dict(list(document["symbols"].items())[:8])
    return [json.dumps({**document, "user_types": kept, "symbols": symbols, "enums": {}}).encode()]


CORPORA = {
    each.__name__: each
    for each in (pe, unwind, minidump, page_bitmap, crash_header, lime, debugger_data, text, lists, symbol_file)
}
