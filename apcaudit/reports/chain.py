"""The chain of a suspect thread: image, thread, KAPC, routine, driver, origin; equal chains of images are merged."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from apcaudit.bulk.records import HIDDEN, LOADED, UNLISTED, UNLOADED, ApcRow, FindingRow, ThreadRow
from apcaudit.reports.dataset import Dataset, rank

NO_MODULE = "in no module"

_APCS = 6
"""How many of a thread's APCs are drawn; longer lists mostly repeat one APC."""

_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver that holds a routine: its name and its status in the module list; None for code in no module."""

    name: str | None
    status: str | None

    @property
    def suspect(self) -> bool:
        """Whether it is not a loaded module."""
        return self.status != LOADED


@dataclass(frozen=True, slots=True)
class Routine:
    """A routine: its role for the KAPC or thread, its text, its driver."""

    role: str
    text: str
    driver: Driver


@dataclass(frozen=True, slots=True)
class Link:
    """A KAPC with its routines; without a KAPC, the start routine of the thread."""

    apc: ApcRow | None
    routines: tuple[Routine, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """A suspect thread, its links and findings, all images with an equal chain, and how many APCs are left out."""

    thread: ThreadRow
    image: str
    images: tuple[str, ...]
    links: tuple[Link, ...]
    left_out: int
    findings: tuple[FindingRow, ...]

    @property
    def codes(self) -> tuple[tuple[str, str], ...]:
        """The findings' codes with their highest severities, the highest first."""
        worst: dict[str, str] = {}
        for each in self.findings:
            worst[each.code] = min(worst.get(each.code, each.severity), each.severity, key=rank)
        return tuple(sorted(worst.items(), key=lambda item: (rank(item[1]), item[0])))


def make_chains(dataset: Dataset) -> tuple[Chain, ...]:
    """Make the chains of a dataset's suspect threads, the most severe first, then those of the fewest images."""
    names = dataset.names
    sources = {each.image: each.source for each in dataset.images}
    apcs: dict[tuple[str, int], list[ApcRow]] = defaultdict(list)
    for apc in dataset.apcs:
        apcs[apc.image, apc.thread].append(apc)
    findings: dict[tuple[str, int], list[FindingRow]] = defaultdict(list)
    for finding in dataset.findings:
        findings[finding.image, finding.thread].append(finding)
    alike: dict[tuple[object, ...], list[Chain]] = defaultdict(list)
    for thread in dataset.threads:
        key = thread.image, thread.thread
        queued = sorted(apcs[key], key=lambda apc: rank(apc.severity))
        links = tuple(_links(thread, queued[:_APCS]))
        found = tuple(sorted(findings[key], key=lambda each: (rank(each.severity), each.code)))
        name = names.get(thread.image, thread.image)
        made = Chain(thread, name, (name,), links, max(0, len(queued) - _APCS), found)
        alike[_likeness(made)].append(made)
    chains = []
    for group in alike.values():
        first = min(group, key=lambda each: (sources.get(each.thread.image, ""), each.thread.image))
        images = {each.thread.image: each.image for each in group}
        merged = Chain(
            first.thread, first.image, tuple(sorted(images.values())), first.links, first.left_out, first.findings
        )
        chains.append(merged)
    chains.sort(key=lambda each: (rank(each.thread.severity), len(each.images), each.image, each.thread.thread))
    return tuple(chains)


def _links(thread: ThreadRow, apcs: Iterable[ApcRow]) -> Iterator[Link]:
    for apc in apcs:
        yield Link(apc, tuple(_routines(apc)))
    # A user thread starts in a module of its process, which the audit does not read.
    if thread.start_routine and (thread.start_module is not None or thread.start_backing is not None):
        driver = _driver(thread.start_module, thread.start_routine)
        yield Link(None, (Routine("start routine", thread.start_routine, driver),))


def _routines(apc: ApcRow) -> Iterator[Routine]:
    for role, text, module in (
        ("KernelRoutine", apc.kernel_routine, apc.kernel_module),
        ("NormalRoutine", apc.normal_routine, apc.normal_module),
        ("RundownRoutine", apc.rundown_routine, apc.rundown_module),
    ):
        # Without NormalRoutine an APC is special, without RundownRoutine it is freed. A KernelRoutine of 0 is called.
        if text is None or (text == "0x0" and role != "KernelRoutine"):
            continue
        if module is None and role == "NormalRoutine" and apc.kind in ("user", "special-user"):
            # It runs in user mode, so it belongs to no kernel module.
            yield Routine(role, text, Driver("user mode", LOADED))
        else:
            yield Routine(role, text, _driver(module, text))


def _driver(module: str | None, text: str) -> Driver:
    """Return a routine's driver, its status by the text, since a hidden driver may have a listed one's name."""
    if module is None:
        return Driver(None, None)
    if text.startswith("0x"):
        # For code in the range of an unloaded driver the audit prints the address only.
        return Driver(module, UNLOADED)
    return Driver(module, next((each for each in (HIDDEN, UNLISTED) if text.endswith(f" ({each})")), LOADED))


def _likeness(chain: Chain) -> tuple[object, ...]:
    """Return the key by which equal chains are merged: everything but numbers, such as addresses and IDs."""
    links = tuple(
        (
            link.apc and (link.apc.queue, link.apc.kind, _NUMBER.sub("", link.apc.origin or "")),
            tuple((each.role, each.driver, each.text if each.driver.name else "") for each in link.routines),
        )
        for link in chain.links
    )
    return (chain.thread.process, _NUMBER.sub("", chain.thread.attached or ""), chain.codes, links)
