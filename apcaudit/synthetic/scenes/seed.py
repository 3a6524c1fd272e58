"""The case that started the project: Windows XP SP3, bugcheck 0x6 in a filter driver's thread.

The addresses of the post: thread, KAPC, EPROCESS, start address, FltSendMessage, and the stack. What the post does not
give is ours and says so.
"""

from __future__ import annotations

from apcaudit.synthetic.assembly import Code, Relative, Slot
from apcaudit.synthetic.scene import (
    Address,
    Apc,
    Bugcheck,
    Driver,
    IoStackLocation,
    Irp,
    Process,
    Scene,
    StackWrite,
    Thread,
)
from apcaudit.synthetic.scenes.common import DISK, HAL

#: From the post.
THREAD = 0x8AB54388
KAPC = 0x8A3F6248
PROCESS = 0x8A6BDBB0
START_ADDRESS = 0xBA7118A0
FLT_SEND_MESSAGE = 0xF7456472

#: Image bases: ours, below the addresses that the post gives.
_BFILTER_BASE = 0xBA70E000
_FLTMGR_BASE = 0xF7442000

#: The post shows the return address ba711870 as `Bfilter!ScUnInitExcludePath` with no offset, so the export lies
#: exactly there, and the start address is 0x30 bytes behind it.
_SC_UN_INIT_EXCLUDE_PATH = 0xBA711870 - _BFILTER_BASE

#: The post's frames: ChildEBP, the frame below's ChildEBP, return address, the first three arguments.
_FRAMES: tuple[tuple[int, int, int, tuple[int, int, int]], ...] = (
    (0xBA6E5BE0, 0xBA6E5C00, 0x80508D2F, (0x6, 0x8A715818, 0x0)),
    (0xBA6E5C00, 0xBA6E5C50, 0x8062CFD8, (0xBA6E5C18, 0x8A715818, 0x0)),
    (0xBA6E5C50, 0xBA6E5D54, 0xF745664D, (0x8A3105E8, 0x8A6BDBB0, 0x1)),
    (0xBA6E5D54, 0xBA6E5DAC, 0xBA711870, (0x8AB61818, 0xBA71708C, 0xE4446410)),
    (0xBA6E5DAC, 0xBA6E5DDC, 0x80576320, (0x0, 0x0, 0x0)),
    (0xBA6E5DDC, 0x0, 0x804EC7B9, (0xBA7118A0, 0x0, 0x0)),
)
#: Ours: where the lower AV driver's routine had its frame, below the crash's own frames; it has returned since.
_AVDISK_FRAME = 0xBA6E5A60

#: Ours, the bytes of the kernel's calls before the post's return addresses: a debugger knows a return address by them.
#: What is called follows from the next frame; start routines are called through their address, as XP does.
_KERNEL_CODE: dict[Address, Code] = {
    "nt!KeUnstackDetachProcess+0x113": (b"\xe8", Relative("nt!KeBugCheck")),
    "nt!MmProbeAndLockProcessPages+0x65": (b"\xe8", Relative("nt!KeUnstackDetachProcess")),
    "nt!PspSystemThreadStartup+0x31": b"\xff\x55\x08",  # call [ebp+8]
    "nt!KiThreadStartup+0x14": b"\xff\xd0",  # call eax
}

#: The same in fltMgr: FltSendMessage calls the kernel through its import.
_FLT_SEND_MESSAGE_CODE: dict[int, Code] = {
    0xF745664D - _FLTMGR_BASE - 6: (b"\xff\x15", Slot("MmProbeAndLockProcessPages")),
}

#: Bfilter's thread, ours, after the post's advice against just this: it takes a fast mutex and sends to the service,
#: over and over. From the post are the start address, the return address ba711870 and the first three arguments, of
#: which the second, ba71708c, lies in the driver. Since the thread's frame lies right above the sender's, both
#: addresses are in one function: the loop was placed in front of the entry, as optimising linkers do.
_BFILTER_CODE: dict[int, Code] = {
    0xBA711843 - _BFILTER_BASE: (
        b"\xb9\xa0\x70\x71\xba",  # ba711843 mov ecx, ba7170a0: the fast mutex
        b"\xff\x15",  # ba711848 call [hal!ExAcquireFastMutex]
        Slot("ExAcquireFastMutex"),
        b"\x6a\x00",  # ba71184e push 0: no time limit
        b"\x6a\x00\x6a\x00",  # ba711850 push 0, push 0: no reply
        b"\x68\x00\x04\x00\x00",  # ba711854 push 400: length of the message
        b"\xff\x35\x90\x70\x71\xba",  # ba711859 push [ba717090]: the message, e4446410
        b"\x68\x8c\x70\x71\xba",  # ba71185f push ba71708c: the port
        b"\xff\x35\x88\x70\x71\xba",  # ba711864 push [ba717088]: the filter, 8ab61818
        b"\xff\x15",  # ba71186a call [fltMgr!FltSendMessage]
        Slot("FltSendMessage"),
        b"\xb9\xa0\x70\x71\xba",  # ba711870 mov ecx, ba7170a0
        b"\xff\x15",  # ba711875 call [hal!ExReleaseFastMutex]
        Slot("ExReleaseFastMutex"),
        b"\xeb\xc6",  # ba71187b jmp ba711843
    ),
    START_ADDRESS - _BFILTER_BASE: bytes.fromhex(
        "8bff"  # ba7118a0 mov edi, edi
        "55"  # ba7118a2 push ebp
        "8bec"  # ba7118a3 mov ebp, esp
        "51"  # ba7118a5 push ecx
        "eb9b"  # ba7118a6 jmp ba711843
    ),
}

#: The stack's end: the page boundary above the outermost frame.
_STACK_BASE = 0xBA6E6000


def scene(kernel: str = "xp-sp3-x86") -> Scene:
    """Declare the scene; its addresses are those of 32-bit Windows."""
    return Scene(
        "seed",
        "Windows XP SP3: bugcheck 0x6, a kernel APC still queued when Bfilter's thread detaches from BAVSvc.exe",
        kernel,
        (_system(), _service()),
        _drivers(),
        # The post's first frame: KeBugCheck+0x14, its EBP. Esp is ours.
        bugcheck=Bugcheck(0x6, registers={"Eip": "nt!KeBugCheck+0x14", "Esp": 0xBA6E5BD8, "Ebp": 0xBA6E5BE0}),
        crashing_thread=340,
        code=_KERNEL_CODE,
    )


def _system() -> Process:
    # TIDs, and all threads but 8ab54388, are ours.
    return Process(
        "System",
        4,
        (
            Thread(12, start="nt!ExpWorkerThread"),
            Thread(16, start="nt!ExpWorkerThread"),
            Thread(88, start="nt!KeBalanceSetManager", wait_reason="Executive"),
            _bfilter_thread(),
        ),
        parent=0,
    )


def _bfilter_thread() -> Thread:
    frames = tuple(
        StackWrite(address, (below, return_address, *arguments))
        for address, below, return_address, arguments in _FRAMES
    )
    left_over = StackWrite(_AVDISK_FRAME, (0xBA6E5AC8, "avdisk+0x2a4c"))
    return Thread(
        340,
        start=START_ADDRESS,
        address=THREAD,
        # It was on the processor: it stopped the machine.
        state="Running",
        running_on=0,
        wait_reason="Executive",
        # Ours: its last wait, inside of FltSendMessage, was at APC_LEVEL, which a held fast mutex explains and which
        # is why the APC was not delivered. The post infers that; XP keeps no other trace of the IRQL.
        wait_irql=1,
        attached_to="BAVSvc.exe",
        kernel_apc_pending=True,
        kernel_apcs=(_apc(),),
        frames=(*frames, left_over),
        stack_base=_STACK_BASE,
        # KernelStack of a running thread is stale: ours, the crash's own frame.
        members={"Tcb.KernelStack": 0xBA6E5BD8},
    )


def _apc() -> Apc:
    """Declare the KAPC: only its address is the post's.

    Ours: it completes a threaded IRP, as IoBuildDeviceIoControlRequest makes it, that was sent to the lower AV driver's
    device and went on to the disk's with that driver's completion routine; nobody waits for it on this stack.
    """
    irp = Irp(
        stack=(
            # IoSetCompletionRoutine writes to the location below the caller's own.
            IoStackLocation(
                "disk.sys", major=0xE, completion_routine="avdisk!AvDiskCompletion", context=0x8A3F7008, control=0xE0
            ),
            IoStackLocation("avdisk.sys", major=0xE),
        ),
        # IRP_SYNCHRONOUS_API and IRP_BUFFERED_IO.
        flags=0x14,
        user_iosb=0x8A3F7010,
        user_event=0x8A3F7018,
    )
    return Apc("nt!IopCompleteRequest", rundown_routine="nt!IopAbortRequest", address=KAPC, irp=irp, label="seed")


def _service() -> Process:
    # PID and threads are ours; its page tables and its code are not in memory.
    return Process(
        "BAVSvc.exe",
        1264,
        (
            Thread(1268, start=0x401000, wait_reason="UserRequest"),
            # The service's thread that asks the filter manager for messages.
            Thread(1272, start=0x4017C0, wait_reason="WrQueue"),
        ),
        address=PROCESS,
        parent=668,
    )


def _drivers() -> tuple[Driver, ...]:
    # Names of exports other than those of the post, sizes and bases: ours.
    filter_manager = Driver(
        "fltMgr.sys",
        base=_FLTMGR_BASE,
        size=0x1F000,
        exports={
            "FltRegisterFilter": 0x4010,
            "FltCreateCommunicationPort": 0x6120,
            "FltSendMessage": FLT_SEND_MESSAGE - _FLTMGR_BASE,
            "FltReleaseFileNameInformation": 0x16230,
        },
        imports={
            "nt": ("MmProbeAndLockPages", "MmProbeAndLockProcessPages", "KeWaitForMultipleObjects"),
            "hal.dll": ("ExAcquireFastMutex", "ExReleaseFastMutex"),
        },
        code=_FLT_SEND_MESSAGE_CODE,
        devices=("FltMgr", "FltMgrMsg"),
    )
    bfilter = Driver(
        "Bfilter.sys",
        base=_BFILTER_BASE,
        size=0xD000,
        exports={"ScInitExcludePath": 0x3400, "ScUnInitExcludePath": _SC_UN_INIT_EXCLUDE_PATH},
        imports={
            "nt": ("PsCreateSystemThread",),
            "hal.dll": ("ExAcquireFastMutex", "ExReleaseFastMutex"),
            "fltMgr.sys": ("FltSendMessage", "FltRegisterFilter", "FltCreateCommunicationPort"),
        },
        code=_BFILTER_CODE,
        devices=("Bfilter",),
    )
    lower = Driver(
        "avdisk.sys",
        base=0xBA5C0000,
        size=0x9000,
        exports={"AvDiskCompletion": 0x3200},
        imports={"nt": ("IoBuildDeviceIoControlRequest", "IofCallDriver")},
        devices=("AvDisk0",),
    )
    return (HAL, filter_manager, bfilter, lower, DISK)


#: The names that the post's stack shows, and where they have to lie: checked by the tests.
RETURN_ADDRESSES: dict[Address, int] = {
    "nt!KeUnstackDetachProcess+0x118": 0x80508D2F,
    "nt!MmProbeAndLockProcessPages+0x6a": 0x8062CFD8,
    "fltMgr!FltSendMessage+0x1db": 0xF745664D,
    "Bfilter!ScUnInitExcludePath": 0xBA711870,
    "nt!PspSystemThreadStartup+0x34": 0x80576320,
    "nt!KiThreadStartup+0x16": 0x804EC7B9,
}
