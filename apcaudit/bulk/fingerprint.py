"""What the rows of an image depend on: to decide whether an image has to be scanned again, and whether machines differ.

Rows depend on the programs and their versions, on rules and symbol files, and on options. A failure also depends on the
limits. Symbol files are identified by name, size and content: all bytes of a .json file, the last 64 KiB of a packed
one, where its checksums are.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import apcaudit
from apcaudit import where
from apcaudit.bulk import store
from apcaudit.bulk.outcome import Settings

NONE = "none"

_SYMBOLS = "symbol files"

_ENDINGS = (".json", ".json.xz", ".json.gz", ".json.bz2", ".zip")
"""Suffixes of files that vol takes for symbol files or for archives of them."""

_TAIL = 1 << 16
"""Bytes at the end of a packed file that are read: the checksums of its contents are there (xz, gzip, bzip2, zip)."""

_KERNELS = ("ntkrnlmp.pdb", "ntkrnlpa.pdb", "ntkrpamp.pdb", "ntoskrnl.pdb")
"""Folders of kernels' symbol files. The files' names begin with the GUID (volatility3, KERNEL_MODULE_NAMES)."""


@dataclass(frozen=True, slots=True)
class _SymbolFile:
    """A symbol file: its path in its folder, and a digest."""

    name: str
    digest: str

    def serves(self, kernel: str | None) -> bool:
        """Tell whether rows of an image may depend on this file.

        `kernel` is the GUID of the image's kernel; if it is None, any file may matter.
        """
        folder, _, file = self.name.rpartition("/")
        of_a_kernel = folder.rpartition("/")[2].lower() in _KERNELS
        return not of_a_kernel or kernel is None or file.upper().startswith(kernel.upper())


def basis(settings: Settings, rules: str | None = None) -> tuple[tuple[str, str], ...]:
    """Return the components that make rows on this machine, and the version or digest of each.

    Args:
        settings: the scan's.
        rules: the digest of its rules, where they have just been compiled.

    Raises:
        ApcAuditError: the rules cannot be used.
    """
    return (
        *programs(),
        ("rules", _rules(settings) if rules is None else rules),
        (_SYMBOLS, _digest_of(_list(settings.symbols))),
    )


def differences(settings: Settings) -> list[str]:
    """Describe the differences between this machine and the one that started the scan; empty if there are none."""
    if settings.basis in _same:
        return []
    here = dict(basis(settings))
    found = [
        f"{name} is {here.get(name, NONE)}, on the machine of the scan {theirs}"
        for name, theirs in settings.basis
        if here.get(name, NONE) != theirs
    ]
    if not found:
        _same.add(settings.basis)
    return found


_same: set[tuple[tuple[str, str], ...]] = set()
"""The `basis` of scans from which this machine was found not to differ."""


def lacking(settings: Settings) -> Iterator[str]:
    """Say what a scan will not do: for a program that is not installed, without --scan, or with --offline."""
    has = dict(settings.basis or programs())
    if has.get("capstone") == NONE:
        yield "the code at start addresses is not checked: capstone is not installed (pip install capstone)"
    if has.get("yara") == NONE:
        yield "drivers are not scanned with YARA rules: no engine is installed (pip install yara-python)"
    elif not settings.rules and not any(shipped_rules()):
        yield "drivers are not scanned with YARA rules: none ship with this installation (--yara-file)"
    if not settings.scan:
        yield "memory is not searched for threads and APCs that no list holds (--scan)"
    if settings.offline:
        yield "symbol files that are missing are not fetched (--offline)"


def describe(settings: Settings, kernel: str | None, *, limits: bool) -> str:
    """Return the text for a row's `settings` column: all that the row depends on.

    Args:
        settings: the scan's.
        kernel: GUID of the image's kernel; symbol files of other kernels are left out. None: all are included.
        limits: whether the row also depends on the limits of time and memory and on the network, as a failure does.
    """
    made = [f"schema={store.VERSION}", f"scan={int(settings.scan)}"]
    for name, value in settings.basis:
        digest = _symbols(settings, value, kernel) if name == _SYMBOLS else value
        made.append(f"{name.replace(' ', '-')}={digest.replace(' ', '-')}")
    if limits:
        made.append(f"offline={int(settings.offline)} memory={settings.memory} timeout={settings.timeout:g}")
    return " ".join(made)


@functools.cache
def programs() -> tuple[tuple[str, str], ...]:
    """Return the programs and their versions, read once: loaded code stays when its installation is replaced."""
    # It imports vol, which takes a while.
    from apcaudit.bulk import framework

    volatility, yara, capstone = framework.engines()
    return (
        ("apcaudit", f"{apcaudit.__version__}+{_code()}"),
        ("volatility3", volatility),
        ("yara", NONE if yara is None else f"{yara} {_version(yara)}"),
        ("capstone", NONE if capstone is None else _version(capstone)),
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        # It is in the path without having been installed.
        return "unknown"


def _code() -> str:
    """Digest the code and the rules that make rows, since a checkout changes without a new version."""
    own = Path(__file__).resolve().parents[1]
    files = [*own.glob("bulk/*.py"), *_plugin().rglob("*.py"), *shipped_rules()]
    # Only names, since paths differ between a checkout and an installation.
    every = sorted(path.name.encode() + b"\0" + path.read_bytes() for path in files)
    return hashlib.sha256(b"\0".join(every)).hexdigest()[:12]


def _plugin() -> Path:
    return where.directories()[0] / "windows" / "apcaudit"


def shipped_rules() -> Iterator[Path]:
    """Yield the files of the rules that ship."""
    return (_plugin() / "rules").glob("*.yar")


def _rules(settings: Settings) -> str:
    """Digest the user's rules, their includes, and which of them are skipped."""
    if settings.rules is None:
        return NONE
    from apcaudit.bulk import framework

    digest, _ = framework.check_rules(settings.rules, skip_broken=settings.skip_broken_rules)
    return digest


_listed: dict[tuple[Path, ...], tuple[_SymbolFile, ...]] = {}


def _symbols(settings: Settings, digest: str, kernel: str | None) -> str:
    """Digest the symbol files that rows of an image of a kernel may depend on."""
    files = _listed.get(settings.symbols)
    if files is None or _digest_of(files) != digest:
        files = _list(settings.symbols)
    return _digest_of(each for each in files if each.serves(kernel))


def _list(symbols: tuple[Path, ...]) -> tuple[_SymbolFile, ...]:
    """List the symbol files in vol's path, but not kernels' files that vol fetched: their names identify them."""
    from apcaudit.bulk import framework

    found: set[_SymbolFile] = set()
    for folder, fetched in framework.symbol_folders(symbols):
        for parent, _, names in os.walk(folder):
            for name in names:
                if name.endswith(_ENDINGS) and not (fetched and os.path.basename(parent).lower() in _KERNELS):
                    path = Path(parent, name)
                    found.add(_SymbolFile(path.relative_to(folder).as_posix(), _tail(path)))
    _listed[symbols] = files = tuple(sorted(found, key=lambda each: (each.name, each.digest)))
    return files


def _tail(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return NONE
        digest = hashlib.sha256()
        with path.open("rb") as file:
            file.seek(0 if path.suffix == ".json" else max(0, status.st_size - _TAIL))
            while block := file.read(_TAIL):
                digest.update(block)
        return f"{status.st_size}:{digest.hexdigest()}"
    except OSError:
        # Nor can vol read it.
        return NONE


def _digest_of(files: Iterable[_SymbolFile]) -> str:
    lines = "".join(f"{each.name}\0{each.digest}\n" for each in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16]
