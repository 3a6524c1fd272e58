"""The scenes by name. A scene is a module here with a `scene(...)` function whose parameters have defaults."""

from __future__ import annotations

from collections.abc import Callable

from apcaudit.synthetic import situations
from apcaudit.synthetic.scene import Scene
from apcaudit.synthetic.scenes import desktop, healthy, injection, many, seed

SCENES: dict[str, Callable[..., Scene]] = {
    "seed": seed.scene,
    "healthy": healthy.scene,
    "many": many.scene,
    "desktop": desktop.scene,
    "injection": injection.scene,
    "situations": situations.scene,
}
