"""Names of what an IRP carries as numbers: its flags and major functions."""

from __future__ import annotations

PAGING_IO = 0x2

# IRP_* of wdm.h; 0x40 is two things, told apart by PAGING_IO.
_FLAGS = (
    (0x1, "NOCACHE"),
    (PAGING_IO, "PAGING_IO"),
    (0x4, "SYNCHRONOUS_API"),
    (0x8, "ASSOCIATED_IRP"),
    (0x10, "BUFFERED_IO"),
    (0x20, "DEALLOCATE_BUFFER"),
    (0x40, "INPUT_OPERATION"),
    (0x80, "CREATE_OPERATION"),
    (0x100, "READ_OPERATION"),
    (0x200, "WRITE_OPERATION"),
    (0x400, "CLOSE_OPERATION"),
    (0x800, "DEFER_IO_COMPLETION"),
    (0x1000, "OB_QUERY_NAME"),
    (0x2000, "HOLD_DEVICE_QUEUE"),
)

# IRP_MJ_* of wdm.h, in order from 0.
_MAJOR_FUNCTIONS = (
    "CREATE",
    "CREATE_NAMED_PIPE",
    "CLOSE",
    "READ",
    "WRITE",
    "QUERY_INFORMATION",
    "SET_INFORMATION",
    "QUERY_EA",
    "SET_EA",
    "FLUSH_BUFFERS",
    "QUERY_VOLUME_INFORMATION",
    "SET_VOLUME_INFORMATION",
    "DIRECTORY_CONTROL",
    "FILE_SYSTEM_CONTROL",
    "DEVICE_CONTROL",
    "INTERNAL_DEVICE_CONTROL",
    "SHUTDOWN",
    "LOCK_CONTROL",
    "CLEANUP",
    "CREATE_MAILSLOT",
    "QUERY_SECURITY",
    "SET_SECURITY",
    "POWER",
    "SYSTEM_CONTROL",
    "DEVICE_CHANGE",
    "QUERY_QUOTA",
    "SET_QUOTA",
    "PNP",
)


def function_name(major: int | None) -> str:
    """Name a major function code."""
    if major is None:
        return "IRP_MJ_?"
    return f"IRP_MJ_{_MAJOR_FUNCTIONS[major]}" if major < len(_MAJOR_FUNCTIONS) else f"IRP_MJ_{major:#x}"


def flag_names(flags: int) -> str:
    """Name the bits of IRP.Flags as `BUFFERED_IO+READ_OPERATION`; bits without a name stay a number."""
    names = [name for bit, name in _FLAGS if flags & bit]
    if flags & PAGING_IO:
        names = ["SYNCHRONOUS_PAGING_IO" if name == "INPUT_OPERATION" else name for name in names]
    rest = flags & ~sum(bit for bit, _ in _FLAGS)
    return "+".join(names + ([f"{rest:#x}"] if rest else [])) or "none"
