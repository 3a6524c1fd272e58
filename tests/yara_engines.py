"""The YARA engines that can be imported, and what rules see where nothing is known of a unit."""

from __future__ import annotations

from importlib import import_module

import pytest
from volatility3.plugins.windows.apcaudit.signatures import rules as engines
from volatility3.plugins.windows.apcaudit.signatures.engines import YaraPython, YaraX
from volatility3.plugins.windows.apcaudit.signatures.rules import Start, UnitFacts, externals

_KINDS = {"yara-python": ("yara", YaraPython), "yara-x": ("yara_x", YaraX)}

ENGINES = sorted(_KINDS)
NOTHING = externals(UnitFacts(), Start())


def imported(name: str) -> engines.Engine:
    """Give an engine; where it is not installed, the test is skipped."""
    module, kind = _KINDS[name]
    pytest.importorskip(module)
    made: engines.Engine = kind(import_module(module))
    return made
