"""A machine that stock Volatility reads back, and its view of what was planted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from volatility3.framework.symbols.windows import extensions  # noqa: F401 - before poolscanner: a circle otherwise

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Bugcheck, IoStackLocation, Irp, Process, Scene, Thread, UnloadedDriver
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL

UNLOADED = {4: (0xF6801000, 0xF6809000), 8: (0xFFFFF80040001000, 0xFFFFF80040009000)}


def scene(kernel: str) -> Scene:
    pointer = load_kernel(kernel).layout.pointer_size
    special = Apc(
        irp=Irp(
            (IoStackLocation("disk.sys", major=3), IoStackLocation("fltMgr.sys", major=0xE, context=0x1234)),
            file_name="\\log.txt",
            user_event="stack-0x80",
        ),
        label="completion",
    )
    normal = Apc(
        "nt!IopDeallocateApc", normal_routine="fltMgr!FltSendMessage+0x10", normal_context=0x77, label="normal"
    )
    system = (
        Thread(8, wait_irql=1, attached_to="svc.exe", kernel_apc_pending=True, kernel_apcs=(special, normal)),
        Thread(12, kernel_apc_disable=-3, stale_saved_state=True),
        Thread(16, in_thread_list=False),
        Thread(20, kernel_apcs=(Apc(holder="suspend", kernel_routine="nt!PspGetSetContextSpecialApc"),)),
    )
    service = (
        Thread(
            104, start=0x401000, wait_reason="UserRequest", alertable=True, user_apcs=(Apc(normal_routine=0x402000),)
        ),
        Thread(108, start=0x401000, state="Running", running_on=1),
        Thread(6000, start=0x401000, state="Terminated", terminated=True, in_cid_table=False),
    )
    return Scene(
        "reading",
        "for reading back",
        kernel,
        (Process("System", 4, system, parent=0), Process("svc.exe", 100, service)),
        (HAL, FLTMGR, DISK),
        (UnloadedDriver("gone.sys", *UNLOADED[pointer]),),
        Bugcheck(0x6, (1, 2, 3, "nt!KeBugCheck")),
        8,
        processors=2,
    )


@dataclass(frozen=True)
class Read:
    """A built scene and Volatility's view of it."""

    image: Image
    context: Any
    module_name: str

    @property
    def module(self) -> Any:
        """The kernel module."""
        return self.context.modules[self.module_name]

    def address(self, name: str | int) -> int:
        """Give a planted address as Volatility holds it."""
        return self.image.address_of[name] & self.context.layers[self.module.layer_name].address_mask

    def object(self, type_name: str, name: str | int) -> Any:
        """Give a planted structure as Volatility's object."""
        return self.module.object(type_name, offset=self.address(name), absolute=True)

    def thread(self, tid: int) -> Any:
        """Give a planted thread."""
        return self.object("_ETHREAD", tid)

    def symbol(self, text: str) -> int:
        """Give a symbolic address as Volatility holds it."""
        return self.image.resolve(text) & self.context.layers[self.module.layer_name].address_mask
