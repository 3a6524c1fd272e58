"""What is wrong with the headers of a minidump: where it was cut, and fields that cannot be true.

Every sentence says what the audit lacks for it. What Windows leaves out in ordinary dumps is no defect: bits of
MiniDumpFields for parts that are not there (BrokenDriverOffset is 0 though its bit is set), fields that are 0 because
nothing belongs there, and the option bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields

from .crash_header import CrashHeader
from .files import ReadFile
from .triage_header import (
    TRIAGE_DUMP_CONTEXT,
    TRIAGE_DUMP_DATA_BLOCKS,
    TRIAGE_DUMP_DATAPAGE,
    TRIAGE_DUMP_DEBUGGER_DATA,
    TRIAGE_DUMP_DRIVER_LIST,
    TRIAGE_DUMP_EXCEPTION,
    TRIAGE_DUMP_PRCB,
    TRIAGE_DUMP_PROCESS,
    TRIAGE_DUMP_STACK,
    TRIAGE_DUMP_THREAD,
    TRIAGE_DUMP_VALID,
    TriageHeader,
    triage_header_size,
)

_MARK_SIZE = len(TRIAGE_DUMP_VALID)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the file: the field with its offset, what it holds, and the bit of MiniDumpFields that claims it.

    `size` is the field with its size or number of entries, `read` whether the audit reads the part by this field,
    `optional` whether a dump may claim the part and have nothing of it.
    """

    field: str
    holds: str
    claim: int = 0
    size: str | None = None
    read: bool = True
    optional: bool = False


_BLOCKS = "the blocks of memory"

_PARTS = (
    _Part("prcb_offset", "the crashed processor's KPRCB", TRIAGE_DUMP_PRCB),
    _Part("process_offset", "the crashed thread's process", TRIAGE_DUMP_PROCESS),
    _Part("thread_offset", "the crashed thread", TRIAGE_DUMP_THREAD),
    _Part("call_stack_offset", "the crashed thread's stack", TRIAGE_DUMP_STACK, "size_of_call_stack"),
    _Part("debugger_data_offset", "the kernel's addresses", TRIAGE_DUMP_DEBUGGER_DATA, "debugger_data_size"),
    _Part("driver_list_offset", "the list of drivers", TRIAGE_DUMP_DRIVER_LIST, "driver_count"),
    # A driver's entry has the place of its name.
    _Part("string_pool_offset", "the names of drivers", size="string_pool_size", read=False, optional=True),
    _Part("unloaded_drivers_offset", "the list of unloaded drivers"),
    _Part("data_blocks_offset", _BLOCKS, TRIAGE_DUMP_DATA_BLOCKS, "data_blocks_count", optional=True),
    _Part("data_page_offset", "the page of memory at the crash", TRIAGE_DUMP_DATAPAGE, "data_page_size", optional=True),
    _Part("broken_driver_offset", "the name of the driver that Windows blames"),
    _Part("mm_offset", "figures of the memory manager", read=False),
)

# CONTEXT and EXCEPTION_RECORD lie in the crash header itself, where they are read.
_IN_HEADER = (
    _Part("context_offset", "the crashed processor's registers", TRIAGE_DUMP_CONTEXT, read=False),
    _Part("exception_offset", "the exception", TRIAGE_DUMP_EXCEPTION, read=False),
)

_COUNTS = ("driver_count", "data_blocks_count")  # of entries, which are read as far as they go

_CLAIMED = "though MiniDumpFields says that there is one"

# DUMP_MM_STORAGE (Dump.h) begins with Version and its Size, the list of unloaded drivers with their number.
_MM_VERSIONS = (1, 2, 3)
_UNLOADED_ENTRY = {4: 40, 8: 56}
MOST_UNLOADED_DRIVERS = 50  # MI_UNLOADED_DRIVERS

# DUMP_BLOB_FILE_HEADER: two signatures, HeaderSize, BuildNumber; then for each blob a DUMP_BLOB_HEADER: HeaderSize, a
# GUID, DataSize, PrePad, PostPad (mindumpdef.h, Windows SDK). Drivers and Windows add them behind the minidump itself.
_BLOBS = struct.Struct("<8sII")
_BLOBS_SIGNATURE = b"DumpBlob"
_BLOB = struct.Struct("<I16x3I")
_MOST_BLOBS = 4096


def promised_size(triage: TriageHeader, read: ReadFile, file_size: int) -> int | None:
    """Return how many bytes a minidump should have at least if the file is too short; None if it is long enough.

    Args:
        triage: its header.
        read: reads the file.
        file_size: its size in bytes.
    """
    if read(triage.valid_offset, _MARK_SIZE) == TRIAGE_DUMP_VALID and triage.valid_offset:
        return _end_of_blobs(triage.valid_offset + _MARK_SIZE, read, file_size)
    if triage.size_of_dump > file_size:
        return triage.size_of_dump
    return None


def _end_of_blobs(start: int, read: ReadFile, file_size: int) -> int | None:
    """Return where the data behind the minidump itself ends, if the file ends before."""
    head = read(start, _BLOBS.size)
    if len(head) < _BLOBS.size or not head.startswith(_BLOBS_SIGNATURE):
        return None
    at: int = start + _BLOBS.unpack(head)[1]
    for _ in range(_MOST_BLOBS):
        if at == file_size:
            return None
        blob = read(at, _BLOB.size)
        if len(blob) < _BLOB.size:
            return max(at + _BLOB.size, file_size + 1)
        header, *sizes = _BLOB.unpack(blob)
        if header < _BLOB.size:
            return None
        at += sum(sizes, header)
        if at > file_size:
            return at
    return None


def find_defects(header: CrashHeader, triage: TriageHeader, read: ReadFile, file_size: int) -> Iterator[str]:
    """Yield a sentence on each defect of a minidump's headers.

    Args:
        header: the crash header.
        triage: the minidump's own header, behind it.
        read: reads the file.
        file_size: its size in bytes.
    """
    promised = promised_size(triage, read, file_size)
    marked = bool(triage.valid_offset) and read(triage.valid_offset, _MARK_SIZE) == TRIAGE_DUMP_VALID
    if promised is not None:
        yield _cut(triage, promised, file_size, behind=marked)
    elif not marked:
        yield _damaged(triage, "valid_offset", f"and no {TRIAGE_DUMP_VALID.decode()} mark is there")
    end = triage.valid_offset + _MARK_SIZE
    if marked and not end <= triage.size_of_dump <= file_size:
        yield _damaged(triage, "size_of_dump", f"though the minidump ends at {end:#x}")
    checks = _Checks(header, triage, read, promised or file_size)
    told = {"valid_offset", "size_of_dump"}
    for field, problem, missing in checks.all():
        if field not in told:
            told.add(field)
            yield _damaged(triage, field, problem) if missing is None else _lacks(triage, field, problem, missing)


def _cut(triage: TriageHeader, promised: int, file_size: int, *, behind: bool) -> str:
    """Say what a file that was cut lacks; `behind` is whether the cut lies behind the minidump itself."""
    if behind:
        had = f"it has {file_size:,} of at least {promised:,} bytes"
        return f"the minidump is cut: {had}; missing: only what drivers added behind it"
    offsets = {part.holds: int(getattr(triage, part.field)) for part in _PARTS}
    begun = [holds for holds, offset in offsets.items() if 0 < offset < file_size]
    last = max(begun, key=lambda holds: offsets[holds], default=_BLOCKS)
    # Blocks lie behind their table, and are counted one by one.
    missing = [] if last == _BLOCKS else [f"{last} (in part)"]
    missing += [holds for holds, offset in offsets.items() if file_size <= offset < promised]
    text = f"the minidump is cut: it has {file_size:,} of the {promised:,} bytes that its header promises"
    return f"{text}; missing: {', '.join(missing)}" if missing else text


def _damaged(triage: TriageHeader, field: str, problem: str) -> str:
    return f"the minidump's header is damaged: {_shown(triage, field)}, {problem}"


def _lacks(triage: TriageHeader, field: str, problem: str, missing: str) -> str:
    return f"the minidump lacks {missing}: {_shown(triage, field)}, {problem}"


def _shown(triage: TriageHeader, field: str) -> str:
    value = getattr(triage, field)
    return f"{_name(field)} is {value.hex() if isinstance(value, bytes) else hex(value)}"


def _name(field: str) -> str:
    """Return the name of a member of TRIAGE_DUMP as Dump.h has it."""
    return "".join(word.capitalize() for word in field.split("_"))


_Problem = tuple[str, str, "str | None"]
"""A field, what is wrong with it, and what the audit lacks for it; None where it lacks nothing."""


def next_part(triage: TriageHeader, offset: int, end: int) -> int:
    """Return the offset of the part that follows the one at an offset, or the end of the file."""
    return min((at for part in _PARTS if offset < (at := int(getattr(triage, part.field))) < end), default=end)


class _Checks:
    """Checks the fields of one header against one another; `end` is where the file ends, or was to end."""

    def __init__(self, header: CrashHeader, triage: TriageHeader, read: ReadFile, end: int) -> None:
        self._header = header
        self._triage = triage
        self._read = read
        self._end = end
        self._pointer_size = header.pointer_size
        self._first = header.header_size + triage_header_size(header.is_64bit)

    def all(self) -> Iterator[_Problem]:
        for part in (*_PARTS, *_IN_HEADER):
            missing = part.holds if part.read else None
            problem = self._problem_of_offset(part)
            if problem is not None:
                yield part.field, problem, missing
            elif part.size is not None and self._is_too_large(part, part.size):
                # It is read as far as it goes.
                yield part.size, "more than the file has", None
            elif part.size is not None:
                problem = self._problem_of_size(part, part.size)
                if problem is not None:
                    yield part.size, problem, missing
        if self._claims(TRIAGE_DUMP_STACK) and self._triage.call_stack_offset and not self._is_stack():
            yield "top_of_stack", "which is no address of a kernel stack", "the crashed thread's stack"
        for field in self._all_ones():
            yield field, "which no writer of dumps puts there", None

    def _claims(self, bit: int) -> bool:
        """Tell whether MiniDumpFields says that the writer filled in a part."""
        return bool(bit) and self._header.mini_dump_fields is not None and self._header.claims(bit)

    def _problem_of_offset(self, part: _Part) -> str | None:
        offset = getattr(self._triage, part.field)
        if offset >= self._end:
            return f"behind the end of the file at {self._end:#x}"
        if 0 < offset < self._first and part not in _IN_HEADER:
            return f"within the headers, which end at {self._first:#x}"
        if offset:
            return None
        if part.field == "mm_offset":
            return f"though such a part lies at {self._first:#x}" if self._mm_size(self._first) else None
        if part.field == "unloaded_drivers_offset":
            start = (self._triage.mm_offset or self._first) + self._mm_size(self._triage.mm_offset or self._first)
            return f"though such a list lies at {start:#x}" if self._is_unloaded_list(start) else None
        if not part.optional:
            return _CLAIMED if self._claims(part.claim) else None
        claimed = self._claims(part.claim) or not part.claim
        amount = getattr(self._triage, part.size) if part.size and claimed else 0
        return f"though {_name(part.size)} is {amount:#x}" if part.size and amount else None

    def _is_too_large(self, part: _Part, field: str) -> bool:
        return field not in _COUNTS and getattr(self._triage, part.field) + getattr(self._triage, field) > self._end

    def _problem_of_size(self, part: _Part, field: str) -> str | None:
        offset = getattr(self._triage, part.field)
        if getattr(self._triage, field) or not offset:
            return None
        if part.field == "data_blocks_offset":
            return f"though a block is described at {offset:#x}" if self._is_block(offset) else None
        if part.field == "string_pool_offset" and not self._triage.driver_count:
            return None
        return f"though {_name(part.field)} is {offset:#x}" if self._claims(part.claim) or not part.claim else None

    def _mm_size(self, start: int) -> int:
        """Return the size of the memory manager's part at an offset, 0 where none lies."""
        head = self._read(start, 8)
        version, size = struct.unpack("<2I", head) if len(head) == 8 else (0, 0)
        return size if version in _MM_VERSIONS and 0x10 <= size <= self._gap(start) else 0

    def _is_unloaded_list(self, start: int) -> bool:
        count = int.from_bytes(self._read(start, 4), "little")
        size = self._pointer_size + count * _UNLOADED_ENTRY[self._pointer_size]
        return 0 < count <= MOST_UNLOADED_DRIVERS and size <= self._gap(start)

    def _gap(self, start: int) -> int:
        """Return how many bytes follow an offset before the next part begins."""
        return next_part(self._triage, start, self._end) - start

    def _is_block(self, at: int) -> bool:
        entry = self._read(at, 16)
        if len(entry) < 16:
            return False
        address, offset, size = struct.unpack("<QII", entry)
        return bool(address and size) and self._first <= offset < self._end

    def _is_stack(self) -> bool:
        bits = self._pointer_size * 8
        return 1 << (bits - 1) <= self._triage.top_of_stack < (1 << bits) - self._triage.size_of_call_stack

    def _all_ones(self) -> Iterator[str]:
        for each in fields(self._triage):
            value = getattr(self._triage, each.name)
            wide = each.name in ("top_of_stack", "data_page_address") and self._header.is_64bit
            full = b"\xff" * len(value) if isinstance(value, bytes) else (1 << (64 if wide else 32)) - 1
            # Windows writes TriageOptions so.
            if value and value == full and each.name != "triage_options":
                yield each.name
