"""Places that get full: a small disk of the test's own, where the user may mount one, and a limit of file sizes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked


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
    def enter(self) -> None:
        """Put this process, which is a command's, where the folder is and has no more room than it should."""

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return forked.apcaudit(*arguments, cache=self.cache, first=self.enter, seconds=240)

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
        self._kilobytes, self._limited = kilobytes, False

    def fill(self) -> None:
        """Limit the commands that are run from now on."""
        self._limited = True

    def clear(self) -> None:
        """Limit them no more."""
        self._limited = False

    def enter(self) -> None:
        """Set the limit, for this process and those that it starts."""
        if self._limited:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._kilobytes << 10, self._kilobytes << 10))


class SmallDisk(Place):
    """A tmpfs in a mount namespace, which a process holds and commands are started in.

    Args:
        path: where it is mounted.
        cache: of the commands.
        holder: the process.
        free: bytes that are left when it is full.
    """

    reason = "No space left on device"

    def __init__(self, path: Path, cache: Path, holder: int, free: int) -> None:
        super().__init__(path, cache)
        self._holder, self._free = holder, free

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
        enter = ["nsenter", "--user", "--mount", "--preserve-credentials", "-t", str(self._holder)]
        subprocess.run([*enter, "mount", "-o", f"remount,size={size}", str(self.path)], check=True)

    def enter(self) -> None:
        """Enter the namespaces: that of users first, in which this process may enter the other."""
        here = os.getcwd()
        for name in ("user", "mnt"):
            with open(f"/proc/{self._holder}/ns/{name}", "rb") as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0):
                    raise OSError(ctypes.get_errno(), f"the namespace {name} cannot be entered")
        os.chdir(here)


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
        yield SmallDisk(path, cache, holder.pid, free)
    finally:
        # Whoever waits for a line gets the end of its input; the namespace ends with it.
        holder.communicate()
