"""The machine under construction: memory, pool, the addresses of what is placed, and names resolved to addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from apcaudit.errors import ApcAuditError
from apcaudit.synthetic.kernels import Kernel
from apcaudit.synthetic.memory import Memory
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.pool import Pool
from apcaudit.synthetic.scene import Address, Scene

if TYPE_CHECKING:
    from apcaudit.synthetic.userspace.images import Images
    from apcaudit.synthetic.userspace.page_tables import UserPages
    from apcaudit.synthetic.userspace.vads import Vad

#: The time of every scene, 2026-01-02 03:04:05 UTC, in 100 ns since 1601; the machine started an hour before.
SYSTEM_TIME = (1767323045 + 11644473600) * 10_000_000
BOOT_TIME = SYSTEM_TIME - 3600 * 10_000_000

_NAME = re.compile(r"(?P<module>[^!+\-]+?)(?:!(?P<symbol>[^+\-]+))?(?P<offset>[+\-](?:0x[0-9a-fA-F]+|\d+))?")

_ENCODED = "wow64:"


class SceneError(ApcAuditError):
    """A scene that cannot be built: a name that resolves to nothing, memory used twice."""


@dataclass(slots=True)
class Module:
    """A loaded image: where it is and what it exports, as addresses relative to its base."""

    name: str
    base: int
    size: int
    exports: dict[str, int]
    devices: dict[str, int] = field(default_factory=dict)
    driver_object: int = 0
    entry: int = 0


@dataclass(frozen=True, slots=True)
class Ranges:
    """Where a kernel's kinds of memory lie. Our choice, within what Windows uses on that processor."""

    pool: int
    user_pool: int
    stacks: int
    stack_size: int
    stacks_end: int
    drivers: int
    processor: int
    other_processors: int
    unloaded: int
    user: int
    shared_data: int
    system_range: int
    hyperspace: int


X86_RANGES = Ranges(
    pool=0x88000000,
    user_pool=0x8C000000,
    stacks=0x90000000,
    stack_size=0x3000,
    stacks_end=0xB8000000,
    drivers=0xF7000000,
    processor=0xFFDFF000,
    other_processors=0xF6000000,
    unloaded=0xF6800000,
    user=0x00400000,
    shared_data=0xFFDF0000,
    system_range=0x80000000,
    hyperspace=0xC0800000,
)


def _x64_ranges(kernel: Kernel) -> Ranges:
    old = kernel.version < (6, 2, 0)
    pool = 0xFFFFFA8000C00000 if old else 0xFFFFE00000000000 if kernel.version < (10, 0, 0) else 0xFFFFAB8400000000
    return Ranges(
        pool=pool,
        user_pool=pool + 0x40000000,
        stacks=0xFFFFF88003000000 if old else 0xFFFFD00020000000 if kernel.version < (10, 0, 0) else 0xFFFFF58C10000000,
        stack_size=0x6000,
        stacks_end=0xFFFFFFFF00000000,
        drivers=0xFFFFF88001000000 if old else (kernel.base & ~0xFFFFFFF) + 0x20000000,
        processor=kernel.base - 0x1000000,
        other_processors=kernel.base - 0x2000000,
        unloaded=0,
        user=0x7FF600000000,
        shared_data=0xFFFFF78000000000,
        system_range=0xFFFF800000000000 if kernel.version >= (6, 3, 0) else 0xFFFF080000000000,
        hyperspace=0xFFFFF70000000000,
    )


class Machine:
    """State shared by the modules that lay a scene out.

    `address_of` collects what was placed: `process:NAME`, `thread:TID`, `driver:NAME`, `apc:LABEL`, `irp:LABEL`, ...
    """

    def __init__(self, scene: Scene, kernel: Kernel) -> None:
        self.scene = scene
        self.kernel = kernel
        self.memory = Memory(kernel)
        self.ranges = _x64_ranges(kernel) if kernel.is_64bit else X86_RANGES
        self.pool = Pool(self.memory, self.ranges.pool)
        self.modules: dict[str, Module] = {}
        self.address_of: dict[str | int, int] = {}
        self.processes: dict[str, int] = {}
        self.stack_of: dict[int, int] = {}
        self.cid_entries: dict[int, int] = {}
        #: What the kernel keeps of user space has a range of its own, and so moves nothing else.
        self.user_pool = Pool(self.memory, self.ranges.user_pool)
        #: Page tables of the processes that have a user space of their own, by PID, and the images that they map.
        self.user_pages: dict[int, UserPages] = {}
        self.user_images: Images | None = None
        #: What was planted of their VADs, by PID and in their order.
        self.user_vads: dict[int, list[Vad]] = {}
        self._next_stack = self.ranges.stacks
        self._in_kernel: dict[str, int] = {}

    def variable(self, symbol: str, size: int = PAGE) -> int:
        """Give the address of a kernel variable, mapped and ready to be written."""
        address = self.kernel.address(symbol)
        self.memory.space.map(address, size)
        return address

    def set_pointer(self, symbol: str, value: int) -> None:
        """Write a kernel variable of pointer size, if the kernel has it."""
        if self.kernel.has(symbol):
            self.memory.write_pointer(self.variable(symbol, self.memory.pointer_size), value)

    def next_stack(self) -> int:
        """Take the next kernel stack's range; give its base, which is its upper end."""
        base = self._next_stack + self.ranges.stack_size
        # A guard page on either side keeps stacks apart.
        self._next_stack = base + PAGE
        if base > self.ranges.stacks_end:
            raise SceneError("too many threads: no room left for kernel stacks")
        return base

    def resolve(self, address: Address, stack_base: int = 0) -> int:
        """Turn a scene's address into a number; of alternatives (`nt!A|nt!B`) the first that the kernel has."""
        if isinstance(address, int):
            return address
        known = self._in_kernel.get(address)
        if known is not None:
            return known
        written = address
        if "|" in address:
            names = address.split("|")
            address = next(filter(self._has, names), names[-1])
        if address.startswith(_ENCODED):
            # A routine of 32-bit code, as PsWrapApcWow64Thread encodes it (public header, wow64t.h).
            return -(self.resolve(address.removeprefix(_ENCODED), stack_base) << 2)
        match = _NAME.fullmatch(address)
        if match is None:
            raise SceneError(f"{address}: not an address")
        offset = int(match["offset"] or "0", 0)
        if match["module"] == "stack":
            return stack_base + offset
        if match["symbol"] is None and match["module"] in self.address_of:
            return self.address_of[match["module"]] + offset
        found = self._module_address(address, match["module"], match["symbol"]) + offset
        if match["module"] == "nt" and match["symbol"] is not None:
            # The kernel's names, which thousands of threads share, stay where they are.
            self._in_kernel[written] = found
        return found

    def _has(self, name: str) -> bool:
        """Tell whether the kernel, or the module of user space that a name gives, has the function."""
        module, _, function = name.removeprefix(_ENCODED).partition("+")[0].rpartition("!")
        if module in ("", "nt"):
            return self.kernel.has(function)
        return module.lower() in self.modules and function in self.modules[module.lower()].exports

    def _module_address(self, address: str, name: str, symbol: str | None) -> int:
        if name == "nt":
            if symbol is not None and not self.kernel.has(symbol):
                raise SceneError(f"{address}: kernel {self.kernel.name} has no symbol {symbol}")
            return self.kernel.base if symbol is None else self.kernel.address(symbol)
        module = self.modules.get(name.lower())
        if module is None:
            raise SceneError(f"{address}: no driver {name} in scene {self.scene.name}")
        if symbol is None:
            return module.base
        if symbol not in module.exports:
            raise SceneError(f"{address}: {module.name} exports no {symbol}")
        return module.base + module.exports[symbol]

    def has_symbol(self, name: str) -> bool:
        """Tell whether the kernel has a function."""
        return self.kernel.has(name)
