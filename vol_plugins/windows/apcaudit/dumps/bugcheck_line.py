"""The line that says how a machine stopped: bugcheck, parameters with their meaning, time, uptime, build, processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..formats.times import moment, span_text
from ..model import BugCheck
from .bugcheck_names import bugcheck_name
from .bugcheck_reference import KINDS, PARAMETERS, RESERVED, STATUS, Kind, Parameter
from .verifier_reference import VERIFIER, violation

Resolve = Callable[[int], "str | None"]
"""Names the code at an address; None where that is unknown."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """When and where a machine stopped; None is unknown.

    `time` is in FILETIME ticks of 100 ns, `up_time` in ticks since the start. `version` is (major, minor, build).
    `processor` is the number of the one that stopped, `processors` how many there were, 0 if unknown.
    """

    time: int | None
    up_time: int | None
    version: tuple[int, int, int] | None
    bits: int
    processor: int | None
    processors: int


def bugcheck_line(bugcheck: BugCheck, at: Circumstances, resolve: Resolve) -> str:
    """Describe a bugcheck in one line.

    Args:
        bugcheck: code and parameters.
        at: when and where.
        resolve: names the code at an address.
    """
    what = f"bugcheck {bugcheck_name(bugcheck.code)}"
    parameters = describe_parameters(bugcheck.code, bugcheck.parameters, resolve)
    return f"{what}, {parameters}; {_describe_circumstances(at)}"


def describe_parameters(code: int, values: tuple[int, ...], resolve: Resolve) -> str:
    """Describe a bugcheck's parameters: `parameters 0x0 (memory referenced), 0x2 (IRQL), ...`, or `no parameters`."""
    rows = _rows(code, values)
    if rows == () and not any(values):
        return "no parameters"
    padded = (*(rows or ()), *(RESERVED,) * len(values))
    return f"parameters {', '.join(_describe(*each, resolve) for each in zip(values, padded, strict=False))}"


def _rows(code: int, values: tuple[int, ...]) -> tuple[Parameter, ...] | None:
    # Numbers of kinds have 32 bits; an NTSTATUS is sign-extended to the size of a pointer.
    first = values[0] & 0xFFFFFFFF if values else 0
    return violation(first) if code == VERIFIER else KINDS.get((code, first), PARAMETERS.get(code))


def _describe(value: int, row: Parameter, resolve: Resolve) -> str:
    if not row.text:
        return f"{value:#x}"
    said: str | None = row.values.get(value)
    if row.kind is Kind.STATUS:
        said = STATUS.get(value & 0xFFFFFFFF)
    elif row.kind is Kind.CODE and value:
        said = resolve(value)
    elif row.kind is Kind.IRQLS:
        said = f"{value >> 16 & 0xFF} now, {value >> 8 & 0xFF} expected, kind {value & 0xFF}"
    return f"{value:#x} ({row.text}{f': {said}' if said else ''})"


def _describe_circumstances(at: Circumstances) -> str:
    time = moment(at.time)
    parts = ["time unknown" if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"]
    if at.up_time is not None:
        parts.append(f"up {span_text(at.up_time)}")
    version = "of unknown build" if at.version is None else ".".join(map(str, at.version))
    parts.append(f"Windows {version} {'x64' if at.bits == 64 else 'x86'}")
    count = f"{at.processors} processor{'' if at.processors == 1 else 's'}" if at.processors else "processors unknown"
    parts.append(count if at.processor is None else f"processor {at.processor} ({count})")
    return ", ".join(parts)
