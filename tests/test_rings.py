"""What vol needs of the package's shape; which module may import which is in pyproject.toml, for import-linter."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PLUGINS = ROOT / "vol_plugins"
PACKAGE = PLUGINS / "windows" / "apcaudit"
COMMAND = ROOT / "apcaudit"

# Vol imports every module below vol_plugins on every run, also for another plugin: nothing there may be slow to
# import, and nothing but vol itself may be missing.
ALLOWED_IN_PLUGINS = sys.stdlib_module_names | {"volatility3"}

# Modules of the standard library that are slow to import or have no place in a plugin.
SLOW = {"asyncio", "concurrent", "multiprocessing", "sqlite3", "tkinter", "unittest", "xml", "distutils", "pydoc"}

LINES = 450


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, *, everywhere: bool) -> Iterator[str]:
    """Yield what a module imports, as written: `.model`, `volatility3.framework`.

    Without `everywhere` not what its functions import when they are called, and never what is for type checkers alone.
    """
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            if origin.strip("."):
                yield origin
            else:
                yield from (origin + alias.name for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending.extend(node.orelse)
        elif everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))


def top(name: str) -> str:
    return name.partition(".")[0]


def test_vol_imports_a_module_without_delay_or_failure() -> None:
    """No module below vol_plugins imports, while it is imported, what is slow or may be missing."""
    found = {
        name_of(path): {top(name) for name in imports(path, everywhere=False) if not name.startswith(".")}
        for path in modules(PLUGINS)
    }
    assert {path: names - ALLOWED_IN_PLUGINS for path, names in found.items() if names - ALLOWED_IN_PLUGINS} == {}
    assert {path: names & SLOW for path, names in found.items() if names & SLOW} == {}


def test_no_copy_of_vols_plugins() -> None:
    """No module below vol_plugins names the framework's own copy of vol's plugins: vol would load them twice."""
    copies = "volatility3.framework.plugins"
    assert [
        name_of(path)
        for path in modules(PLUGINS)
        if any(name.startswith(copies) for name in imports(path, everywhere=True))
    ] == []


def test_one_plugin_class() -> None:
    """The package has one subclass of PluginInterface, in its __init__: a second one makes its name ambiguous."""
    bases: dict[tuple[str, str], set[str]] = {}
    for path in modules(PLUGINS):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[name_of(path), node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    plugins: set[tuple[str, str]] = set()
    while True:
        kinds = {"PluginInterface"} | {name for _, name in plugins}
        grown = {place for place, names in bases.items() if names & kinds}
        if grown == plugins:
            break
        plugins = grown
    assert plugins == {("vol_plugins/windows/apcaudit/__init__.py", "ApcAudit")}


@pytest.mark.parametrize("folder", ["vol_plugins", "vol_plugins/windows"])
def test_vols_own_packages_are_left_alone(folder: str) -> None:
    """An __init__.py there would replace vol's own and hide its plugins."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_no_other_plugin_has_a_name_like_ours() -> None:
    """Vol matches plugin names by substring: nothing beside the package has its name in it."""
    assert [path.name for path in PACKAGE.parent.iterdir() if "apcaudit" in path.name] == ["apcaudit"]


def test_a_module_is_short_and_says_what_it_is() -> None:
    """A module has a docstring that says what belongs in it, and no more lines than one sitting reads."""
    sources = {name_of(path): path.read_text(encoding="utf-8") for path in (*modules(PLUGINS), *modules(COMMAND))}
    assert [name for name, source in sources.items() if len(source.splitlines()) > LINES] == []
    assert [name for name, source in sources.items() if not ast.get_docstring(ast.parse(source))] == []
