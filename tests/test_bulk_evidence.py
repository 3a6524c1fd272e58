"""Which files are taken for images, and how they are unpacked."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import zipfile
from pathlib import Path

import pytest

from apcaudit.bulk.evidence import Evidence, find
from apcaudit.bulk.unpack import image_of
from apcaudit.errors import ApcAuditError

DATA = b"memory" * 1000


def names(found: list[Evidence], folder: Path) -> list[str]:
    return [each.source.removeprefix(f"{folder}/") for each in found]


def test_folders_are_searched(tmp_path: Path) -> None:
    """A folder gives the files below it in order: no hidden ones, no notes, no VMware state beside its memory."""
    for name in ("b.raw", "a.dmp", "sub/c.vmem", "sub/c.vmss", "d.vmss", ".hidden/x.raw", ".x.raw", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(DATA)
    assert names(find([str(tmp_path)]), tmp_path) == ["a.dmp", "b.raw", "d.vmss", "sub/c.vmem"]


def test_results_are_no_evidence(tmp_path: Path) -> None:
    """The folder of the results is not searched, though it lies in the folder of the images."""
    for name in ("a.raw", "results/b.raw"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(DATA)
    assert names(find([str(tmp_path)], leave_out=tmp_path / "results"), tmp_path) == ["a.raw"]


def test_files_and_patterns(tmp_path: Path) -> None:
    """A file that is named is taken whatever its name, a pattern gives what it matches, and nothing comes twice."""
    for name in ("a.txt", "b1.raw", "b2.raw"):
        (tmp_path / name).write_bytes(DATA)
    paths = [str(tmp_path / "a.txt"), str(tmp_path / "b*.raw"), str(tmp_path / "b1.raw")]
    assert names(find(paths), tmp_path) == ["a.txt", "b1.raw", "b2.raw"]


@pytest.mark.parametrize("path", ["nonesuch.raw", "none*.raw"])
def test_nothing_there(path: str, tmp_path: Path) -> None:
    """A path that does not exist, or a pattern without a match, is an error in use."""
    with pytest.raises(ApcAuditError, match="no such file"):
        find([str(tmp_path / path)])


def test_members_of_archives(tmp_path: Path) -> None:
    """A zip archive gives its members; what only ends like an archive is an image."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/one.raw", DATA)
        archive.writestr("two.dmp", DATA)
        archive.writestr("readme.txt", b"")
    (tmp_path / "b.raw").write_bytes(DATA + (tmp_path / "a.zip").read_bytes())
    assert names(find([str(tmp_path)]), tmp_path) == ["a.zip::x/one.raw", "a.zip::two.dmp", "b.raw"]


@pytest.mark.parametrize("name", ["a.raw", "a.raw.gz", "a.raw.xz", "a.zip", "a.bin"])
def test_an_image_is_known_by_its_own_bytes(name: str, tmp_path: Path) -> None:
    """However it is packed, an image has the SHA-256 and the size of its own bytes; content decides, not the name."""
    path, member = tmp_path / name, None
    if name.endswith(("gz", "bin")):
        path.write_bytes(gzip.compress(DATA))
    elif name.endswith("xz"):
        path.write_bytes(lzma.compress(DATA))
    elif name.endswith("zip"):
        member = "../../x.raw"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, DATA)
    else:
        path.write_bytes(DATA)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    stages: list[str] = []
    file, image, size = image_of(path, member, scratch, stages.append)
    assert (file.read_bytes(), image, size) == (DATA, hashlib.sha256(DATA).hexdigest(), len(DATA))
    assert stages == ["hash" if name == "a.raw" else "unpack"]
    assert file == path or file.parent == scratch


def test_no_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that would fill the disk is given up, not the disk."""
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(DATA))
    # More than any disk: what has to be left free, in bytes.
    monkeypatch.setattr("apcaudit.bulk.unpack._SPARE", 1 << 60)
    with pytest.raises(ApcAuditError, match="no room"):
        image_of(path, None, tmp_path, lambda _: None)


def test_links(tmp_path: Path) -> None:
    """A link to a file is that file under the link's name, and one that leads nowhere is not passed by in silence.

    A link to a folder is followed where it is named, and else told of.
    """
    evidence, elsewhere = tmp_path / "evidence", tmp_path / "elsewhere"
    for folder in (evidence, elsewhere):
        folder.mkdir()
    (elsewhere / "a.raw").write_bytes(DATA)
    (evidence / "b.raw").symlink_to(elsewhere / "a.raw")
    (evidence / "c.raw").symlink_to(tmp_path / "not mounted")
    (evidence / "folder").symlink_to(elsewhere)
    passed: list[Path] = []
    assert names(find([str(evidence)], passed_by=passed.append), evidence) == ["b.raw", "c.raw"]
    assert passed == [evidence / "folder"]
    assert names(find([str(evidence / "folder")], passed_by=passed.append), evidence) == ["folder/a.raw"]
    assert len(passed) == 1
