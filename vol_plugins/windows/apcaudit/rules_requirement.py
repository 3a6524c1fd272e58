"""The options that give YARA rules, and the requirement that is not met where those cannot be used: it says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from volatility3.framework import interfaces
from volatility3.framework.configuration import requirements

if TYPE_CHECKING:
    from .signatures.options import RuleOptions

Unmet = dict[str, interfaces.configuration.RequirementInterface]


def rule_requirements() -> list[interfaces.configuration.RequirementInterface]:
    """Declare the options, with the meaning that vol's yarascan gives them."""
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
            name="yara-all", optional=True, default=False, description="Scan every driver, not only suspect threads'"
        ),
    ]


def rule_options(config: Mapping[str, Any] | Any) -> RuleOptions:
    """Make the options out of a plugin's configuration."""
    from .signatures.options import RuleOptions

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
    """What cannot be used, rules or an image: made with the reason for its description, so never met."""

    def unsatisfied(
        self,
        context: interfaces.context.ContextInterface,  # noqa: ARG002 - the interface's parameters
        config_path: str,
    ) -> Unmet:
        """Return itself."""
        return {interfaces.configuration.path_join(config_path, self.name): self}


# For whom rules were found to be usable: vol asks ten times, and thousands of files need not be read as often.
_usable: list[tuple[ReferenceType[interfaces.context.ContextInterface], RuleOptions]] = []


def unusable_rules(context: interfaces.context.ContextInterface, config_path: str) -> Unmet:
    """Compile what rules the user gave; where they cannot be used, return what vol prints that of."""
    options = rule_options(context.config.branch(config_path))
    if not options.own or any(asking() is context and known == options for asking, known in _usable):
        return {}
    from .signatures.options import RuleError
    from .signatures.rules import compile_rules

    try:
        compile_rules(options)
    except RuleError as error:
        return Unusable(name=error.option or "yara-rules", description=str(error)).unsatisfied(context, config_path)
    _usable[:] = [(ref(context), options)]
    return {}
