"""`apcaudit where`: prints the arguments with which a vol installed elsewhere finds the plugin and its symbols.

One argument per line, without quotes: of `vol $(apcaudit where) ...` sh, and of `vol (apcaudit where) ...` PowerShell,
makes one argument per line. In sh a space separates arguments too.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from apcaudit.errors import ApcAuditError

_PLUGIN = Path("windows", "apcaudit", "__init__.py")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "where",
        help="print the -p and -s arguments for a vol that is installed elsewhere",
        description="Print the -p and -s arguments for a vol that does not find windows.apcaudit by itself, one per"
        " line. In sh: vol $(apcaudit where) -f IMAGE windows.apcaudit. In PowerShell: vol (apcaudit where) -f IMAGE"
        " windows.apcaudit",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:  # noqa: ARG001 - every subcommand takes the options
    """Print the arguments."""
    plugins, symbols = directories()
    print("-p", plugins, "-s", symbols, sep="\n")
    if os.name != "nt" and any(each.isspace() for each in f"{plugins}{symbols}"):
        print("apcaudit: there is a space in these paths: run `IFS=$'\\n'` in the shell first", file=sys.stderr)
    return 0


def directories() -> tuple[Path, Path]:
    """Return the plugin directory and the symbol directory: of this checkout, else of the installation."""
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "vol_plugins" / _PLUGIN).is_file():
        return checkout / "vol_plugins", checkout / "symbols"
    candidates = [checkout]
    spec = importlib.util.find_spec("volatility3")
    if spec is not None and spec.submodule_search_locations:
        candidates += [Path(each).parent for each in spec.submodule_search_locations]
    for site in candidates:
        if (site / "volatility3" / "plugins" / _PLUGIN).is_file():
            return site / "volatility3" / "plugins", site / "volatility3" / "symbols"
    raise ApcAuditError("the plugin is not installed beside this command: reinstall apcaudit")
