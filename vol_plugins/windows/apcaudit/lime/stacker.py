"""The stacker through which a cut LiME image is read; cheap to import, since vol always does."""

from __future__ import annotations

import logging

from volatility3.framework import constants, interfaces

vollog = logging.getLogger(__name__)

_MAGIC = b"EMiL"  # of every range's header: LIME_MAGIC of LiME's lime.h


class CutLimeStacker(interfaces.automagic.StackerLayerInterface):
    """Stacks a CutLimeLayer on a LiME image that ends too early, before Volatility's own layer refuses it."""

    stack_order = 9  # LimeStacker's is 10
    exclusion_list = ["mac", "linux"]  # noqa: RUF012 - the interface declares it so

    @classmethod
    def stack(
        cls,
        context: interfaces.context.ContextInterface,
        layer_name: str,
        progress_callback: constants.ProgressCallback = None,  # noqa: ARG003 - the interface's parameters
    ) -> interfaces.layers.DataLayerInterface | None:
        """Give the layer of a cut or damaged LiME image, or None: at once for anything else, and for a whole one."""
        base = context.layers[layer_name]
        size = len(_MAGIC)
        if base.dependencies or not base.is_valid(0, size) or base.read(0, size) != _MAGIC:
            return None
        from .layer import CutLimeLayer, lime_file

        found = lime_file(context, layer_name)
        if found is None or found.cut is None or not found.ranges:
            return None
        vollog.info(f"The LiME image {found.cut}: it is read as far as it goes")
        new_name = context.layers.free_layer_name(CutLimeLayer.__name__)
        context.config[interfaces.configuration.path_join(new_name, "base_layer")] = layer_name
        return CutLimeLayer(context, new_name, new_name)
