"""Files that a user names for output: each kind of place, for each command that writes one."""

from __future__ import annotations

import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from apcaudit import output
from apcaudit.bulk.records import Records
from apcaudit.cli import main
from apcaudit.errors import ApcAuditError
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import SCENES
from tests import bulk_images, forked
from tests.bulk_images import need_extra, shared_cache
from tests.command import run as run_here
from tests.report_results import image, suspect, write

need_extra()

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, FIFOs and devices are those of POSIX")

BEFORE = b"what was there"


@dataclass
class Place:
    """Where a command is to write: what the user names, and where its bytes are to be found, None where nowhere."""

    named: Path
    written: Path | None = None
    received: list[bytes] = field(default_factory=list)
    reader: threading.Thread | None = None
    end: Callable[[], None] = lambda: None

    def content(self) -> bytes:
        """Return what arrived."""
        self.end()
        if self.reader is not None:
            self.reader.join(60)
            return b"".join(self.received)
        return b"" if self.written is None else self.written.read_bytes()


def new(folder: Path) -> Place:
    """A file that is not there yet."""
    return Place(folder / "out", folder / "out")


def existing(folder: Path) -> Place:
    """A file that is there."""
    (folder / "out").write_bytes(BEFORE)
    return Place(folder / "out", folder / "out")


def long_name(folder: Path) -> Place:
    """The longest name that a file may have."""
    return Place(folder / ("x" * 255), folder / ("x" * 255))


def link(folder: Path) -> Place:
    """A link in another folder to a file."""
    (folder / "real").write_bytes(BEFORE)
    (folder / "links").mkdir()
    (folder / "links" / "out").symlink_to("../real")
    return Place(folder / "links" / "out", folder / "real")


def link_to_link(folder: Path) -> Place:
    """A link to a link to a file."""
    (folder / "real").write_bytes(BEFORE)
    (folder / "one").symlink_to(folder / "real")
    (folder / "out").symlink_to("one")
    return Place(folder / "out", folder / "real")


def dangling(folder: Path) -> Place:
    """A link to what is not there."""
    (folder / "out").symlink_to("real")
    return Place(folder / "out", folder / "real")


def node(folder: Path, kind: int, major: int, minor: int) -> Place:
    """A device of the test's own: that of the system must not be what a broken command replaces."""
    try:
        os.mknod(folder / "out", kind | 0o666, os.makedev(major, minor))
        if kind == stat.S_IFCHR:
            os.close(os.open(folder / "out", os.O_WRONLY))
    except PermissionError:
        pytest.skip("this user may make no device")
    return Place(folder / "out")


def null(folder: Path) -> Place:
    """What /dev/null is on Linux (Documentation/admin-guide/devices.txt)."""
    return node(folder, stat.S_IFCHR, 1, 3)


def full(folder: Path) -> Place:
    """What /dev/full is on Linux: there is never room."""
    return node(folder, stat.S_IFCHR, 1, 7)


def disk(folder: Path) -> Place:
    """A disk: a loop device that nobody has."""
    return node(folder, stat.S_IFBLK, 7, 250)


def link_to_null(folder: Path) -> Place:
    """A link to the system's /dev/null."""
    (folder / "out").symlink_to("/dev/null")
    return Place(folder / "out")


def link_to_full(folder: Path) -> Place:
    """A link to the system's /dev/full."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (folder / "out").symlink_to("/dev/full")
    return Place(folder / "out")


def fifo(folder: Path) -> Place:
    """A FIFO that nobody reads."""
    os.mkfifo(folder / "out")
    return Place(folder / "out")


def read_fifo(folder: Path) -> Place:
    """A FIFO that somebody reads to its end."""
    place = fifo(folder)
    descriptor = os.open(place.named, os.O_RDONLY | os.O_NONBLOCK)
    # As long as somebody has it open for writing, a read waits.
    holder = os.open(place.named, os.O_WRONLY)
    os.set_blocking(descriptor, True)

    def read() -> None:
        with os.fdopen(descriptor, "rb") as file:
            place.received.append(file.read())

    place.reader = threading.Thread(target=read, daemon=True)
    place.reader.start()
    place.end = lambda: os.close(holder)
    return place


def folder_there(folder: Path) -> Place:
    """A folder."""
    (folder / "out").mkdir()
    return Place(folder / "out")


def link_to_folder(folder: Path) -> Place:
    """A link to a folder."""
    (folder / "real").mkdir()
    (folder / "out").symlink_to("real")
    return Place(folder / "out")


def no_folder(folder: Path) -> Place:
    """A file in a folder that is not there."""
    return Place(folder / "gone" / "out")


def link_to_no_folder(folder: Path) -> Place:
    """A link into a folder that is not there."""
    (folder / "out").symlink_to("gone/out")
    return Place(folder / "out")


def below_file(folder: Path) -> Place:
    """A file below a file."""
    (folder / "real").write_bytes(BEFORE)
    return Place(folder / "real" / "out")


def read_only(folder: Path) -> Place:
    """A folder in which nothing can be made."""
    (folder / "closed").mkdir()
    (folder / "closed").chmod(0o500)
    if os.access(folder / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    return Place(folder / "closed" / "out")


def no_files(folder: Path) -> Place:
    """A file system in which nobody can make a file."""
    if not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")
    return Place(Path("/proc/apcaudit-out"))


def write_protected(folder: Path) -> Place:
    """A file that its user has protected."""
    place = existing(folder)
    place.named.chmod(0o444)
    if os.access(place.named, os.W_OK):
        pytest.skip("this user may write everything")
    return Place(place.named)


def loop(folder: Path) -> Place:
    """A link to itself."""
    (folder / "out").symlink_to("out")
    return Place(folder / "out")


def too_long(folder: Path) -> Place:
    """A name that no file can have."""
    return Place(folder / ("x" * 300))


def listening(folder: Path) -> Place:
    """A socket."""
    with socket.socket(socket.AF_UNIX) as made:
        try:
            made.bind(str(folder / "out"))
        except OSError:
            pytest.skip("the path is too long for a socket")
    return Place(folder / "out")


#: Each kind of place, and the words with which it is refused; nothing where it is written.
PLACES: dict[str, tuple[Callable[[Path], Place], str | None]] = {
    "a new file": (new, None),
    "a file": (existing, None),
    "a long name": (long_name, None),
    "a link to a file": (link, None),
    "a link to a link": (link_to_link, None),
    "a dangling link": (dangling, None),
    "/dev/null": (null, None),
    "a link to /dev/null": (link_to_null, None),
    "/dev/full": (full, "No space left on device"),
    "a link to /dev/full": (link_to_full, "No space left on device"),
    "a FIFO that is read": (read_fifo, None),
    "a FIFO": (fifo, "nobody reads this FIFO, start its reader first"),
    "a folder": (folder_there, "it is a folder"),
    "a link to a folder": (link_to_folder, "it is a folder"),
    "a disk": (disk, "it is a disk"),
    "a socket": (listening, "it is a socket"),
    "no folder": (no_folder, "No such file or directory"),
    "a link to no folder": (link_to_no_folder, "No such file or directory"),
    "below a file": (below_file, "Not a directory"),
    "a read-only folder": (read_only, "Permission denied"),
    "no files there": (no_files, "no file can be made in /proc"),
    "write-protected": (write_protected, "it is write-protected"),
    "a loop": (loop, "Too many levels of symbolic links"),
    "a name too long": (too_long, "File name too long"),
}

#: Each command that writes a file, and how the file begins and ends.
COMMANDS: dict[str, tuple[tuple[str, ...], bytes, bytes]] = {
    "report": (("report", "RESULTS", "-o", "OUT"), b"<!DOCTYPE html>", b"</html>"),
    "export": (
        ("export", "RESULTS", "--format", "csv", "-o", "OUT"),
        b"image,image_name,source,thread,",
        b"why undelivered\r\n",
    ),
    "synth": (("synth", "healthy", "--format", "dump", "-o", "OUT"), b"PAGEDU64", b""),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results to export and to report."""
    return write(tmp_path_factory.mktemp("written") / "results", suspect(1))


def inventory(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Give what is in a folder: types with modes, devices, and where links lead to or what files hold."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = os.fsencode(os.readlink(path)) if path.is_symlink() else b""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        found[str(path)] = (status.st_mode, status.st_rdev, content)
    return found


def called(command: tuple[str, ...], results: Path, place: Path) -> int:
    """Run a command in this process."""
    places = {"RESULTS": str(results), "OUT": str(place)}
    return main([places.get(each, each) for each in command])


@pytest.mark.parametrize(("make", "refused"), PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("command", "begin", "end"), COMMANDS.values(), ids=COMMANDS)
def test_a_place(
    command: tuple[str, ...],
    begin: bytes,
    end: bytes,
    make: Callable[[Path], Place],
    refused: str | None,
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file arrives whole where the name leads; or a line says why not, and nothing there has changed."""
    place = make(tmp_path)
    before = inventory(tmp_path)
    code = called(command, results, place.named)
    err = capsys.readouterr().err
    content = place.content()
    after = inventory(tmp_path)
    if place.written is not None:
        mode = before.get(str(place.written), (after[str(place.written)][0], 0, b""))[0]
        assert after.pop(str(place.written)) == (mode, 0, content)
        before.pop(str(place.written), None)
    assert after == before
    if refused is not None:
        assert (code, err.count("\n")) == (1, 1), err
        assert err.startswith(f"apcaudit: {place.named}: ")
        assert refused in err
    else:
        assert code == 0, err
        if place.written is not None or place.reader is not None:
            assert content.startswith(begin)
            assert content.endswith(end)


@pytest.mark.parametrize("form", ["raw", "dump"])
@pytest.mark.parametrize("make", [new, read_fifo])
def test_an_image_is_the_same_everywhere(form: str, make: Callable[[Path], Place], tmp_path: Path) -> None:
    """What a file skips goes into a pipe as zeroes."""
    scene = SCENES["healthy"]()
    image = build(scene, load_kernel(scene.kernel))
    place = make(tmp_path)
    assert called(("synth", "healthy", "--format", form, "-o", "OUT"), tmp_path, place.named) == 0
    assert place.content() == (image.raw() if form == "raw" else image.dump())


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose symbol file is missing."""
    folder = tmp_path_factory.mktemp("broken")
    bulk_images.write_broken(folder)
    return folder / "stranger.dmp"


@pytest.mark.parametrize("name", ["a link to a file", "/dev/full", "a folder"])
def test_a_script_for_symbols(name: str, stranger: Path, tmp_path: Path) -> None:
    """`apcaudit symbols --script` keeps the same rule; a script that cannot be written is printed."""
    make, refused = PLACES[name]
    place = make(tmp_path)
    before = inventory(tmp_path)
    with shared_cache():
        done = run_here("symbols", stranger, "--script", place.named)
    if refused is None:
        assert (done.returncode, "pdbconv" in done.stdout) == (2, False), done.stderr
        assert b"pdbconv" in place.content()
    else:
        assert (done.returncode, "pdbconv" in done.stdout) == (1, True)
        assert done.stderr.count("\n") == 1
        assert refused in done.stderr
        assert inventory(tmp_path) == before


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (existing, "is no folder"),
        (null, "is no folder"),
        (fifo, "is no folder"),
        (link_to_null, "is no folder"),
        (loop, "no such folder"),
    ],
)
def test_results_are_a_folder(
    make: Callable[[Path], Place], wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`apcaudit scan -o` takes no file, and leaves what is there."""
    place = make(tmp_path)
    before = inventory(tmp_path)
    assert main(["scan", str(tmp_path), "-o", str(place.named)]) == 1
    assert capsys.readouterr().err == f"apcaudit: {place.named}: {wrong} (-o)\n"
    assert inventory(tmp_path) == before


def test_evidence_is_no_output(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image is not replaced by its own report, nor by the script for its symbols, by whatever name."""
    before = inventory(stranger.parent)
    for command in (
        ("report", str(stranger), "-o", str(stranger.parent / "." / "stranger.dmp"), "--offline"),
        ("symbols", str(stranger), "--script", str(stranger)),
    ):
        assert main(list(command)) == 1
        assert "it is the evidence, which is only read" in capsys.readouterr().err
        assert inventory(stranger.parent) == before


@pytest.mark.parametrize("command", ["export", "report"])
def test_scanned_images_are_no_output(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is written of results replaces none of the images that they are of, nor an archive of them."""
    found = tmp_path / "images.zip"
    found.write_bytes(BEFORE)
    results = write(tmp_path / "results", Records(image(1, source=f"{found}::memory.raw")))
    assert main([command, str(results), "-o", str(found)]) == 1
    assert found.read_bytes() == BEFORE
    assert "it is the evidence, which is only read" in capsys.readouterr().err


def interrupted(path: Path) -> None:
    """Write half of a file."""
    with output.writing(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == BEFORE
        raise KeyboardInterrupt


def test_what_was_there_stays_until_the_end(tmp_path: Path) -> None:
    """Whatever ends the writing, the name keeps what it had, and nothing is left beside it."""
    path = tmp_path / "out"
    path.write_bytes(BEFORE)
    path.chmod(0o640)
    before = inventory(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert inventory(tmp_path) == before
    output.write(path, "whole")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"whole", 0o640)


def left_alone(path: Path, reader: int) -> None:
    """Write when the reader has gone."""
    with output.writing(path) as file:
        os.close(reader)
        file.write(b"x")


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    """Who reads a FIFO and goes is an error that names it."""
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(ApcAuditError, match="out: whoever read it is gone"):
        left_alone(tmp_path / "out", reader)


def run(command: str, results: Path, out: Path, *, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run a line of shell, in which `apcaudit` is the command."""
    line = command.replace("apcaudit", '"$PYTHON" -m apcaudit')
    environment = {**bulk_images.environment(out.parent / "cache"), "PYTHON": sys.executable}
    environment |= {"RESULTS": str(results), "OUT": str(out)}
    return subprocess.run(
        ["bash", "-c", line],
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    "line",
    [
        'apcaudit export "$RESULTS" -o /dev/stdout | cat > "$OUT"; exit ${PIPESTATUS[0]}',
        'apcaudit export "$RESULTS" -o /dev/fd/1 > "$OUT"',
        'apcaudit export "$RESULTS" -o /dev/fd/3 3> >(cat > "$OUT"); code=$?; wait $!; exit $code',
        'apcaudit export "$RESULTS" -o /dev/stderr 2> "$OUT"',
        'apcaudit export "$RESULTS" -o "$OUT" > "$OUT"',
    ],
)
def test_our_own_streams(line: str, results: Path, tmp_path: Path) -> None:
    """A name of one of the command's own streams is that stream."""
    done = run(line, results, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text().count("why undelivered") == 1


def test_a_log_is_not_replaced(results: Path, tmp_path: Path) -> None:
    """What the shell opened to append to keeps what it had."""
    (tmp_path / "out").write_bytes(BEFORE + b"\n")
    done = run('apcaudit export "$RESULTS" -o /dev/stdout >> "$OUT"', results, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert [line[:9] for line in (tmp_path / "out").read_bytes().splitlines()] == [BEFORE[:9], b'{"image":']


@pytest.mark.parametrize("command", COMMANDS)
def test_no_room(command: str, results: Path, tmp_path: Path) -> None:
    """Where the file does not fit, one line says it, and what was there stays."""
    (tmp_path / "out").write_bytes(BEFORE)
    arguments, *_ = COMMANDS[command]
    line = "apcaudit " + " ".join({"RESULTS": '"$RESULTS"', "OUT": '"$OUT"'}.get(each, each) for each in arguments)
    # No file may grow, and nobody is killed for it.
    done = run(f"ulimit -f 0; trap '' XFSZ; {line}", results, tmp_path / "out")
    assert (done.returncode, done.stderr) == (1, f"apcaudit: {tmp_path / 'out'}: File too large\n")
    assert (tmp_path / "out").read_bytes() == BEFORE
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["out"]


#: Commands that print; the first runs in a process of its own, the others in forks of this one.
PRINTING = ('export "$RESULTS"', 'stack "$RESULTS"', 'stack "$RESULTS" --jsonl', "where", "synth --list")


def printing(command: str, results: Path, folder: Path, stdout: int) -> subprocess.CompletedProcess[str]:
    """Run one of them with a descriptor for its stdout."""
    if command == PRINTING[0]:
        return run(f"apcaudit {command}", results, folder / "out", stdout=stdout)
    arguments = [str(results) if each == "$RESULTS" else each for each in shlex.split(command)]
    return forked.apcaudit(*arguments, cache=folder / "cache", stdout=stdout)


@pytest.mark.parametrize("command", PRINTING)
def test_a_reader_of_stdout_that_leaves(command: str, results: Path, tmp_path: Path) -> None:
    """Who has had enough of the output ends the command, which says nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = printing(command, results, tmp_path, stdout.fileno())
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", PRINTING)
def test_no_room_on_stdout(command: str, results: Path, tmp_path: Path) -> None:
    """A full disk behind stdout is one line, once."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as stdout:
        done = printing(command, results, tmp_path, stdout.fileno())
    assert (done.returncode, done.stderr) == (1, "apcaudit: [Errno 28] No space left on device\n")


def test_a_closed_stdout(results: Path, tmp_path: Path) -> None:
    """Where there is no stdout an export says so."""
    done = run('apcaudit export "$RESULTS" >&-', results, tmp_path / "out")
    assert (done.returncode, done.stderr) == (1, "apcaudit: standard output is closed: name a file with -o\n")
