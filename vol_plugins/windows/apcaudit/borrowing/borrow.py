"""Completing a kernel's symbol file: choose whose types fit the image, and write a file that has both."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from volatility3.framework import constants, interfaces

from ..isf_types import IsfTypes
from ..memory import Memory
from ..symbols import canonical
from ..windows_version import read_build
from .donors import Donor, donors, read_document
from .merge import conflict, merged, missing_types
from .probe import Fit, probe

# What vol demands of a symbol file and the audit cannot be without; other structures may be lacking.
_INDISPENSABLE = ("_ETHREAD", "_KTHREAD", "_EPROCESS", "_KPROCESS", "_KAPC", "_KAPC_STATE", "_LIST_ENTRY")


@dataclass(frozen=True, slots=True)
class Borrowed:
    """The completed symbol file and a sentence on it; `url` is None where no types fit, and the sentence says why."""

    url: str | None
    sentence: str


def lacking(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Name what a symbol file lacks of the structures without which there is no audit."""
    return tuple(name for name in _INDISPENSABLE if name not in document["user_types"])


def borrow(
    context: interfaces.context.ContextInterface, layer_name: str, kernel_base: int, url: str
) -> Borrowed | None:
    """Complete the symbol file of a kernel; None where it lacks nothing or cannot be read.

    Args:
        context: the context that has the layer.
        layer_name: the kernel's virtual memory.
        kernel_base: where the kernel lies in it.
        url: the kernel's symbol file.
    """
    try:
        own = read_document(url)
        lacks = lacking(own)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not lacks:
        return None
    try:
        return _borrow(context, layer_name, kernel_base, url, own, lacks)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # The document is whatever somebody wrote: what has not the form of a symbol file shows somewhere in here.
        return Borrowed(None, f"the kernel's symbol file {_file(url)} has not the form of one: {error!r}")


def _borrow(
    context: interfaces.context.ContextInterface,
    layer_name: str,
    kernel_base: int,
    url: str,
    own: Mapping[str, Any],
    lacks: tuple[str, ...],
) -> Borrowed:
    memory = Memory(context, layer_name)
    base = canonical(kernel_base, memory.bits)

    def address_of(symbol: str) -> int | None:
        found = own["symbols"].get(symbol)
        return None if found is None else base + int(found["address"])

    build = read_build(memory, address_of)
    refused = []
    pae = memory.pointer_size == 4 and memory.paging.entry_size == memory.pointer_size * 2
    for donor in donors(memory.pointer_size, pae=pae, build=build):
        reason = conflict(own, donor.document)
        if reason is None:
            document = merged(own, donor.document, donor.name)
            fit = probe(memory, address_of, IsfTypes(document))
            if fit.reason is None:
                return _written(document, url, donor, _sentence(own, url, lacks, donor, fit))
            reason = fit.reason
        refused.append(f"{donor.name}: {reason}")
    return Borrowed(None, _refusal(url, lacks, build, refused))


def _file(url: str) -> str:
    return "/".join(url.split("/")[-2:])


def _sentence(own: Mapping[str, Any], url: str, lacks: tuple[str, ...], donor: Donor, fit: Fit) -> str:
    others = len(missing_types(own, donor.document)) - len(lacks)
    return (
        f"the kernel's symbol file {_file(url)} lacks {', '.join(lacks)}{f' and {others} others' if others else ''}:"
        f" they are taken from {donor.name}, the nearest that ships; {fit.agreeing} of {fit.threads} threads of System"
        " agree with them, other structures were not checked"
    )


def _refusal(url: str, lacks: tuple[str, ...], build: int | None, refused: list[str]) -> str:
    return (
        f"the kernel's symbol file {_file(url)} lacks {', '.join(lacks)}, as Microsoft published its PDB, and none of"
        f" the {len(refused)} that ship fits the image (build {build or 'unknown'})"
        f"{': ' if refused else ''}{'; '.join(refused)}; put a symbol file that has these types in its place, made by"
        " pdbconv from a PDB of the same build that has them, with the addresses of this one"
    )


def _written(document: Mapping[str, Any], url: str, donor: Donor, sentence: str) -> Borrowed:
    try:
        return Borrowed(_write(document, url, donor.url), sentence)
    except OSError as error:
        reason = f"the file that would complete it cannot be written into {constants.CACHE_PATH}: {error.strerror}"
        return Borrowed(None, f"{sentence}; {reason}")


def _write(document: Mapping[str, Any], url: str, donor_url: str) -> str:
    """Write a document into Volatility's cache, under the name that the kernel's own has, and return its URL."""
    key = hashlib.sha256(f"{url}\0{donor_url}".encode()).hexdigest()[:16]
    folder = pathlib.Path(constants.CACHE_PATH, f"apcaudit_types_{key}", url.split("/")[-2])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (url.split("/")[-1].partition(".json")[0] + ".json")
    # Another process may be reading it.
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path.absolute().as_uri()
