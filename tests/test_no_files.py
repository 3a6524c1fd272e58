"""What is no file (a FIFO, a socket, a device, a folder) in the place of an input: told at once, and never opened."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.dumps import minidump_layer as kernel
from volatility3.plugins.windows.apcaudit.formats import files as regular
from volatility3.plugins.windows.apcaudit.signatures.options import RuleError
from volatility3.plugins.windows.apcaudit.signatures.rules import compile_rules
from volatility3.plugins.windows.apcaudit.vol.borrowing import read_document

from tests import command
from tests.bulk_images import shared_cache
from tests.canaries import NO_FILES, no_file
from tests.conftest import ROOT
from tests.signed_drivers import only, write
from tests.volatility import CACHE, vol

A = "rule a { condition: true }"
KINDS = pytest.mark.parametrize("kind", NO_FILES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for what is no file."""
    made = tmp_path / "given"
    made.mkdir()
    return made


@KINDS
@pytest.mark.parametrize("option", ["file", "compiled_file"])
@pytest.mark.parametrize("name", ["odd.yar", "odd.yar.gz"])
def test_rules(kind: str, option: str, name: str, folder: Path) -> None:
    """A rule file, packed or not, and a file of compiled rules that is no file is an error that says what it is."""
    says = f"{name}: it is {kind}"
    if (kind, option) == ("a folder", "file"):
        says = r"no \.yar or \.yara file in this folder"
    with no_file(kind, folder / name), pytest.raises(RuleError, match=says):
        compile_rules(only(**{option: (folder / name).as_uri()}))


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device"])
def test_a_rule_file_of_a_folder(kind: str, folder: Path) -> None:
    """What is no file in a folder of rules is named beside the rules that do not compile."""
    write(folder, "good.yar", A)
    write(folder, "wrong.yar", "rule b { condition: nothing }")
    says = "it is a link to a file that is not below" if kind == "a device" else f"it is {kind}"
    with no_file(kind, folder / "odd.yar"), pytest.raises(RuleError) as caught:
        compile_rules(only(file=str(folder)))
    assert str(caught.value).startswith("2 of 3 rule files cannot be used: ")
    assert f"{folder / 'odd.yar'}: {says}" in str(caught.value)
    assert f"{folder / 'wrong.yar'}:1: " in str(caught.value)


def test_a_link_out_of_a_folder_of_rules(folder: Path, tmp_path: Path) -> None:
    """A link in a folder of rules to a file elsewhere is not followed, and no word of that file is in the message."""
    (tmp_path / "secret").write_text("root_of_all_secrets", encoding="utf-8")
    (folder / "link.yar").symlink_to(tmp_path / "secret")
    (folder / "inner.yar").symlink_to(write(folder, "deep/real.yar", A))
    with pytest.raises(RuleError, match=r"link\.yar: it is a link to a file that is not below") as caught:
        compile_rules(only(file=str(folder)))
    assert "root_of" not in str(caught.value)
    (folder / "link.yar").unlink()
    assert len(compile_rules(only(file=str(folder))).parts) == 1


def test_a_folder_of_rules_that_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder below the rules that cannot be listed is told: nobody knows which rules are in it."""
    write(folder, "good.yar", A)
    closed = folder / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: str) -> Iterator[os.DirEntry[str]]:
        if os.fspath(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(closed))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(RuleError, match=r"closed: a folder that cannot be listed: Permission denied"):
        compile_rules(only(file=str(folder)))


@pytest.mark.parametrize("kind", ["a FIFO", "a folder"])
def test_what_comes_between(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a file's place between the look and the opening is not waited for, and not read."""
    path = folder / "odd.yar"
    os.mkfifo(path) if kind == "a FIFO" else path.mkdir()
    monkeypatch.setattr(regular, "check", lambda _: None)
    with pytest.raises(regular.NoFileError) as caught:
        regular.open_file(path)
    assert caught.value.strerror == f"it is {kind}"


@KINDS
def test_symbol_files(kind: str, folder: Path) -> None:
    """The plugin opens no symbol file that is none: not for types to borrow, and not for a minidump's kernel."""
    path = folder / "ntkrnlmp.pdb.json"
    with no_file(kind, path):
        with pytest.raises(OSError, match=f"it is {kind}"):
            read_document(path.as_uri())
        assert kernel._stamp(path.as_uri()) is None
        assert kernel._stamp(f"jar:file:{path}!x.json") is None


def _vol(image: Path) -> subprocess.CompletedProcess[str]:
    arguments = ("-q", "--offline", "--cache-path", CACHE, "-p", ROOT / "vol_plugins", "-s", ROOT / "symbols")
    return vol(*arguments, "-f", image, "windows.apcaudit")


@KINDS
def test_an_image(kind: str, folder: Path) -> None:
    """Vol opens no image for the plugin that is no file, and one line says what it is."""
    with no_file(kind, folder / "odd.raw"):
        done = _vol(folder / "odd.raw")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if "odd.raw" in line]
    assert said == [f"Unsatisfied requirement plugins.ApcAudit.kernel: odd.raw is {kind}, no file with an image in it"]


@pytest.mark.parametrize("state", ["odd.vmss", "odd.vmsn"])
def test_the_state_beside_an_image(state: str, folder: Path) -> None:
    """Nor is the state of a VMware machine opened, which vol looks for beside its memory."""
    (folder / "odd.vmem").write_bytes(bytes(0x10000))
    with no_file("a FIFO", folder / state):
        done = _vol(folder / "odd.vmem")
    assert done.returncode == 1
    assert f"{state} beside odd.vmem is a FIFO" in done.stdout


@pytest.fixture
def apcaudit() -> Iterator[Callable[..., command.Done]]:
    """The command, with the cache that tests share."""
    with shared_cache():
        yield command.run


@pytest.mark.parametrize("kind", ["a socket", "a folder", "a device"])
def test_rows_to_show(kind: str, folder: Path, apcaudit: Callable[..., command.Done]) -> None:
    """`apcaudit show` reads files and pipes; whatever else is one line."""
    with no_file(kind, folder / "rows"):
        done = apcaudit("show", folder / "rows")
    assert done.returncode == 1
    assert done.stderr.startswith(f"apcaudit: {folder / 'rows'} is {kind}; this takes a file of rows, ")
    assert done.stderr.count("\n") == 1


def test_rows_out_of_a_pipe(folder: Path, tmp_path: Path) -> None:
    """A pipe is what a shell gives for the output of another command."""
    reading, writing = os.pipe()
    os.write(writing, b'{"Thread": 1, "Severity": "info", "Findings": "", "Explanation": ""}\n')
    os.close(writing)
    with contextlib.closing(os.fdopen(reading)):
        done = subprocess.run(
            [sys.executable, "-m", "apcaudit", "show", f"/dev/fd/{reading}"],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            pass_fds=[reading],
            timeout=120,
        )
    assert (done.returncode, done.stderr) == (0, "")


@KINDS
def test_a_kernel_to_build(kind: str, folder: Path, tmp_path: Path, apcaudit: Callable[..., command.Done]) -> None:
    """`apcaudit synth --kernel` takes a symbol file, and nothing that is none."""
    with no_file(kind, folder / "odd.json"):
        done = apcaudit("synth", "healthy", "--kernel", folder / "odd.json", "-o", tmp_path / "x.raw")
    assert done.returncode == 1
    assert done.stderr.startswith(f"apcaudit: no kernel {folder / 'odd.json'}: ")


@KINDS
@pytest.mark.parametrize("subcommand", ["scan", "symbols", "report"])
@pytest.mark.parametrize("name", ["odd.json.xz", "odd.zip"])
def test_a_symbol_folder(
    kind: str, subcommand: str, name: str, folder: Path, tmp_path: Path, apcaudit: Callable[..., command.Done]
) -> None:
    """A folder of symbol files with something else in it is refused before vol opens all of them for its index."""
    pytest.importorskip("pyarrow")
    symbols = folder / "symbols" / "windows"
    symbols.mkdir(parents=True)
    (folder / "image.raw").write_bytes(bytes(0x1000))
    output = {"scan": ["-o", tmp_path / "results"], "symbols": [], "report": ["-o", tmp_path / "report.html"]}
    with no_file(kind, symbols / name):
        done = apcaudit(subcommand, folder / "image.raw", "-s", folder / "symbols", *output[subcommand])
    assert done.returncode == 1
    assert done.stderr == f"apcaudit: {symbols / name} is {kind}, no symbol file: remove it\n"


def test_the_process_that_reads_images(folder: Path, tmp_path: Path) -> None:
    """Nor does the process wait that indexes symbol files, on another machine of a cluster for instance."""
    pytest.importorskip("pyarrow")
    start = {"symbols": [str(folder)], "cache": str(tmp_path / "cache"), "own": str(tmp_path / "own")}
    with no_file("a FIFO", folder / "odd.json"):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "apcaudit.bulk.child",
                json.dumps(start | {"offline": True, "index_memory": 1 << 32}),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode == 1
    assert done.stderr.endswith(f"{folder / 'odd.json'} is a FIFO, no symbol file: remove it\n")


@pytest.mark.parametrize(
    ("subcommand", "kinds"), [("symbols", ("a FIFO", "a socket", "a device")), ("report", ("a FIFO",))]
)
def test_evidence(
    subcommand: str, kinds: tuple[str, ...], folder: Path, tmp_path: Path, apcaudit: Callable[..., command.Done]
) -> None:
    """Evidence that is no file is a failed image: it is not opened, and the command goes on to its end."""
    pytest.importorskip("pyarrow")
    output = tmp_path / "report.html"
    odd = {kind: folder / f"{kind.partition(' ')[2]}.raw" for kind in kinds}
    with contextlib.ExitStack() as stack:
        for kind, path in odd.items():
            stack.enter_context(no_file(kind, path))
        done = apcaudit(subcommand, *odd.values(), *(["-o", output] if subcommand == "report" else []))
    assert done.returncode == 2
    said = done.stdout + (output.read_text() if output.exists() else "")
    for kind, path in odd.items():
        assert f"{path.name} is {kind}, no file with an image in it" in said


@KINDS
def test_rules_of_a_scan(kind: str, folder: Path, tmp_path: Path, apcaudit: Callable[..., command.Done]) -> None:
    """`apcaudit scan` refuses rules that are no file before it reads an image."""
    pytest.importorskip("pyarrow")
    (folder / "image.raw").write_bytes(bytes(0x1000))
    with no_file(kind, folder / "odd.yar"):
        done = apcaudit("scan", folder / "image.raw", "-o", tmp_path / "results", "--yara-file", folder / "odd.yar")
    assert done.returncode == 1
    says = "no .yar or .yara file in this folder" if kind == "a folder" else f"it is {kind}"
    assert done.stderr == f"apcaudit: YARA rules: {folder / 'odd.yar'}: {says}\n"


def test_a_damaged_archive_among_symbol_files(folder: Path, apcaudit: Callable[..., command.Done]) -> None:
    """An archive of symbol files that is none ends vol's index of all of them: it is told first."""
    pytest.importorskip("pyarrow")
    (folder / "image.raw").write_bytes(bytes(0x1000))
    (folder / "windows.zip").write_bytes(b"PK\x03\x04, and no more")
    done = apcaudit("symbols", folder / "image.raw", "-s", folder)
    assert done.returncode == 1
    assert done.stderr == f"apcaudit: {folder / 'windows.zip'} is no zip archive, or a damaged one: remove it\n"
