"""A built scene: the addresses of what it holds, its memory, and the files written from it."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from apcaudit.synthetic.dump import DumpFacts, header
from apcaudit.synthetic.kernels import Kernel
from apcaudit.synthetic.machine import BOOT_TIME, SYSTEM_TIME, Machine
from apcaudit.synthetic.memory import Memory
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.pool import Pool
from apcaudit.synthetic.scene import Scene
from apcaudit.synthetic.userspace.page_tables import UserPages
from apcaudit.synthetic.userspace.vads import Vad

_BLOCK = 1 << 20


class Image:
    """The memory of a scene.

    `address_of` holds virtual addresses: of threads by TID, and by `thread:TID`, `process:NAME`, `process:PID`,
    `driver:NAME` (image base), `driver-object:NAME`, `device:NAME`, `module:NAME` (its list entry), `apc:LABEL`,
    `irp:LABEL`, `file:NAME`, `kpcr:NUMBER`, `kprcb:NUMBER`. Where an APC has no label it is
    `apc:TID:QUEUE:POSITION`; a pending IRP is `irp:TID:POSITION`. Of user space: `image:LABEL` (its base),
    `memory:LABEL`, `peb:PID`, `teb:TID`, and of its VADs `vad:PID:START` with the address in hexadecimal.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.address_of: dict[str | int, int] = machine.address_of

    @property
    def scene(self) -> Scene:
        """The scene that was built."""
        return self._machine.scene

    @property
    def kernel(self) -> Kernel:
        """The kernel that it was built for."""
        return self._machine.kernel

    @property
    def memory(self) -> Memory:
        """Virtual memory by structure members, for tests that tamper."""
        return self._machine.memory

    @property
    def pool(self) -> Pool:
        """The kernel pool, for what is allocated once the scene is built."""
        return self._machine.pool

    @property
    def user_pool(self) -> Pool:
        """The pool of what the kernel keeps of user space."""
        return self._machine.user_pool

    def user_pages(self, pid: int) -> UserPages:
        """Give the page tables of a process that has a user space of its own."""
        return self._machine.user_pages[pid]

    def read(self, address: int, size: int) -> bytes:
        """Read virtual memory."""
        return self.memory.space.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Write virtual memory."""
        self.memory.space.write(address, data)

    def user(self, pid: int) -> Memory:
        """Give the memory of a process that has a user space of its own."""
        return Memory(self.kernel, self._machine.user_pages[pid])

    def vads(self, pid: int) -> list[Vad]:
        """Give the VADs of a process that has a user space of its own, as they were planted."""
        return self._machine.user_vads[pid]

    def resolve(self, address: int | str) -> int:
        """Turn a scene's symbolic address into a number."""
        return self._machine.resolve(address)

    def raw(self) -> bytes:
        """Give physical memory as one piece, from address 0."""
        stream = BytesIO()
        self.stream_raw(stream)
        return stream.getvalue()

    def dump(self) -> bytes:
        """Give a full crash dump."""
        stream = BytesIO()
        self.stream_dump(stream)
        return stream.getvalue()

    def write_raw(self, path: Path) -> None:
        """Write physical memory to a file."""
        with path.open("wb") as stream:
            self.stream_raw(stream)

    def write_dump(self, path: Path) -> None:
        """Write a full crash dump to a file."""
        with path.open("wb") as stream:
            self.stream_dump(stream)

    def stream_raw(self, stream: BinaryIO) -> None:
        """Write physical memory to a stream, which begins at address 0."""
        at = 0
        for address, pieces in self._runs():
            _skip(stream, address - at)
            for piece in pieces:
                stream.write(piece)
            at = address + sum(map(len, pieces))

    def stream_dump(self, stream: BinaryIO) -> None:
        """Write a full crash dump to a stream."""
        runs = self._runs()
        stream.write(header(self._facts(runs)))
        for _, pieces in runs:
            for piece in pieces:
                stream.write(piece)

    def _runs(self) -> list[tuple[int, list[bytes | bytearray]]]:
        """Give physical memory as runs: first address, and the pieces that follow one another there."""
        space = self.memory.space
        tables = space.tables()
        for pages in self._machine.user_pages.values():
            pages.share_kernel_half(tables)
        pieces: list[tuple[int, bytes | bytearray]] = [(space.mode.first, space.physical)]
        pieces += tables.items()
        pieces += space.fixed.items()
        runs: list[tuple[int, list[bytes | bytearray]]] = []
        end = -1
        for address, data in sorted(pieces, key=lambda piece: piece[0]):
            if address == end:
                runs[-1][1].append(data)
            else:
                runs.append((address, [data]))
            end = address + len(data)
        return runs

    def _facts(self, runs: list[tuple[int, list[bytes | bytearray]]]) -> DumpFacts:
        kernel, memory, scene = self.kernel, self.memory, self.scene
        bugcheck, mask = scene.bugcheck, memory.layout.pointer_mask
        parameters = tuple(self.resolve(each) & mask for each in bugcheck.parameters) if bugcheck else (0, 0, 0, 0)
        crashed = self.address_of.get(f"thread:{scene.crashing_thread}")
        stack = memory.read(crashed, "_ETHREAD", "Tcb.KernelStack") & mask if crashed else 0
        return DumpFacts(
            is_64bit=kernel.is_64bit,
            pae=kernel.is_pae,
            build=kernel.version[2],
            directory_table_base=memory.space.mode.root,
            module_list=kernel.address("PsLoadedModuleList"),
            process_head=kernel.address("PsActiveProcessHead"),
            data_block=kernel.address("KdDebuggerDataBlock"),
            processors=scene.processors,
            bugcheck_code=bugcheck.code if bugcheck else 0,
            bugcheck_parameters=parameters,
            runs=tuple((address // PAGE, sum(map(len, pieces)) // PAGE) for address, pieces in runs),
            instruction=kernel.address("KeBugCheck") if kernel.has("KeBugCheck") else kernel.base,
            stack=stack,
            system_time=SYSTEM_TIME,
            up_time=SYSTEM_TIME - BOOT_TIME,
            registers={
                name: self.resolve(each) & mask for name, each in (bugcheck.registers if bugcheck else {}).items()
            },
        )


def _skip(stream: BinaryIO, size: int) -> None:
    """Leave zeroes: what a file skips reads as such, and takes no room where the file system can help it."""
    if stream.seekable():
        stream.seek(size, os.SEEK_CUR)
        return
    for at in range(0, size, _BLOCK):
        stream.write(bytes(min(_BLOCK, size - at)))
