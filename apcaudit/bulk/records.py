"""The rows of the results, one dataclass per table: images, threads, APCs, findings and drivers.

A field's type and documentation are those of its column; tables.py makes the Parquet schema from them. Addresses are
full 64-bit canonical virtual addresses. None is a value that could not be read or does not apply.
"""

# ruff: noqa: RUF009 - a field made by a function of ours is still a field
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NewType

#: A virtual address or an unsigned 64-bit value.
Address = NewType("Address", int)

SEVERITIES = ("info", "low", "medium", "high", "critical")
"""The severities of findings, the lowest first."""

SCANNED = "scanned"
FAILED = "failed"

LOADED, HIDDEN, UNLISTED, UNLOADED = "loaded", "hidden", "unlisted", "unloaded"
"""The status of a driver in the module list. For code in a driver that the list lacks, the audit appends the status to
the routine's text, in parentheses."""

NO_NAME = "<no name>"
"""The name given to a driver without one, so that its code can still be compared."""


def _column(text: str) -> Any:
    return field(metadata={"doc": text})


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image: where it was found, how its scan went, and what kernel ran on it."""

    image: str = _column("SHA-256 of the image's bytes, unpacked; `path-` and a hash where they could not be read")
    source: str = _column("file that it was found in; a member of a zip archive after `::`")
    size: int | None = _column("bytes, unpacked")
    status: str = _column("`scanned` or `failed`")
    reason: str | None = _column("why it failed")
    stage: str | None = _column(
        "where it failed: `start`, `unpack`, `hash`, `open`, `audit`, `store`; `worker` around these"
    )
    seconds: float = _column("how long the scan took")
    scanned_at: float = _column("when the scan ended, seconds since 1970")
    worker: str = _column("machine and process ID of the worker")
    settings: str = _column(
        "versions, options, rules and symbol files that the row depends on; empty where the next scan tries again"
    )
    versions: str = _column("programs with their versions that made the rows")
    options: str = _column("options of the scan, as on a command line")
    rules: str = _column("YARA rule files, a line each, SHA-256 first; of many files the SHA-256 of these lines")
    not_done: str = _column("what the scan did not do, a line each, with what would do it")
    symbol_file: str | None = _column("symbol file of its kernel")
    kernel_pdb: str | None = _column("PDB file name of its kernel")
    kernel_guid: str | None = _column("GUID of that PDB")
    kernel_age: int | None = _column("age of that PDB")
    windows: str | None = _column("version of Windows: major, minor and build, as `10.0.19041`")
    bits: int | None = _column("32 or 64")
    processors: int | None = _column("number of processors")
    partial: bool | None = _column("whether the image holds only parts of memory, as a minidump does")
    system_time: float | None = _column("the machine's clock, seconds since 1970, UTC")
    up_time: float | None = _column("for how long it had run, seconds")
    bugcheck: int | None = _column("stop code of a machine that had crashed")
    bugcheck_parameters: str | None = _column("its parameters, hexadecimal, separated by spaces")
    crash: str | None = _column("both with their names and meaning, and when and where it stopped, in one line")
    crashing_thread: Address | None = _column("`_ETHREAD` of the thread that stopped it")
    severity: str = _column("highest severity of its findings, `info` without any")
    findings: int = _column("number of findings")
    notes: str = _column("what was wrong with the views of threads, a line each")


@dataclass(frozen=True, slots=True)
class ThreadRow:
    """A thread with findings or queued APCs, or that crashed; the plugin's columns of the same names."""

    image: str = _column("the image, as in images")
    thread: Address = _column("`_ETHREAD` virtual address")
    pid: int | None = _column("owner's process ID")
    tid: int | None = _column("thread ID")
    process: str | None = _column("owner's image name")
    attached: str | None = _column("process that it is attached to, with its PID")
    state: str | None = _column("scheduler state, with the wait reason or the processor")
    views: str = _column("where it was found: `list`, `cid`, `cpu`, `scan`, `dump`, joined by `+`")
    apc_state_index: int | None = _column("`_KTHREAD.ApcStateIndex`")
    kernel_apc_in_progress: bool | None = _column("`_KAPC_STATE.KernelApcInProgress`")
    kernel_apc_pending: bool | None = _column("`_KAPC_STATE.KernelApcPending`")
    user_apc_pending: bool | None = _column("`_KAPC_STATE.UserApcPending`")
    kernel_apc_disable: int | None = _column("`_KTHREAD.KernelApcDisable`, signed")
    special_apc_disable: int | None = _column("`_KTHREAD.SpecialApcDisable`, signed")
    wait_irql: int | None = _column("`_KTHREAD.WaitIrql`")
    created: float | None = _column("when it was created, seconds since 1970, UTC")
    exited: float | None = _column("when it ended, seconds since 1970, UTC")
    start_address: Address | None = _column("where the thread began")
    start_routine: str | None = _column("the same as `module!symbol+offset`")
    start_module: str | None = _column("module that holds it")
    start_rva: int | None = _column("its offset in that module, bytes")
    start_backing: str | None = _column("what holds it: `loaded module`, `no loaded module`, ...; of system threads")
    yara: str | None = _column("YARA rules that hit its driver, separated by commas")
    severity: str = _column("highest severity of its findings and of its APCs'")
    findings: str = _column("codes of its findings and of its APCs', sorted, separated by commas")


@dataclass(frozen=True, slots=True)
class ApcRow:
    """A queued APC; the plugin's columns of the same names, and each routine's module and RVA."""

    image: str = _column("the image, as in images")
    thread: Address = _column("the thread that it is queued to, as in threads")
    pid: int | None = _column("that thread's process ID")
    tid: int | None = _column("its thread ID")
    process: str | None = _column("its process")
    queue: str = _column("`kernel`, `user`, `saved-kernel`, `saved-user`, `off-list`")
    position: int = _column("place on that list, from 0")
    apc: Address = _column("`_KAPC` virtual address")
    kind: str | None = _column("`special-kernel`, `normal-kernel`, `user`, `special-user`")
    kernel_routine: str | None = _column("`_KAPC.KernelRoutine` as `module!symbol+offset`; hexadecimal if in none")
    kernel_module: str | None = _column("module that holds it")
    kernel_rva: int | None = _column("its offset in that module, bytes")
    normal_routine: str | None = _column("`_KAPC.NormalRoutine`")
    normal_module: str | None = _column("module that holds it")
    normal_rva: int | None = _column("its offset in that module, bytes")
    rundown_routine: str | None = _column("`_KAPC.RundownRoutine`")
    rundown_module: str | None = _column("module that holds it")
    rundown_rva: int | None = _column("its offset in that module, bytes")
    normal_context: Address | None = _column("`_KAPC.NormalContext`")
    system_argument1: Address | None = _column("`_KAPC.SystemArgument1`")
    system_argument2: Address | None = _column("`_KAPC.SystemArgument2`")
    origin: str | None = _column("what queued it; inferred parts end in `?`")
    severity: str = _column("highest severity of the APC's and its thread's findings")
    findings: str = _column("codes of the APC's and its thread's findings, sorted, separated by commas")
    explanation: str = _column("the plugin's explanation of that row")


@dataclass(frozen=True, slots=True)
class FindingRow:
    """A finding, about a thread or about one of its APCs."""

    image: str = _column("the image, as in images")
    thread: Address = _column("the thread, as in threads")
    apc: Address | None = _column("the APC, as in apcs; none where the finding is about the thread")
    queue: str | None = _column("the list that the APC is on")
    pid: int | None = _column("the thread's process ID")
    tid: int | None = _column("its thread ID")
    process: str | None = _column("its process")
    code: str = _column("code of the finding; the guide has a page on each")
    severity: str = _column("`info`, `low`, `medium`, `high`, `critical`")
    explanation: str = _column("one sentence with the values")


@dataclass(frozen=True, slots=True)
class DriverRow:
    """A kernel module of an image: loaded, in no list and holding code of these tables, or remembered as unloaded.

    Of an image that failed, those that the headers of a minidump list.
    """

    image: str = _column("the image, as in images")
    base: Address = _column("first virtual address")
    size: int = _column("bytes")
    name: str = _column("file name, `<no name>` without")
    path: str | None = _column("path, none of unloaded ones")
    status: str = _column(
        "`loaded`, `hidden` (the module list lacks it), `unlisted` (so does a list that was not read whole), `unloaded`"
    )


@dataclass(frozen=True, slots=True)
class Records:
    """Everything that is kept of one image."""

    image: ImageRow
    threads: tuple[ThreadRow, ...] = ()
    apcs: tuple[ApcRow, ...] = ()
    findings: tuple[FindingRow, ...] = ()
    drivers: tuple[DriverRow, ...] = ()

    def rows(self, table: str) -> tuple[Any, ...]:
        """Return the rows of a table."""
        return (self.image,) if table == "images" else tuple(getattr(self, table))


TABLES: dict[str, type] = {
    "images": ImageRow,
    "threads": ThreadRow,
    "apcs": ApcRow,
    "findings": FindingRow,
    "drivers": DriverRow,
}
