"""The kernel as the plugin's requirement: when it is not met, it says why."""

from __future__ import annotations

from volatility3.framework import interfaces
from volatility3.framework.configuration import requirements

from .rules_requirement import Unmet, Unusable, unusable_rules


class KernelRequirement(requirements.ModuleRequirement):
    """The kernel as a requirement that tells, when it is not met, why not and what to do."""

    _failed_in: tuple[interfaces.context.ContextInterface, str] | None = None

    def unsatisfied(
        self, context: interfaces.context.ContextInterface, config_path: str
    ) -> dict[str, interfaces.configuration.RequirementInterface]:
        """Return itself when the kernel's layer or symbols are missing, so that its description is printed.

        For rules and for an image that cannot be used it lacks nothing: what vol looks for, it opens the image for.
        """
        if unusable_rules(context, config_path) or unusable_image(context, config_path):
            return {}
        missing = super().unsatisfied(context, config_path)
        self._failed_in = (context, config_path) if missing else None
        return {interfaces.configuration.path_join(config_path, self.name): self} if missing else {}

    @property
    def description(self) -> str:
        """What vol prints of a requirement that is not met."""
        if self._failed_in is None:
            return str(super().description)
        from .diagnosis import diagnose

        context, config_path = self._failed_in
        return diagnose(context, interfaces.configuration.path_join(config_path, self.name))


def unusable_image(context: interfaces.context.ContextInterface, config_path: str) -> Unmet:
    """Look at the image without opening it; where it is no file, return what vol prints that of."""
    from .image_file import why_no_image

    location = context.config.get("automagic.LayerStacker.single_location", None)
    why = why_no_image(location) if isinstance(location, str) and location else None
    return {} if why is None else Unusable(name="kernel", description=why).unsatisfied(context, config_path)
