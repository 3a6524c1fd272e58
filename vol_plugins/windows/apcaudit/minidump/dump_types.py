"""What kind of dump a crash dump's header says it is (DumpType), and whether that can be read.

Sources: DUMP_TYPE of wdm.h for -1 to 7; what WinDbg writes since 2022 is from kdmp-parser (0vercl0k,
src/lib/kdmp-parser-structs.h), which reads it, and so is that Task Manager's live kernel dumps are of type 6. Vol reads
1 and 5 (volatility3 2.28.2, framework/layers/crash.py).
"""

from __future__ import annotations

from .crash_header import DUMP_TYPE_BITMAP_FULL, DUMP_TYPE_FULL, DUMP_TYPE_TRIAGE

READ = {
    DUMP_TYPE_FULL: "a complete memory dump",
    DUMP_TYPE_TRIAGE: "a kernel minidump",
    DUMP_TYPE_BITMAP_FULL: "an active memory dump",
}
"""Kinds that are read."""

_OF_WINDOWS = {
    2: "a kernel memory dump",
    3: "the header of a dump, without memory",
    6: "an automatic, kernel or live kernel memory dump",
    7: "an automatic memory dump",
}
_OF_WINDBG = {
    8: "a dump of the kernel's memory that WinDbg wrote (.dump /k)",
    9: "a dump of the kernel's and the programs' memory that WinDbg wrote (.dump /ka)",
    10: "a dump of all memory that WinDbg wrote (.dump /f)",
}

_SET = "set the machine to write complete or active memory dumps"


def why_not_read(dump_type: int) -> str | None:
    """Say what a dump is that vol does not read, and what to do; None of what it reads.

    Args:
        dump_type: DumpType of the header, 0 where that is not set.
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
