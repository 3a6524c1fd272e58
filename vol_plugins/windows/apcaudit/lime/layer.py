"""Volatility's layer of a LiME image that is cut: what is there of it."""

from __future__ import annotations

from volatility3.framework import interfaces
from volatility3.framework.layers import lime

from .ranges import LimeFile, parse_lime


class CutLimeLayer(lime.LimeLayer):
    """Physical memory of a LiME image as far as the file goes; vol's own layer fails where a header is cut."""

    def _load_segments(self) -> None:
        base = str(self._base_layer)
        found = lime_file(self.context, base)
        if found is None or not found.ranges:
            raise lime.LimeFormatException(self.name, f"no LiME ranges in {base}")
        self._segments = [(each.start, each.offset, each.present, each.present) for each in found.ranges]


def lime_file(context: interfaces.context.ContextInterface, layer_name: str) -> LimeFile | None:
    """Read the headers of the LiME image in a layer, None where there is none."""
    layer = context.layers[layer_name]
    size = layer.maximum_address + 1

    def read(offset: int, length: int) -> bytes:
        # As file objects do; FileLayer itself fails at the end of the file.
        length = min(length, size - offset)
        return layer.read(offset, length) if length > 0 else b""

    return parse_lime(read, size)
