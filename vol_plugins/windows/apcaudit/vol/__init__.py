"""The plugin's requirements: a Windows kernel, with a diagnosis where it is missing, and usable YARA rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from volatility3.framework import interfaces
from volatility3.framework.configuration import requirements

if TYPE_CHECKING:
    from ..signatures.options import RuleOptions


Unmet = dict[str, interfaces.configuration.RequirementInterface]


def rule_requirements() -> list[interfaces.configuration.RequirementInterface]:
    """Declare the options for YARA rules; those of vol's yarascan keep their meaning."""
    return [
        requirements.URIRequirement(
            name="yara-file", optional=True, description="YARA rules for drivers: a file, or a folder of .yar files"
        ),
        requirements.StringRequirement(
            name="yara-string",
            optional=True,
            description="A YARA string for drivers: text, { hexadecimal } or /regular expression/",
        ),
        requirements.URIRequirement(
            name="yara-compiled-file", optional=True, description="Compiled YARA rules for drivers"
        ),
        requirements.BooleanRequirement(
            name="insensitive", optional=True, default=False, description="--yara-string in either case"
        ),
        requirements.BooleanRequirement(
            name="wide-string", optional=True, default=False, description="--yara-string as UTF-16 too"
        ),
        requirements.BooleanRequirement(
            name="no-default-rules", optional=True, default=False, description="Leave out the rules that ship"
        ),
        requirements.BooleanRequirement(
            name="skip-broken-rules",
            optional=True,
            default=False,
            description="Go on without the files of --yara-file that cannot be used, and name them",
        ),
        requirements.BooleanRequirement(
            name="yara-all",
            optional=True,
            default=False,
            description="Scan every driver with YARA rules, not only those that suspect threads depend on; then each"
            " thread that starts in a driver with a hit is listed, suspect or not",
        ),
    ]


def timeliner_requirements(interface: type[Any]) -> list[interfaces.configuration.RequirementInterface]:
    """Declare vol's TimeLinerInterface; to volatility3 2.11 it has no version that could be required."""
    if not hasattr(interface, "version"):
        return []
    return [requirements.VersionRequirement(name="timeliner", component=interface, version=(1, 0, 0))]


def rule_options(config: Mapping[str, Any] | Any) -> RuleOptions:
    """Read the options for YARA rules from a plugin's configuration."""
    from ..signatures.options import RuleOptions

    return RuleOptions(
        file=config.get("yara-file", None),
        string=config.get("yara-string", None),
        compiled_file=config.get("yara-compiled-file", None),
        insensitive=bool(config.get("insensitive", False)),
        wide=bool(config.get("wide-string", False)),
        defaults=not config.get("no-default-rules", False),
        every_driver=bool(config.get("yara-all", False)),
        skip_broken=bool(config.get("skip-broken-rules", False)),
    )


class Unusable(interfaces.configuration.RequirementInterface):
    """A requirement that is never met, for rules or an image that cannot be used; its description is the reason."""

    def unsatisfied(
        self,
        context: interfaces.context.ContextInterface,  # noqa: ARG002 - the interface's parameters
        config_path: str,
    ) -> Unmet:
        """Return itself."""
        return {interfaces.configuration.path_join(config_path, self.name): self}


# The context and options whose rules were found usable: vol asks ten times, and there may be thousands of files.
_usable: list[tuple[ReferenceType[interfaces.context.ContextInterface], RuleOptions]] = []


def unusable_rules(context: interfaces.context.ContextInterface, config_path: str) -> Unmet:
    """Compile the user's rules; where they cannot be used, return the unmet requirement that vol prints."""
    options = rule_options(context.config.branch(config_path))
    if not options.own or any(context_ref() is context and known == options for context_ref, known in _usable):
        return {}
    from ..signatures.options import RuleError
    from ..signatures.rules import compile_rules

    try:
        compile_rules(options)
    except RuleError as error:
        return Unusable(name=error.option or "yara-rules", description=str(error)).unsatisfied(context, config_path)
    _usable[:] = [(ref(context), options)]
    return {}


class KernelRequirement(requirements.ModuleRequirement):
    """The kernel as a requirement whose description says, when it is not met, why not and what to do."""

    _failed_in: tuple[interfaces.context.ContextInterface, str] | None = None

    def unsatisfied(
        self, context: interfaces.context.ContextInterface, config_path: str
    ) -> dict[str, interfaces.configuration.RequirementInterface]:
        """Return itself when the kernel's layer or symbols are missing, so that its description is printed.

        It counts as met while rules or the image cannot be used: otherwise vol would open the image to search for it.
        """
        if unusable_rules(context, config_path) or unusable_image(context, config_path):
            return {}
        missing = super().unsatisfied(context, config_path)
        self._failed_in = (context, config_path) if missing else None
        return {interfaces.configuration.path_join(config_path, self.name): self} if missing else {}

    @property
    def description(self) -> str:
        """The text that vol prints for an unmet requirement."""
        if self._failed_in is None:
            return str(super().description)
        from .diagnosis import diagnose

        context, config_path = self._failed_in
        return diagnose(context, interfaces.configuration.path_join(config_path, self.name))


def unusable_image(context: interfaces.context.ContextInterface, config_path: str) -> Unmet:
    """Check without opening it that the image is a file; if not, return the unmet requirement that vol prints."""
    from ..formats.files import why_no_image

    location = context.config.get("automagic.LayerStacker.single_location", None)
    why = why_no_image(location) if isinstance(location, str) and location else None
    return {} if why is None else Unusable(name="kernel", description=why).unsatisfied(context, config_path)
