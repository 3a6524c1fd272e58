"""The stacker through which every plugin of vol gets kernel minidumps; cheap to import, since vol always does."""

from __future__ import annotations

from volatility3.framework import constants, interfaces

_SIGNATURE = b"PAGE"  # of every crash dump: DUMP_HEADER.Signature (WDK debugger documentation)


class MinidumpStacker(interfaces.automagic.StackerLayerInterface):
    """Stacks a MinidumpLayer on a file that is a kernel minidump, before Volatility's crash layer refuses it."""

    stack_order = 10
    exclusion_list = ["mac", "linux"]  # noqa: RUF012 - the interface declares it so

    @classmethod
    def stack(
        cls,
        context: interfaces.context.ContextInterface,
        layer_name: str,
        progress_callback: constants.ProgressCallback = None,
    ) -> interfaces.layers.DataLayerInterface | None:
        """Give the layer of a minidump, or None at once for anything else."""
        base = context.layers[layer_name]
        size = len(_SIGNATURE)
        if base.dependencies or not base.is_valid(0, size) or base.read(0, size) != _SIGNATURE:
            return None
        from .layer import stack_minidump

        return stack_minidump(context, layer_name, progress_callback)
