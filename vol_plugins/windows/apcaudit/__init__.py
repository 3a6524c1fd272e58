"""The plugin `windows.apcaudit`: kernel APC queues, whether they are legitimate, and what would happen next."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from volatility3.framework import constants, exceptions, interfaces, renderers
from volatility3.framework.configuration import requirements

from .findings import Severity
from .vol import (
    KernelRequirement,
    rule_options,
    rule_requirements,
    timeliner_requirements,
    unusable_image,
    unusable_rules,
)
from .vol.automagic import BorrowedTypes as BorrowedTypes
from .vol.automagic import CutLimeStacker as CutLimeStacker
from .vol.automagic import MinidumpStacker as MinidumpStacker
from .vol.automagic import PageTableStacker as PageTableStacker
from .vol.deferred import defer

if TYPE_CHECKING:
    from datetime import datetime

    from volatility3.framework.plugins import timeliner

    from .audit import Audit, Selection
    from .findings import Audited
    from .output.columns import Column, Row
    from .output.document import Document
    from .signatures.options import RuleOptions
else:
    # Vol's own plugins appear in this package when it runs, which no type checker sees.
    from volatility3.plugins import timeliner

vollog = logging.getLogger(__name__)


class ApcAudit(interfaces.plugins.PluginInterface, timeliner.TimeLinerInterface):
    """Audits the APC queues of every thread: what is queued, whether that is legitimate, and what would happen next.

    Lists every thread with a non-empty kernel or user APC list, and every thread whose APC state
    contradicts itself, beside ApcStateIndex and KernelApcPending. Findings say what no legitimate
    course of events explains, and which bugcheck (0x6, 0x20, ...) the state leads to. Each finding
    has a page: docs/findings/CODE.md.
    """

    _required_framework_version = (2, 0, 0)
    _version = (3, 0, 0)

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
            requirements.BooleanRequirement(
                name="stacks",
                optional=True,
                default=False,
                description="Explain every thread with the frames of its kernel stack too",
            ),
            requirements.ChoiceRequirement(
                severities,
                name="min-severity",
                optional=True,
                default=str(Severity.INFO),
                description="Leave out rows below this severity; the thread that crashed stays",
            ),
            *rule_requirements(),
            *timeliner_requirements(timeliner.TimeLinerInterface),
        ]

    @classmethod
    def unsatisfied(
        cls, context: interfaces.context.ContextInterface, config_path: str
    ) -> dict[str, interfaces.configuration.RequirementInterface]:
        """Return the requirements that are not met: first rules that cannot be used, then the image."""
        return (
            unusable_rules(context, config_path)
            or unusable_image(context, config_path)
            or super().unsatisfied(context, config_path)
        )

    @classmethod
    def audit(
        cls,
        context: interfaces.context.ContextInterface,
        kernel_module_name: str,
        selection: Selection | None = None,
        *,
        scan: bool = False,
        rules: RuleOptions | None = None,
        progress: constants.ProgressCallback = None,
    ) -> Document:
        """Audit the image of a context's kernel module, for other plugins, which declare a VersionRequirement.

        Version 1.0.0: returned what stream() returns now.
        Version 2.0.0: returns one frozen document.
        Version 3.0.0: Document.to_dict() returns what to_json() did, with addresses as text; to_json() returns text.

        Args:
            context: the context that holds the kernel's layer and symbols.
            kernel_module_name: name of the kernel module in it.
            selection: which threads; all with something to report when None.
            scan: whether physical memory is searched for threads and APCs too.
            rules: which YARA rules scan which drivers; those that ship, for suspect threads, when None.
            progress: called with percentages during that search.

        Raises:
            SymbolSpaceError: the kernel's symbol table lacks structures without which there is no audit.
            RuleError: rules that the options name cannot be used; the message has file, line and reason.
        """
        from .output.document import Document

        audit, threads = cls.stream(context, kernel_module_name, selection, scan=scan, rules=rules, progress=progress)
        audited = tuple(threads)
        return Document(audit.image, audit.facts, audited, audit.notes)

    @classmethod
    def stream(
        cls,
        context: interfaces.context.ContextInterface,
        kernel_module_name: str,
        selection: Selection | None = None,
        *,
        scan: bool = False,
        rules: RuleOptions | None = None,
        progress: constants.ProgressCallback = None,
    ) -> tuple[Audit, Iterator[Audited]]:
        """Audit an image like audit(), but yield one thread at a time and keep none, for images with many threads.

        Args:
            context: the context that holds the kernel's layer and symbols.
            kernel_module_name: name of the kernel module in it.
            selection: which threads; all with something to report when None.
            scan: whether physical memory is searched for threads and APCs too.
            rules: which YARA rules scan which drivers; those that ship, for suspect threads, when None.
            progress: called with percentages during that search.

        Raises:
            SymbolSpaceError: the kernel's symbol table lacks structures without which there is no audit.
            RuleError: rules that the options name cannot be used; the message has file, line and reason.
        """
        from .audit import Audit, Selection
        from .formats.layout import LayoutError

        if rules is not None and rules.own:
            from .signatures.rules import compile_rules

            compile_rules(rules)
        try:
            audit = Audit(context, kernel_module_name, scan_memory=scan, rules=rules, progress=progress)
        except LayoutError as error:
            raise exceptions.SymbolSpaceError(str(error)) from error
        return audit, audit.run(selection or Selection())

    def _selection(self) -> Selection:
        from .audit import Selection

        options: Any = self.config
        return Selection(
            frozenset(options["pid"] or ()),
            frozenset(options["tid"] or ()),
            options["all"],
            options["stacks"],
            options["wide"],
        )

    def _begin(self) -> tuple[Audit, Iterator[Audited]]:
        """Return the audit of the image with the plugin's options, and its threads."""
        options: Any = self.config
        return self.stream(
            self.context,
            options["kernel"],
            self._selection(),
            scan=options["scan"],
            rules=rule_options(self.config),
            progress=self._progress_callback,
        )

    def _reported(self, audit: Audit, threads: Iterator[Audited]) -> Iterator[list[Row]]:
        """Yield the rows of each thread that has rows; then log the notes, and that there were no rows."""
        from .output.columns import rows_of

        options: Any = self.config
        floor = Severity[options["min-severity"].upper()]
        found = False
        for audited in threads:
            rows = rows_of(audited, audit.facts, wide=options["wide"], stacks=options["stacks"])
            if audited.thread.address != audit.facts.crashing_thread:
                rows = [row for row in rows if row.severity >= floor]
            if rows:
                found = True
                yield rows
        if not found:
            vollog.warning(audit.nothing(self._selection(), floor))
        of_rules = (*audit.reports.signatures.hits_without_thread, *audit.reports.signatures.skipped_rules)
        for note in audit.notes:
            # A minidump holds only parts of memory, so incomplete lists are no surprise there.
            expected = audit.facts.partial and note not in of_rules
            vollog.log(logging.INFO if expected else logging.WARNING, note)

    def _rows(self, audit: Audit, threads: Iterator[Audited]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        columns = self._columns()
        for rows in self._reported(audit, threads):
            for row in rows:
                yield 0, tuple(column.value(row) for column in columns)

    def generate_timeline(self) -> Generator[tuple[str, timeliner.TimeLinerType, datetime], None, None]:
        """Yield when the reported threads were created and ended, for vol's timeliner."""
        from .output.document import CREATED, timeline

        types = timeliner.TimeLinerType
        audit, threads = self._begin()
        for rows in self._reported(audit, threads):
            for text, kind, time in timeline(rows[0].audited, audit.facts):
                yield text, types.CREATED if kind == CREATED else types.MODIFIED, time

    def _columns(self) -> list[Column]:
        from .output.columns import COLUMNS

        return [column for column in COLUMNS if self.config["wide"] or not column.wide]

    def run(self) -> renderers.TreeGrid:
        """Return the table, made while it is read; log first how the machine stopped, above the table."""
        audit, threads = self._begin()
        if audit.facts.crash is not None:
            vollog.warning(f"The machine stopped: {audit.facts.crash}")
        columns = [(column.name, column.type) for column in self._columns()]
        return renderers.TreeGrid(columns, self._rows(audit, threads))


# Modules that no other plugin needs are loaded only when the audit runs.
defer(__name__, __path__[0])
