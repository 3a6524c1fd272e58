"""The external variables that rules see: what the analyst knows of a unit and of a thread's start in it."""

from __future__ import annotations

from dataclasses import dataclass

External = str | int | bool

NO_START = -1
"""`start_rva` where a unit is scanned for no thread's sake; no match lies there."""


@dataclass(frozen=True, slots=True)
class Start:
    """The function at a thread's start address: relative virtual address and size in bytes."""

    rva: int = NO_START
    size: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a unit: driver's label, path, hidden or not, and its imports as `module!Name`."""

    driver: str = ""
    path: str = ""
    hidden: bool = False
    imports: tuple[str, ...] = ()


def externals(known: Known, start: Start) -> dict[str, External]:
    """Give every external variable its value.

    The last five are those that rule collections written for files expect; an image in memory has no owner.
    """
    name = known.path.replace("/", "\\").rpartition("\\")[2]
    return {
        "driver": known.driver,
        "driver_path": known.path,
        "hidden": known.hidden,
        "imports": ",".join(known.imports),
        "start_rva": start.rva,
        "start_size": start.size,
        "filename": name,
        "filepath": known.path,
        "extension": name.rpartition(".")[2] if "." in name else "",
        "filetype": "",
        "owner": "",
    }


# Engines check ranges of constants when they compile, where a start of -1 would be an error, and one that has too
# little before it.
AT_COMPILATION = externals(Known(), Start(0x10000, 0x100))
