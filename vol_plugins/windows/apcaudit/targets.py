"""What user APCs would run: the values that describe a target, and the facts about user mode that judge it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Lies(str, Enum):
    """What holds a user-space address."""

    IMAGE = "an image"
    PRIVATE = "private memory"
    MAPPED = "a section that is no image"
    NOWHERE = "no VAD"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Place:
    """A user-space address and what holds it; `text` is `module!export+off`, `private rwx`, `no VAD` or `unknown`.

    `start` and `end` are the first and the last address of its VAD. `module` and `path` are those of the mapped file,
    `names` the exports at exactly this address, `bits` those of the image. `protection` has the letters r, w, x, and c
    for copy-on-write, empty for no access: of the page where its entry could be read, else of the VAD; None is unknown.
    `executable` is whether code can run there, None also where the VAD does not allow it and the processor would not
    stop it. `page` says where the page is. `own_page` is whether an image's page is the process's own copy and no
    relocation explains that. `why` says why something is unknown.
    """

    address: int
    lies: Lies
    text: str
    start: int | None = None
    end: int | None = None
    module: str | None = None
    path: str | None = None
    names: tuple[str, ...] = ()
    bits: int | None = None
    protection: str | None = None
    executable: bool | None = None
    page: str | None = None
    own_page: bool | None = None
    why: str | None = None

    @property
    def writable(self) -> bool | None:
        """Whether it can be written to without a copy, None if unknown."""
        return None if self.protection is None else "w" in self.protection

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ContextRecord:
    """The CONTEXT that a function would continue with: its address, its instruction pointer and its first argument."""

    address: int
    instruction: Place
    argument: int


@dataclass(frozen=True, slots=True)
class Target:
    """What a user APC would run: NormalRoutine, or what the dispatcher there hands on.

    `via` names the dispatcher; a `?` follows one that was recognised by its place only. `encoded` is whether
    NormalRoutine is a 32-bit address in the encoding of WoW64, `narrow` whether the target runs as 32-bit code.
    `process` is the virtual address of the _EPROCESS whose user space it is. `argument` is what the target is called
    with, `string` the text there if the target loads a DLL, `registers` the CONTEXT there if it continues with one.
    `others` is how many other regions of private executable memory the process has, `alike` how many of those have the
    size and protection of this one; None if not known or not asked. `elsewhere` is whether other processes have the
    same bytes there: in memory of their own that cannot be written to or, of an image's page, all that map the file in
    copies of their own; None if not known or not asked.
    """

    place: Place
    process: int
    via: str | None = None
    encoded: bool = False
    narrow: bool = False
    argument: int | None = None
    string: str | None = None
    registers: ContextRecord | None = None
    others: int | None = None
    alike: int | None = None
    elsewhere: bool | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """The target, and what it would continue with."""
        return (self.place,) if self.registers is None else (self.place, self.registers.instruction)

    @property
    def text(self) -> str:
        """The place, with the address where that does not name it."""
        if self.place.lies is Lies.IMAGE:
            return self.place.text
        return f"{self.place.address:#x} ({self.place.text})"


def decode_wow64(routine: int) -> int | None:
    """Return the 32-bit address that a NormalRoutine encodes, None where it encodes none.

    RtlQueueApcWow64Thread of the 64-bit ntdll multiplies the routine by -4. The kernel's own test, for which
    NtQueueApcThread refuses such a routine in a native process, shifts it back by two with its sign, negates it and
    compares it with 0xffffffff (decompilations of both, 10 to 11).
    """
    signed = routine - (1 << 64) if routine >> 63 else routine
    decoded = -(signed >> 2)
    return decoded if 0 < decoded < 1 << 32 else None


class HandsOn(Enum):
    """What a dispatcher does with its NormalContext.

    FUNCTION: it calls it, with SystemArgument1 as the argument. COMPLETION: it calls it, with arguments of its own.
    BLOCK: it is an activation context's block with the function in it. PACKED: its upper half is a 32-bit function, its
    lower half the argument.
    """

    FUNCTION = "function"
    COMPLETION = "completion"
    BLOCK = "block"
    PACKED = "packed"


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """A function of Windows that user APCs begin in and that calls the program's own function.

    `ordinal` is that of an export without a name.
    """

    module: str
    name: re.Pattern[str]
    hands_on: HandsOn
    ordinal: int | None = None


def _dispatcher(module: str, name: str, hands_on: HandsOn, ordinal: int | None = None) -> Dispatcher:
    return Dispatcher(module, re.compile(name), hands_on, ordinal)


DISPATCH_NAME, DISPATCH_ORDINAL = "RtlDispatchAPC", 8
"""The ordinal under which ntdll exports RtlDispatchAPC, without its name, since 7: Check Point Research, "Thread
Name-Calling" (2024)."""

DISPATCHERS = (
    # QueueUserAPC since 7: (function, its argument, activation context).
    _dispatcher("ntdll", "RtlDispatchAPC$", HandsOn.FUNCTION, DISPATCH_ORDINAL),
    # QueueUserAPC to 2003: ReactOS, dll/win32/kernel32/client/thread.c, BaseDispatchApc.
    _dispatcher("kernel32", "BaseDispatchA(PC|pc)$", HandsOn.FUNCTION),
    # ReadFileEx and its like: ReactOS, dll/win32/kernel32/client/file/cnotify.c.
    _dispatcher("kernel32|kernelbase", "Base(p)?IoCompletionSimple", HandsOn.COMPLETION),
    _dispatcher("kernel32|kernelbase", "Base(p)?IoCompletion", HandsOn.BLOCK),
    # SetWaitableTimer with an activation context: the name is in Microsoft's public PDBs of kernel32.
    _dispatcher("kernel32|kernelbase", "Base(p)?TimerA(PC|pc)", HandsOn.BLOCK),
    # APCs that 32-bit programs queue for themselves: Wine, dlls/wow64 (apc_param_32to64 and Wow64ApcRoutine), exported.
    _dispatcher("wow64", "Wow64ApcRoutine$", HandsOn.PACKED),
)

MANY_ALIKE = 8
"""From so many regions of private executable memory of one size and protection on, a process has a compiler at run
time: CLR, V8 and others allocate their code in equal pieces. An implant of that size is then not told from them."""

WRAPPING_MODULES = frozenset({"kernel32", "kernelbase"})
"""Modules whose APC routines are not exported: one of them at no export is a wrapper of the above without a name."""

BLOCK_POINTERS = 3
"""Pointers in an activation context's block, behind its Flags. Sources disagree on their order (ReactOS,
BASEP_ACTCTX_BLOCK; other headers have the function first), so the one that is code is the function."""

LOWEST_USER_ADDRESS = 0x10000
"""Below it nothing can be allocated (Windows Internals, "User address space layout"): such values are numbers."""

HIGHEST_USER_ADDRESS_X64 = 0x00007FFFFFFFFFFF
"""Since 8.1 (Windows Internals, "Address space layouts"); before, user space was smaller."""

SYSTEM_FOLDER = "\\windows\\system32\\"
_WOW64_MODULES = re.compile(r"(ntdll|wow64\w*)\.dll$")


def serves_wow64(path: str | None) -> bool:
    """Tell whether a 64-bit module is one that runs 32-bit programs: ntdll and wow64*.dll of Windows itself."""
    folder, _, name = (path or "").lower().rpartition("\\")
    return f"{folder}\\".endswith(SYSTEM_FOLDER) and _WOW64_MODULES.match(name) is not None


FIRST_MODULE, FIRST_ROUTINE = "ntdll", "LdrInitializeThunk"
"""In XP and 2003 every thread begins in user mode with a user APC to this export of ntdll: ReactOS, ps/thread.c,
PspUserThreadStartup."""


class Gadget(str, Enum):
    """What an exported function does that nobody needs an APC for."""

    CONTROL = "continues with registers of the caller's choice"
    WRITE = "writes memory"
    MEMORY = "allocates, changes or writes memory"
    DECRYPT = "encrypts and decrypts memory"


# Exports that forward control or write memory, as published injections queue them: AtomBombing (GlobalGetAtomNameA,
# memset), the exceptions to stack pivots (NtContinue), and beacons that encrypt themselves while they sleep (Foliage:
# NtProtectVirtualMemory, SystemFunction032, NtSetContextThread). MITRE ATT&CK T1055.004 and T1027.013.
GADGETS = {
    **dict.fromkeys(
        ("NtContinue", "NtContinueEx", "RtlRestoreContext", "longjmp", "SetThreadContext", "NtSetContextThread"),
        Gadget.CONTROL,
    ),
    **dict.fromkeys(
        ("memset", "memcpy", "RtlFillMemory", "GlobalGetAtomNameA", "GlobalGetAtomNameW"),
        Gadget.WRITE,
    ),
    **dict.fromkeys(("NtProtectVirtualMemory", "NtWriteVirtualMemory", "NtAllocateVirtualMemory"), Gadget.MEMORY),
    "SystemFunction032": Gadget.DECRYPT,
}

CONTINUES = frozenset({"NtContinue", "NtContinueEx", "RtlRestoreContext"})
"""Those of them whose argument is a CONTEXT."""

CHAIN = 3
"""So many such APCs on one thread are a program that runs itself by APCs: no product queues even one."""


def gadget(names: tuple[str, ...]) -> tuple[str, Gadget] | None:
    """Return the gadget among the exports at one address, and what it does. Zw and Nt are one function in user mode."""
    for name in names:
        plain = f"Nt{name[2:]}" if name.startswith("Zw") else name
        if plain in GADGETS:
            return plain, GADGETS[plain]
    return None


_LOADERS = re.compile(r"LoadLibrary(Ex)?([AW])$|(LdrLoadDll)$")


def loader(names: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the loader among the exports at one address, and how it is told the DLL's name.

    `A` and `W` are text at its first argument, `LdrLoadDll` a UNICODE_STRING at its third (phnt, ntldr.h).
    """
    for name in names:
        match = _LOADERS.match(name)
        if match is not None:
            return name, match[2] or match[3]
    return None
