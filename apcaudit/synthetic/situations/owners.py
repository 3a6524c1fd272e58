"""The processes that situations belong to, with what they have in user space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from apcaudit.synthetic import libraries
from apcaudit.synthetic.kernels import Kernel
from apcaudit.synthetic.scene import Process, Thread
from apcaudit.synthetic.situations.situation import SERVICE, WOW64, Situation
from apcaudit.synthetic.user import Region, UserImage, UserSpace

#: Created suspended, and nothing of them has run.
EARLY, EARLY_DISPATCHED, EARLY_FOR_PRODUCT, EARLY_LOADER = "early.exe", "early2.exe", "newborn.exe", "newborn2.exe"
#: With private memory that somebody made executable; the second by VirtualProtect, the third's has been paged out.
INJECTED, PROTECTED, PAGED_OUT, SPECIAL = "injected.exe", "protected.exe", "pagedout.exe", "special.exe"
#: Whose own code is used against them.
BEACON, WRITTEN, LOADED = "beacon.exe", "written.exe", "loaded.exe"
#: A 32-bit program with 64-bit code, a program that has unloaded a DLL, one whose image was written over.
MIXED, UNLOADED, PATCHED = "mixed32.exe", "unloaded.exe", "patched.exe"
#: Programs hooked alike, and one of a managed run time.
HOOKED, HOOKED_TOO, MANAGED = "hooked.exe", "hooked2.exe", "managed.exe"
#: One that has lain idle, so that little of it is in memory.
IDLE = "idle.exe"

#: Instructions that stand for code: of a well-known stub, of a compiler, and a jump over a function's beginning.
SHELLCODE = bytes.fromhex("fc4883e4f0e8c8000000")
COMPILED = bytes.fromhex("554889e54883ec20b8010000004883c4205dc3")
HOOK = bytes.fromhex("e9fb0f0000")

#: What is left to run of the public sleep obfuscation by NtContinue while its thread sleeps (Foliage, 2021): decrypt,
#: take the old context back, make executable, end.
BEACON_STEPS = (
    "cryptbase!SystemFunction032|advapi32!SystemFunction032",
    "ntdll!NtSetContextThread",
    "ntdll!NtProtectVirtualMemory",
    "ntdll!RtlExitUserThread|ntdll!NtTestAlert",
)
#: Bytes from one CONTEXT to the next; ours, as all addresses are.
CONTEXT_STRIDE = 0x600

MANAGED_STUBS = 12

PRODUCT = "C:\\Program Files\\Antivirus\\avuser.dll"
_FOREIGN = "C:\\Users\\Public\\update.dll"


@dataclass(frozen=True, slots=True)
class Owner:
    """A process: what it has in user space, and whether it is a 32-bit program of x64."""

    space: Callable[[Kernel], UserSpace]
    wow64: bool = False


def _program(*regions: Region, images: tuple[UserImage, ...] = (), **members: object) -> Owner:
    """Declare a program of the kernel's own size that has run."""
    return Owner(
        lambda kernel: UserSpace((*libraries.system(kernel), *images), regions, **members)  # type: ignore[arg-type]
    )


def _early(*regions: Region) -> Owner:
    """Declare a program of which only its file and ntdll.dll are mapped."""
    return Owner(lambda kernel: UserSpace((libraries.ntdll(kernel),), regions, has_run=False))


def _data(label: str, **members: object) -> Region:
    return Region(label, protection="READWRITE", **members)  # type: ignore[arg-type]


def _text(text: str) -> Mapping[int, bytes]:
    return {0: text.encode("utf-16-le") + b"\0\0"}


def _beacon(kernel: Kernel) -> UserSpace:
    """Declare a beacon asleep: its code encrypted and not executable, a CONTEXT for each step that is to wake it."""
    instruction, argument, stack = ("Rip", "Rcx", "Rsp") if kernel.is_64bit else ("Eip", "Ecx", "Esp")
    contexts = {
        CONTEXT_STRIDE * number: {instruction: step, argument: "memory:asleep", stack: "memory:contexts+0x3f00"}
        for number, step in enumerate(BEACON_STEPS)
    }
    images = (*libraries.system(kernel), *libraries.cryptography(kernel))
    return UserSpace(images, (_data("asleep", size=0x4000), _data("contexts", size=0x4000, contexts=contexts)))


_DLL64 = UserImage("avhook64.dll", exports={"AvNotify": 0x1100}, path="\\Program Files\\Antivirus")
_CLR = UserImage("clr.dll", exports={"DllGetClassObjectInternal": 0x1100}, path="\\Windows\\Microsoft.NET")
#: A DLL that no other program here maps.
_USER32 = UserImage("user32.dll", exports={"MessageBoxW": 0x1100, "PeekMessageW": 0x1400})
#: A DLL with a function on each of four pages; the last has not been read from its file.
_IDLE_DLL = UserImage(
    "idledll.dll",
    exports={"Trimmed": 0x1100, "LookedUp": 0x2100, "Unused": 0x3100, "Absent": 0x4100},
    absent=(0x4100,),
    size=0x9000,
)
_STUBS = tuple(Region(f"stub{number}", 0x10000, pages=1, content={0: COMPILED}) for number in range(MANAGED_STUBS))

OWNERS: dict[str, Owner] = {
    SERVICE: _program(_data("overlapped"), _data("product_path", content=_text(PRODUCT))),
    WOW64: Owner(lambda kernel: UserSpace(libraries.wow64(kernel)), wow64=True),
    EARLY: _early(Region("early", content={0: SHELLCODE})),
    EARLY_DISPATCHED: _early(Region("early_dispatched", content={0: SHELLCODE})),
    EARLY_FOR_PRODUCT: _early(_data("early_product", strings={0: PRODUCT})),
    EARLY_LOADER: _early(),
    INJECTED: _program(Region("injected", content={0: SHELLCODE}), _data("not_executable", content={0: SHELLCODE})),
    PROTECTED: _program(
        _data("protected", size=0x3000, page_protection="EXECUTE_READ", content={0: SHELLCODE}),
        Region("disarmed", page_protection="READWRITE"),
    ),
    PAGED_OUT: _program(
        Region("paged_out", state="paged-out"), Region("in_transition", state="transition", content={0: SHELLCODE})
    ),
    SPECIAL: _program(Region("special", content={0: SHELLCODE})),
    BEACON: Owner(_beacon),
    WRITTEN: _program(_data("written")),
    LOADED: _program(_data("foreign_path", content=_text(_FOREIGN)), _data("foreign_name", strings={0: _FOREIGN})),
    MIXED: Owner(
        lambda kernel: UserSpace((*libraries.wow64(kernel), _DLL64), (Region("mixed", content={0: SHELLCODE}),)),
        wow64=True,
    ),
    UNLOADED: _program(),
    PATCHED: _program(patches={"kernel32!SleepEx": HOOK}),
    HOOKED: _program(images=(_USER32,), patches={"user32!PeekMessageW": HOOK}),
    HOOKED_TOO: _program(images=(_USER32,), patches={"user32!PeekMessageW": HOOK}),
    MANAGED: _program(*_STUBS, images=(_CLR,)),
    IDLE: _program(
        images=(_IDLE_DLL,),
        trimmed={"idledll!Trimmed": "prototype", "idledll!LookedUp": "lookup", "idledll!Unused": "unused"},
    ),
}

#: Where the IDs of these processes begin; two have theirs of old.
_FIRST_PID = 0x600
_PIDS = {SERVICE: 1204, WOW64: 1300}


def process(name: str, kernel: Kernel, threads: tuple[Thread, ...]) -> Process:
    """Declare one of the processes with its threads."""
    owner = OWNERS[name]
    pid = _PIDS.get(name, _FIRST_PID + 0x20 * list(OWNERS).index(name))
    return Process(name, pid, threads, wow64=owner.wow64, space=owner.space(kernel))


def wanted(situations: Iterable[Situation]) -> list[str]:
    """Name the processes that situations need, in an order of their own; two are always there."""
    names = {SERVICE, WOW64, *(each.owner for each in situations)}
    if HOOKED in names:
        names.add(HOOKED_TOO)
    return [name for name in OWNERS if name in names]
