"""Places that get full: a small disk of the test's own, where the user may mount one, and a limit of file sizes."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import bulk_images


class Place(ABC):
    """A folder in which a command runs out of room.

    Args:
        path: the folder, as commands know it.
        cache: of the commands.
    """

    reason: str

    def __init__(self, path: Path, cache: Path) -> None:
        self.path, self.cache = path, cache

    @property
    def seen(self) -> Path:
        """The folder, as this process reaches it."""
        return self.path

    @abstractmethod
    def fill(self) -> None:
        """Leave no room, or too little for what the tests write."""

    @abstractmethod
    def clear(self) -> None:
        """Make room again."""

    @abstractmethod
    def command(self, line: str) -> list[str]:
        """Return how a shell's line is run where the folder is."""

    def run(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        line = shlex.join([sys.executable, "-m", "apcaudit", *map(str, arguments)])
        environment = bulk_images.environment(self.cache)
        options = {"capture_output": True, "text": True, "check": False, "timeout": 240, "env": environment} | options
        return subprocess.run(self.command(line), **options)

    def names(self, below: str = "") -> set[str]:
        """Name what is in the folder, but for what fills it."""
        return {each.name for each in (self.seen / below).iterdir() if not each.name.startswith("ballast")}


class LimitedFiles(Place):
    """No file may grow beyond a limit, and nobody is killed for it: what is full where nobody may mount.

    Args:
        path: the folder.
        cache: of the commands.
        kilobytes: the limit.
    """

    reason = "File too large"

    def __init__(self, path: Path, cache: Path, kilobytes: int = 4) -> None:
        super().__init__(path, cache)
        self._kilobytes, self._limit = kilobytes, ""

    def fill(self) -> None:
        """Limit the commands that are run from now on."""
        self._limit = f"trap '' XFSZ; ulimit -f {self._kilobytes}; "

    def clear(self) -> None:
        """Limit them no more."""
        self._limit = ""

    def command(self, line: str) -> list[str]:
        """Put the limit before a shell's line."""
        return ["bash", "-c", self._limit + line]


class SmallDisk(Place):
    """A tmpfs in a mount namespace, which a process holds and commands are started in.

    Args:
        path: where it is mounted.
        cache: of the commands.
        holder: the process.
        enter: what goes before a command that runs there.
        free: bytes that are left when it is full.
    """

    reason = "No space left on device"

    def __init__(self, path: Path, cache: Path, holder: int, enter: list[str], free: int) -> None:
        super().__init__(path, cache)
        self._holder, self._enter, self._free = holder, enter, free

    @property
    def seen(self) -> Path:
        """The folder, by way of the process that holds it."""
        return Path(f"/proc/{self._holder}/root{self.path}")

    def fill(self) -> None:
        """Write a file that takes all but what is to be left."""
        left = shutil.disk_usage(self.seen).free - self._free
        (self.seen / "ballast").write_bytes(bytes(left))
        if not self._free:
            # A folder takes no block of a tmpfs: nor may there be one.
            with contextlib.suppress(OSError):
                for number in range(1000):
                    (self.seen / f"ballast{number}").touch()

    def clear(self) -> None:
        """Remove what fills it."""
        for each in self.seen.glob("ballast*"):
            each.unlink()

    def grow(self, size: str) -> None:
        """Make it larger."""
        line = f"mount -o remount,size={size} {shlex.quote(str(self.path))}"
        subprocess.run(self.command(line), check=True)

    def command(self, line: str) -> list[str]:
        """Enter the namespace first."""
        return [*self._enter, "bash", "-c", line]


@contextlib.contextmanager
def small_disk(path: Path, cache: Path, *, free: int = 0, size: str = "512k") -> Iterator[SmallDisk]:
    """Mount a small disk on a folder; skips the test where this user may not.

    Args:
        path: the folder.
        cache: of the commands that will run there.
        free: bytes that are left when it is full.
        size: of all of it, as mount takes it.
    """
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("no small disk: this system has no unshare and nsenter (util-linux)")
    mount = (
        f"mount -t tmpfs -o size={size},nr_inodes=200 apcaudit {shlex.quote(str(path))} && echo mounted && read line"
    )
    # In a user namespace of its own any user may mount, unless the system forbids these.
    holder = subprocess.Popen(
        ["unshare", "-Urm", "sh", "-c", mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"mounted\n":
            said = holder.communicate()[1].decode(errors="replace").strip()
            pytest.skip(f"no small disk: this user may not mount one ({said})")
        enter = ["nsenter", "--user", "--mount", "--preserve-credentials", "-t", str(holder.pid)]
        yield SmallDisk(path, cache, holder.pid, enter, free)
    finally:
        # Whoever waits for a line gets the end of its input; the namespace ends with it.
        holder.communicate()
