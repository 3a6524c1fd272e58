"""What a user APC would run: each finding where its condition holds, and its legitimate neighbours without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.checks import RULES, check
from volatility3.plugins.windows.apcaudit.model import Apc, Process, Thread
from volatility3.plugins.windows.apcaudit.targets import (
    ContextRecord,
    Lies,
    Place,
    Target,
    decode_wow64,
    gadget,
    loader,
    serves_wow64,
)

from tests.situations_pure import IN_DRIVER, OTHER, WINDOWS_10, routine, severities, thread, user

#: A native program, a 32-bit one, and one of which that is not known.
NATIVE = Process(0xFFFF8A0000001080, 1500, "notepad.exe", wow64=False)
NARROW = replace(NATIVE, name="avtray32.exe", wow64=True)
UNDECIDED = replace(NATIVE, wow64=None)

SYSTEM32, SYSWOW64 = "\\Windows\\System32\\", "\\Windows\\SysWOW64\\"


def image(name: str, *exports: str, **overrides: Any) -> Place:
    """A place in a DLL of Windows, exactly at an export where one is given, in a page that is the file's."""
    values = {
        "text": f"{name}!{exports[0]}" if exports else f"{name}+0x1234",
        "module": name,
        "path": f"{SYSTEM32}{name}.dll",
        "names": exports,
        "bits": 64,
        "protection": "rx",
        "executable": True,
        "own_page": False,
    }
    return Place(0x7FF810001200, Lies.IMAGE, **{**values, **overrides})


def private(protection: str = "rwx", **overrides: Any) -> Place:
    """A place in memory that VirtualAlloc gave."""
    values = {"text": f"private {protection}", "protection": protection, "executable": "x" in protection}
    return Place(0x20F00010000, Lies.PRIVATE, **{**values, **overrides})


NOWHERE = Place(0x7FF812345678, Lies.NOWHERE, "no VAD")
UNKNOWN = Place(0x7FF812345678, Lies.UNKNOWN, "unknown", why="the VAD tree contradicts itself at 0xffff8a0000123450")
UNNAMED = image("NTDLL", why="the names cannot be read")
PROGRAM = image("notepad", path="\\Program Files\\notepad.exe")
CONTINUE = image("ntdll", "NtContinue", "ZwContinue")
LOAD_LIBRARY = image("kernelbase", "LoadLibraryW")
BY_DRIVER: dict[str, Any] = {"kernel_routine": IN_DRIVER}
SPECIAL: dict[str, Any] = {"kernel_routine": routine("KeSpecialUserApcKernelRoutine"), "special_user": True}


def subject(
    place: Place | None, *, owner: Process = NATIVE, apc: Any = None, count: int = 1, members: Any = None, **target: Any
) -> Thread:
    """A thread with user APCs that would all run one place, in its own process."""
    made = None if place is None else Target(place, owner.address, **target)
    apcs: list[Apc] = [user(**(apc or {})) for _ in range(count)]
    return thread(user=apcs, target=made, owner=owner, system_thread=0, **(members or {}))


def found(subject: Thread) -> dict[str, str]:
    """The findings of the first APC."""
    checked = check(subject, WINDOWS_10)
    first = subject.queues[0].apcs[0]
    assert checked.findings == ()
    return severities(checked.apc_findings[first.key])


CASES = {
    # user-apc-private-code
    "writable and alone": (subject(private(), others=0), {"user-apc-private-code": "high"}),
    "with others, none alike": (subject(private(), others=40, alike=0), {"user-apc-private-code": "medium"}),
    "with seven alike": (subject(private(), others=40, alike=7), {"user-apc-private-code": "medium"}),
    "one of many alike, as a run time compiler makes them": (subject(private(), others=40, alike=8), {}),
    "the others could not be counted": (subject(private(), others=None), {"user-apc-private-code": "medium"}),
    "not writable": (subject(private("rx"), others=0, elsewhere=False), {"user-apc-private-code": "medium"}),
    "a trampoline that others have too": (subject(private("rx"), others=0, elsewhere=True), {}),
    "whether it can run is not known": (subject(private("rw", executable=None)), {}),
    "a section of the page file": (subject(replace(private("rx"), lies=Lies.MAPPED)), {}),
    # user-apc-gadget
    "NtContinue": (subject(CONTINUE, argument=0x20F00020000), {"user-apc-gadget": "high"}),
    "by its other name": (subject(image("ntdll", "ZwProtectVirtualMemory")), {"user-apc-gadget": "high"}),
    "AtomBombing": (subject(image("kernel32", "GlobalGetAtomNameA")), {"user-apc-gadget": "high"}),
    "behind the export": (subject(image("ntdll", text="ntdll!NtContinue+0x3")), {}),
    "another export": (subject(image("ntdll", "NtDelayExecution")), {}),
    # user-apc-loader
    "a loader": (subject(LOAD_LIBRARY, string="C:\\evil.dll"), {"user-apc-loader": "medium"}),
    "a security product's driver": (subject(LOAD_LIBRARY, apc=BY_DRIVER), {"user-apc-loader": "low"}),
    "what only begins like one": (subject(image("mscoree", "LoadLibraryShim")), {}),
    # user-apc-nowhere
    "no VAD": (subject(NOWHERE), {"user-apc-nowhere": "medium"}),
    "not executable": (subject(private("rw")), {"user-apc-nowhere": "medium"}),
    "an image's data": (subject(image("notepad", protection="rw", executable=False)), {"user-apc-nowhere": "medium"}),
    "unreadable VADs": (subject(UNKNOWN), {}),
    # user-apc-early
    "before the program": (subject(PROGRAM, members={"first": True}), {"user-apc-early": "low"}),
    "early-bird": (
        subject(private(), members={"first": True}, others=0),
        {"user-apc-early": "high", "user-apc-private-code": "high"},
    ),
    "early, and nowhere": (
        subject(NOWHERE, members={"first": True}),
        {"user-apc-early": "high", "user-apc-nowhere": "medium"},
    ),
    "early, with a gadget": (
        subject(CONTINUE, members={"first": True}),
        {"user-apc-early": "high", "user-apc-gadget": "high"},
    ),
    "a security product at process creation": (
        subject(LOAD_LIBRARY, members={"first": True}, apc=BY_DRIVER),
        {"user-apc-early": "low", "user-apc-loader": "low"},
    ),
    "the program runs already": (subject(PROGRAM, members={"first": False}), {}),
    "whether it runs is not known": (subject(PROGRAM, members={"first": None}), {}),
    "how every thread of XP begins": (subject(image("ntdll", "LdrInitializeThunk"), members={"first": True}), {}),
    "XP's own, with names that cannot be read": (subject(UNNAMED, members={"first": True}), {}),
    "early, where cannot be read": (subject(UNKNOWN, members={"first": True}), {}),
    "in a DLL with names that cannot be read": (
        subject(replace(UNNAMED, module="evil"), members={"first": True}),
        {"user-apc-early": "low"},
    ),
    # special-user-apc
    "a garbage collector's": (subject(image("coreclr"), apc=SPECIAL), {"special-user-apc": "low"}),
    "to a suspended thread": (
        subject(image("coreclr"), apc=SPECIAL, members={"suspend_count": 1, "wait_state": 4}),
        {"special-user-apc": "medium"},
    ),
    "special, to private code": (
        subject(private("rx"), apc=SPECIAL),
        {"special-user-apc": "high", "user-apc-private-code": "medium"},
    ),
    "special, and nowhere": (subject(NOWHERE, apc=SPECIAL), {"special-user-apc": "high", "user-apc-nowhere": "medium"}),
    "special, with a gadget": (
        subject(CONTINUE, apc=SPECIAL),
        {"special-user-apc": "high", "user-apc-gadget": "high"},
    ),
    "special, and the target is not known": (subject(UNKNOWN, apc=SPECIAL), {"special-user-apc": "low"}),
    "special, and the target cannot be read": (subject(None, apc=SPECIAL), {"special-user-apc": "low"}),
    # user-apc-wow64
    "encoded, in a native process": (subject(UNKNOWN, encoded=True, narrow=True), {"user-apc-wow64": "high"}),
    "encoded, in a 32-bit program": (subject(image("ntdll", bits=32), owner=NARROW, encoded=True, narrow=True), {}),
    "encoded, in a process that may be one": (subject(UNKNOWN, owner=UNDECIDED, encoded=True, narrow=True), {}),
    "64-bit private code in a 32-bit program": (
        subject(private("rx"), owner=NARROW),
        {"user-apc-wow64": "high", "user-apc-private-code": "medium"},
    ),
    "a 64-bit tool's module in one": (
        subject(image("tool", path="\\Tools\\tool.dll"), owner=NARROW),
        {"user-apc-wow64": "medium"},
    ),
    "32-bit code run as 64-bit": (
        subject(image("user32", bits=32, path=f"{SYSWOW64}user32.dll"), owner=NARROW),
        {"user-apc-wow64": "high"},
    ),
    "what runs 32-bit programs": (subject(image("wow64"), owner=NARROW), {}),
    "its ntdll": (subject(image("ntdll", "RtlDispatchAPC"), owner=NARROW), {}),
    "an ntdll from elsewhere": (
        subject(image("ntdll", path="\\Temp\\ntdll.dll"), owner=NARROW),
        {"user-apc-wow64": "medium"},
    ),
    "unknown VADs in one": (subject(UNKNOWN, owner=NARROW), {}),
    "64-bit code in a native process": (subject(image("tool", path="\\Tools\\tool.dll")), {}),
    # user-apc-patched-image
    "a page of its own": (subject(image("ntdll", "NtClose", own_page=True)), {"user-apc-patched-image": "medium"}),
    "hooked as everywhere": (subject(image("ntdll", "NtClose", own_page=True), elsewhere=True), {}),
    "the file's page": (subject(image("ntdll", "NtClose", own_page=False)), {}),
    "relocated, or not known": (subject(image("old", own_page=None)), {}),
    # nothing at all
    "ReadFileEx, QueueUserAPC": (subject(PROGRAM, via="ntdll!RtlDispatchAPC"), {}),
    "NormalRoutine could not be read": (subject(None), {}),
}


@pytest.mark.parametrize(("subject", "expected"), CASES.values(), ids=CASES.keys())
def test_findings(subject: Thread, expected: dict[str, str]) -> None:
    """The findings about a target are exactly these; its neighbours have none."""
    assert found(subject) == expected


def test_every_finding_is_here() -> None:
    """Each finding of a user APC has a case with it and one without."""
    codes = {rule.code for rule in RULES if rule.code.startswith("user-apc-") or rule.code == "special-user-apc"}
    assert codes == {code for _, expected in CASES.values() for code in expected}
    of_targets = {rule.code for rule in RULES if rule.target is not None}
    assert codes - of_targets == {"user-apc-early", "special-user-apc"}, "these say how an APC is queued"


def explanation(subject: Thread) -> str:
    """The sentences about the first APC."""
    first = subject.queues[0].apcs[0]
    return " ".join(each.explanation for each in check(subject, WINDOWS_10).apc_findings[first.key])


def test_a_context_is_told() -> None:
    """NtContinue's CONTEXT is told: instruction pointer, with what it is, and the first argument."""
    registers = ContextRecord(0x20F00020000, image("kernel32", "VirtualProtect"), 0x20F00010000)
    text = explanation(subject(CONTINUE, argument=0x20F00020000, registers=registers))
    assert "0x7ff810001200 (kernel32!VirtualProtect)" in text
    assert "the CONTEXT at 0x20f00020000" in text
    assert "first argument 0x20f00010000" in text


@pytest.mark.parametrize(("count", "told"), [(2, False), (3, True)])
def test_a_chain_is_told(count: int, told: bool) -> None:
    """Three or more on one thread are a sleeping beacon; fewer are each for itself."""
    text = explanation(subject(CONTINUE, count=count, members={"alertable": 1}))
    assert (f"{count} such APCs are queued to this alertable thread" in text) is told


@pytest.mark.parametrize(("string", "told"), [("C:\\evil.dll", "'C:\\evil.dll'"), (None, "a name that cannot be read")])
def test_a_dll_is_told(string: str | None, told: str) -> None:
    """A loader's sentence has the DLL's name, or that it cannot be read."""
    assert told in explanation(subject(LOAD_LIBRARY, string=string))


@pytest.mark.parametrize(("mode", "phase"), [(0, "first phase"), (1, "second phase")])
def test_the_phase_is_told(mode: int, phase: str) -> None:
    """A special user APC is on the kernel list first, with ApcMode 0, then on the user list."""
    lists = {"kernel" if mode == 0 else "user": [user(apc_mode=mode, **SPECIAL)]}
    special = thread(owner=NATIVE, target=Target(PROGRAM, NATIVE.address), **lists)
    apc = special.queues[0].apcs[0]
    assert apc.kind == "special-user"
    findings = check(special, WINDOWS_10).apc_findings[apc.key]
    assert [each.explanation for each in findings if phase in each.explanation] != []


def test_an_attached_thread() -> None:
    """The process is that of the list: the one entered for ApcState, the thread's own for SavedApcState."""
    attached = thread(owner=NATIVE, apc_state_index=1, apc_process=OTHER.address, user=[user()], saved_user=[user()])
    assert [str(attached.process_of(queue.apcs[0])) for queue in attached.queues] == [str(OTHER), str(NATIVE)]


@pytest.mark.parametrize(
    ("routine", "decoded"),
    [
        pytest.param(-4 * 0x76541230 & (1 << 64) - 1, 0x76541230, id="RtlQueueApcWow64Thread"),
        pytest.param(-4 * 0xFFFFFFFF & (1 << 64) - 1, 0xFFFFFFFF, id="the highest"),
        pytest.param(-4 * 0x100000000 & (1 << 64) - 1, None, id="of more than 32 bits"),
        pytest.param(0x00007FF810001200, None, id="a 64-bit user address"),
        pytest.param(0x76541230, None, id="a 32-bit address that is not encoded"),
        pytest.param(0xFFFFF80000300000, None, id="a kernel address"),
        pytest.param(0, None, id="0"),
    ],
)
def test_decoding(routine: int, decoded: int | None) -> None:
    """A routine is encoded where the kernel's own test says so: shifted back and negated it has 32 bits."""
    assert decode_wow64(routine) == decoded


def test_names_of_functions() -> None:
    """Only exact names of the vocabulary count, Zw and Nt alike."""
    assert gadget(("ZwContinueEx",)) == gadget(("NtContinueEx",))
    assert gadget(("RtlCopyMemoryNonTemporal", "NtContinueFoo")) is None
    names = ("LoadLibraryA", "LoadLibraryExW", "LdrLoadDll", "LdrpLoadDll")
    assert [(loader((name,)) or ("", ""))[1] for name in names] == ["A", "W", "LdrLoadDll", ""]


@pytest.mark.parametrize(
    ("path", "serves"),
    [
        (f"{SYSTEM32}ntdll.dll", True),
        (f"{SYSTEM32}wow64cpu.dll", True),
        (f"{SYSWOW64}ntdll.dll", False),
        ("\\Temp\\wow64.dll", False),
        (f"{SYSTEM32}kernel32.dll", False),
        (None, False),
    ],
)
def test_modules_that_serve_wow64(path: str | None, serves: bool) -> None:
    """64-bit code that belongs into a 32-bit program is ntdll's and wow64*.dll's, from Windows' own folder."""
    assert serves_wow64(path) is serves
