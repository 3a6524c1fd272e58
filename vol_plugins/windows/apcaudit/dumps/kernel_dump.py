"""A Volatility layer for kernel memory dumps, DumpType 2 and 6, which hold the kernel's pages and no others.

Volatility reads complete and active dumps only (volatility3 issues 656, 1112, 1990). The memory of programs is not in
these files, so that user APC routines and stacks of programs cannot be read; everything of the kernel is there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar

from volatility3.framework import exceptions, interfaces
from volatility3.framework.layers import segmented

from ..formats.crash_header import (
    DUMP_HEADER64_SIZE,
    DUMP_TYPE_BITMAP_KERNEL,
    DUMP_TYPE_SUMMARY,
    CrashHeader,
    parse_crash_header,
)
from ..formats.files import ReadFile, reader_of
from ..formats.page_bitmap import PageBitmap, find_bitmap, page_runs
from ..windows import PAGE_SIZE

vollog = logging.getLogger(__name__)

_TYPES = (DUMP_TYPE_SUMMARY, DUMP_TYPE_BITMAP_KERNEL)


class KernelDumpLayer(segmented.SegmentedLayer):
    """Physical memory of a kernel memory dump: the pages whose bits its bitmap has."""

    provides: ClassVar[dict[str, str]] = {"type": "physical"}

    def _load_segments(self) -> None:
        layer = self.context.layers[str(self._base_layer)]
        header, read = crash_header_of(layer)
        unreadable = header is None or header.is_encrypted or header.dump_type not in _TYPES
        bitmap = None if header is None or unreadable else find_bitmap(header, read)
        if bitmap is None:
            raise exceptions.LayerException(self.name, "no kernel memory dump")
        self._segments = list(_segments(bitmap, read))
        if not self._segments:
            raise exceptions.LayerException(self.name, "the kernel memory dump holds no page")
        pages = sum(size for _, _, size, _ in self._segments) // PAGE_SIZE
        if pages != bitmap.pages:
            vollog.warning(
                f"the kernel memory dump contradicts itself: its bitmap has {pages:,} pages, its header says"
                f" {bitmap.pages:,}; what is read may lie elsewhere"
            )


def _segments(bitmap: PageBitmap, read: ReadFile) -> Iterator[tuple[int, int, int, int]]:
    offset = bitmap.first_page
    for first, count in page_runs(bitmap, read):
        size = count * PAGE_SIZE
        yield first * PAGE_SIZE, offset, size, size
        offset += size


def crash_header_of(layer: Any) -> tuple[CrashHeader | None, ReadFile]:
    """Return the crash header in a file's layer, and a function that reads the file."""
    read = reader_of(layer)
    return parse_crash_header(read(0, DUMP_HEADER64_SIZE)), read


def stack_kernel_dump(context: interfaces.context.ContextInterface, layer_name: str) -> KernelDumpLayer | None:
    """Create the layer of a kernel memory dump; None for any other file, and for one without a usable bitmap."""
    header, _ = crash_header_of(context.layers[layer_name])
    if header is None or header.dump_type not in _TYPES:
        return None
    new_name = context.layers.free_layer_name(KernelDumpLayer.__name__)
    context.config[interfaces.configuration.path_join(new_name, "base_layer")] = layer_name
    try:
        return KernelDumpLayer(context, new_name, new_name)
    except exceptions.LayerException as error:
        vollog.debug(f"Not read as a kernel memory dump: {error}")
        return None
