"""The automagic that completes the symbol file of a kernel whose PDB lacks structures; cheap to import."""

from __future__ import annotations

import logging

from volatility3.framework import constants, interfaces
from volatility3.framework.configuration import requirements

vollog = logging.getLogger(__name__)


class BorrowedTypes(interfaces.automagic.AutomagicInterface):
    """Loads a symbol file that Volatility refuses, for every plugin, with what it lacks taken from one that ships.

    Volatility cannot make a table of a file without `_ETHREAD`, which Microsoft's PDBs of Windows XP and of some builds
    of Windows 10 lack (volatility3 issues 135, 242, 2036).
    """

    priority = 50  # behind the search for the kernel (30), before the module is made of its parts (100)
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
            # The search notes the file before it tries to load it; without a layer there was no search.
            if not url or not isinstance(layer_name, str) or layer_name not in context.layers:
                continue
            base = context.config.get(join(context.layers[layer_name].config_path, "kernel_virtual_offset"), None)
            if base is None:
                continue
            from .borrowing.borrow import borrow

            borrowed = borrow(context, layer_name, int(base), url)
            if borrowed is not None and borrowed.url is not None:
                vollog.warning(borrowed.sentence)
                context.config[join(path, "isf_url")] = borrowed.url
                head = interfaces.configuration.path_head(path)
                requirements.SymbolTableRequirement(name=head).construct(context, parent_of(path))
