"""Classes that vol runs on an image: stackers of dumps, cut LiME images and page tables, and missing types."""

from __future__ import annotations

import logging

from volatility3.framework import constants, interfaces
from volatility3.framework.configuration import requirements

vollog = logging.getLogger(__name__)


class BorrowedTypes(interfaces.automagic.AutomagicInterface):
    """Completes, for every plugin, a symbol file that Volatility refuses, with types of a symbol file that ships.

    Volatility cannot make a table of a file without `_ETHREAD`, which Microsoft's PDBs of Windows XP and of some builds
    of Windows 10 lack (volatility3 issues 135, 242, 2036).
    """

    priority = 50  # after the search for the kernel (30), before the module is constructed (100)
    exclusion_list = ["mac", "linux"]  # noqa: RUF012 - the interface declares it so

    def __call__(
        self,
        context: interfaces.context.ContextInterface,
        config_path: str,
        requirement: interfaces.configuration.RequirementInterface,
        progress_callback: constants.ProgressCallback = None,  # noqa: ARG002 - the interface's parameters
    ) -> None:
        """Complete and load the symbol file of every kernel that was found but could not be loaded."""
        join, parent_of = interfaces.configuration.path_join, interfaces.configuration.parent_path
        wanted = self.find_requirements(context, config_path, requirement, requirements.SymbolTableRequirement)
        for path, _ in wanted:
            url = context.config.get(join(path, "isf_url"), None)
            layer_name = context.config.get(join(parent_of(path), "layer_name"), None)
            # The search sets the file's URL before it tries to load the file; without a layer there was no search.
            if not url or not isinstance(layer_name, str) or layer_name not in context.layers:
                continue
            base = context.config.get(join(context.layers[layer_name].config_path, "kernel_virtual_offset"), None)
            if base is None:
                continue
            from .borrowing import borrow

            borrowed = borrow(context, layer_name, int(base), url)
            if borrowed is not None and borrowed.url is not None:
                vollog.warning(borrowed.sentence)
                context.config[join(path, "isf_url")] = borrowed.url
                head = interfaces.configuration.path_head(path)
                requirements.SymbolTableRequirement(name=head).construct(context, parent_of(path))


def _is_file_with(layer: interfaces.layers.DataLayerInterface, signature: bytes) -> bool:
    """Tell whether a layer is a file itself, and begins with a signature."""
    size = len(signature)
    return not layer.dependencies and layer.is_valid(0, size) and layer.read(0, size) == signature


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
        """Return the layer of a minidump, None for any other file, after reading its first bytes only."""
        if not _is_file_with(context.layers[layer_name], _SIGNATURE):
            return None
        from ..dumps.minidump_layer import stack_minidump

        return stack_minidump(context, layer_name, progress_callback)


class KernelDumpStacker(interfaces.automagic.StackerLayerInterface):
    """Stacks a KernelDumpLayer on a kernel memory dump, before Volatility's crash layer refuses it."""

    stack_order = 10
    exclusion_list = ["mac", "linux"]  # noqa: RUF012 - the interface declares it so

    @classmethod
    def stack(
        cls,
        context: interfaces.context.ContextInterface,
        layer_name: str,
        progress_callback: constants.ProgressCallback = None,  # noqa: ARG003 - the interface's parameters
    ) -> interfaces.layers.DataLayerInterface | None:
        """Return the layer of a kernel memory dump, None for any other file, after reading its header only."""
        if not _is_file_with(context.layers[layer_name], _SIGNATURE):
            return None
        from ..dumps.kernel_dump import stack_kernel_dump

        return stack_kernel_dump(context, layer_name)


_MAGIC = b"EMiL"  # begins the header of every range: LIME_MAGIC of LiME's lime.h


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
        """Return the layer of a cut or damaged LiME image, None for a complete one and for any other file."""
        if not _is_file_with(context.layers[layer_name], _MAGIC):
            return None
        from ..dumps.cut import CutLimeLayer, lime_file

        found = lime_file(context, layer_name)
        if found is None or found.cut is None or not found.ranges:
            return None
        vollog.info(f"The LiME image {found.cut}: it is read as far as it goes")
        new_name = context.layers.free_layer_name(CutLimeLayer.__name__)
        context.config[interfaces.configuration.path_join(new_name, "base_layer")] = layer_name
        return CutLimeLayer(context, new_name, new_name)


class PageTableStacker(interfaces.automagic.StackerLayerInterface):
    """Stacks the page tables that vol's own stacker would find, in a tenth of its time."""

    stack_order = 39  # WindowsIntelStacker's is 40: it searches where this finds nothing
    exclusion_list = ["mac", "linux"]  # noqa: RUF012 - the interface declares it so

    @classmethod
    def stack(
        cls,
        context: interfaces.context.ContextInterface,
        layer_name: str,
        progress_callback: constants.ProgressCallback = None,
    ) -> interfaces.layers.DataLayerInterface | None:
        """Return the layer of virtual memory; None where vol needs no search, or none is found."""
        from volatility3.framework.layers import intel

        base = context.layers[layer_name]
        if isinstance(base, intel.Intel) or base.metadata.get("os", None) not in (None, "Unknown"):
            return None
        from ..image.page_tables import stack_page_tables

        return stack_page_tables(context, layer_name, progress_callback)
