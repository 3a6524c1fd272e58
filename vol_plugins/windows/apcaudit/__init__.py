"""The plugin `windows.apcaudit`: kernel APC queues, whether they are legitimate, and what would happen next."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from volatility3.framework import constants, exceptions, interfaces, renderers
from volatility3.framework.configuration import requirements

from .deferred import defer
from .kernel_requirement import KernelRequirement
from .minidump.stacker import MinidumpStacker as MinidumpStacker
from .severity import Severity

if TYPE_CHECKING:
    from .audit import Audit, Selection
    from .columns import Column
    from .model import Audited

vollog = logging.getLogger(__name__)


class ApcAudit(interfaces.plugins.PluginInterface):
    """Audits the APC queues of every thread: what is queued, whether that is legitimate, and what would happen next.

    Lists every thread with a non-empty kernel or user APC list, and every thread whose APC state
    contradicts itself, beside ApcStateIndex and KernelApcPending. Findings say what no legitimate
    course of events explains, and which bugcheck (0x6, 0x20, ...) the state leads to.
    """

    _required_framework_version = (2, 0, 0)
    _version = (1, 0, 0)

    @classmethod
    def get_requirements(cls) -> list[interfaces.configuration.RequirementInterface]:
        """Declare the kernel and the options."""
        severities = [str(severity) for severity in Severity]
        return [
            KernelRequirement(name="kernel", description="Windows kernel", architectures=["Intel32", "Intel64"]),
            requirements.ListRequirement(
                name="pid", element_type=int, optional=True, description="Only threads of these process IDs"
            ),
            requirements.ListRequirement(
                name="tid", element_type=int, optional=True, description="Only these thread IDs"
            ),
            requirements.BooleanRequirement(
                name="all", optional=True, default=False, description="Also list threads with nothing to report"
            ),
            requirements.BooleanRequirement(name="wide", optional=True, default=False, description="Show every column"),
            requirements.BooleanRequirement(
                name="scan",
                optional=True,
                default=False,
                description="Also search physical memory for threads and APCs that no list holds",
            ),
            requirements.ChoiceRequirement(
                severities,
                name="min-severity",
                optional=True,
                default=str(Severity.INFO),
                description="Leave out rows below this severity",
            ),
        ]

    @classmethod
    def audit(
        cls,
        context: interfaces.context.ContextInterface,
        kernel_module_name: str,
        selection: Selection | None = None,
        *,
        scan: bool = False,
        progress: constants.ProgressCallback = None,
    ) -> tuple[Audit, Iterator[Audited]]:
        """Audit the image of a context's kernel module, for other plugins.

        Args:
            context: the context that holds the kernel's layer and symbols.
            kernel_module_name: name of the kernel module in it.
            selection: which threads; all with something to report when None.
            scan: whether physical memory is searched for threads and APCs too.
            progress: called with percentages during that search.

        Raises:
            SymbolSpaceError: the kernel's symbol table lacks structures without which there is no audit.
        """
        from .audit import Audit, Selection
        from .layout import LayoutError

        try:
            audit = Audit(context, kernel_module_name, scan_memory=scan, progress=progress)
        except LayoutError as error:
            raise exceptions.SymbolSpaceError(str(error)) from error
        return audit, audit.run(selection or Selection())

    def _rows(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        from .audit import Selection
        from .columns import rows_of

        options: Any = self.config
        selection = Selection(frozenset(options["pid"] or ()), frozenset(options["tid"] or ()), options["all"])
        floor = Severity[options["min-severity"].upper()]
        audit, threads = self.audit(
            self.context, options["kernel"], selection, scan=options["scan"], progress=self._progress_callback
        )
        columns = self._columns()
        for audited in threads:
            for row in rows_of(audited, audit.facts, wide=options["wide"]):
                if row.severity >= floor:
                    yield 0, tuple(column.value(row) for column in columns)
        for note in audit.notes:
            # Of a minidump, which holds parts of memory, nobody expects whole lists.
            vollog.log(logging.INFO if audit.facts.partial else logging.WARNING, note)

    def _columns(self) -> list[Column]:
        from .columns import COLUMNS

        return [column for column in COLUMNS if self.config["wide"] or not column.wide]

    def run(self) -> renderers.TreeGrid:
        """Make the table."""
        return renderers.TreeGrid([(column.name, column.type) for column in self._columns()], self._rows())


# What no other plugin needs is loaded only when the audit runs.
defer(__name__, __path__[0])
