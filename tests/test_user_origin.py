"""Who queued a user APC: who holds its reserve object, whom its pool is billed to, and an injecting driver's pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.model import Origin

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import Kernel, load_kernel
from apcaudit.synthetic.scene import Apc, Thread
from tests.origin_image import built, give_handle, origins, place

HELD, UNHELD, BILLED, UNBILLED, PAIR, SINGLE, FIRST, SECOND = range(200, 232, 4)
_SPECIAL = "nt!KeSpecialUserApcKernelRoutine"
#: Bit of PoolType of an allocation that is charged to a process (ReactOS, mm/ARM3/expool.c).
_QUOTA = 8


def _reserved(kernel: Kernel, number: int) -> Apc:
    return Apc(
        "nt!PspUserApcReserveKernelRoutine",
        0x401230,
        rundown_routine="nt!PspUserApcReserveKernelRoutine",
        # Objects are aligned as pool is, and the KAPC follows a pointer's size behind.
        address=place(kernel, number) + kernel.layout.pointer_size,
        pool_tag=None,
        label=f"reserve{number}",
    )


def _threads(kernel: Kernel) -> tuple[Thread, ...]:
    queued = Apc("nt!IopDeallocateApc", 0x401230, pool_tag=b"PsAp")
    driver = Apc("avhook!AvApcKernelRoutine", 0x401230, mode="user", pool_tag=b"AvAp")
    prepare = Apc("avhook!AvApcNormalRoutine")
    made = [
        Thread(BILLED, user_apcs=(_labelled(queued, "billed"),)),
        Thread(UNBILLED, user_apcs=(_labelled(queued, "unbilled"),)),
        Thread(PAIR, user_apcs=(driver,), kernel_apcs=(prepare,), kernel_apc_disable=-1),
        Thread(SINGLE, user_apcs=(driver,)),
    ]
    if kernel.has("PspUserApcReserveKernelRoutine"):
        made += [Thread(HELD, user_apcs=(_reserved(kernel, 1),)), Thread(UNHELD, user_apcs=(_reserved(kernel, 2),))]
    if kernel.has("KeSpecialUserApcKernelRoutine"):
        special = Apc(_SPECIAL, 0x401230, pool_tag=b"Psap")
        made += [
            Thread(
                FIRST, kernel_apcs=(Apc(_SPECIAL, 0x401230, mode="kernel", pool_tag=b"Psap"),), kernel_apc_disable=-1
            ),
            Thread(SECOND, user_apcs=(special,)),
        ]
    return tuple(made)


def _labelled(apc: Apc, label: str) -> Apc:
    return Apc(apc.kernel_routine, apc.normal_routine, pool_tag=apc.pool_tag, label=label)


def _use(image: Image) -> None:
    """Mark the reserve objects as in use, and give BAVSvc.exe a handle to the first."""
    memory = image.memory
    for number in (1, 2):
        body = image.address_of[f"apc:reserve{number}"] - memory.pointer_size
        memory.write_scalar(body, 4, 1)
    header = image.address_of["apc:reserve1"] - memory.pointer_size - memory.offset("_OBJECT_HEADER", "Body")
    give_handle(image, image.address_of["process:BAVSvc.exe"], header)


def _bill(image: Image, cookie: int = 0) -> None:
    """Charge one KAPC to BAVSvc.exe, as ExAllocatePoolWithQuotaTag does."""
    memory = image.memory
    if not image.kernel.is_64bit:
        return
    header = image.address_of["apc:billed"] - memory.size("_POOL_HEADER")
    kind = memory.read(header, "_POOL_HEADER", "PoolType")
    memory.write(header, "_POOL_HEADER", "PoolType", kind | _QUOTA)
    value = image.address_of["process:BAVSvc.exe"]
    memory.write(header, "_POOL_HEADER", "ProcessBilled", value ^ cookie ^ header if cookie else value)


KERNELS = ("xp-sp3-x86", "7-sp1-x86", "7-sp1-x64", "8.1-x64", "10-19041-x64", "11-26100-x64")


@pytest.fixture(scope="module", params=KERNELS)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The machine on one kernel, and the origins by TID."""
    kernel = load_kernel(request.param)
    changes = [_bill, *([_use] if kernel.has("PspUserApcReserveKernelRoutine") else [])]
    image = built(kernel, _threads(kernel), tuple(changes))
    found = origins(image, tmp_path_factory.mktemp(request.param), of=lambda apc: apc.is_user)
    return {"image": image, "origins": found}


def _origin(found: dict[str, Any], tid: int) -> Origin:
    if tid not in found["origins"]:
        pytest.skip("this kernel has no such APCs")
    origin = found["origins"][tid]
    assert origin is not None
    return origin


def test_a_reserve_object_and_its_holder(found: dict[str, Any]) -> None:
    """The process with a handle to the reserve object is named, as an inference; the object is evidence."""
    origin = _origin(found, HELD)
    body = found["image"].address_of["apc:reserve1"] - found["image"].memory.pointer_size
    assert origin.text == "NtQueueApcThreadEx with a reserve object by BAVSvc.exe (1264)?"
    assert f"the KAPC lies in the reserve object {body:#x}, whose InUse is 1" in origin.evidence
    assert "handles to it: BAVSvc.exe (1264)" in origin.evidence
    assert origin.inferred == ("who queues it needs a handle to the object",)


def test_a_reserve_object_that_nobody_holds(found: dict[str, Any]) -> None:
    """Without a handle nobody is named."""
    origin = _origin(found, UNHELD)
    assert origin.text == "NtQueueApcThreadEx with a reserve object"
    assert "no process has a handle to it" in origin.evidence


def test_whom_the_pool_is_billed_to(found: dict[str, Any]) -> None:
    """The process that the KAPC's pool is billed to asked for it; without the mark nobody is named."""
    if not found["image"].kernel.is_64bit:
        pytest.skip("on x86 it is behind the allocation, and not read")
    origin = _origin(found, BILLED)
    assert origin.text.endswith("NtQueueApcThread by BAVSvc.exe (1264)?")
    assert "the KAPC's pool is billed to BAVSvc.exe (1264)" in origin.evidence
    assert "by" not in _origin(found, UNBILLED).text


def test_the_cookie_of_genuine_kernels(shared: Path, tmp_path: Path) -> None:
    """Since 8 the process is combined with the header's address and nt!ExpPoolQuotaCookie, here of genuine 19041."""
    symbols = shared / "symbols" / "windows" / "ntkrnlmp.pdb" / "5278AFF86C341677D7D7835C85B7B844-1.json.xz"
    if not symbols.is_file():
        pytest.skip(f"{symbols} is missing")
    alone = tmp_path / "symbols" / "windows" / "ntkrnlmp.pdb"
    alone.mkdir(parents=True)
    (alone / symbols.name).symlink_to(symbols)
    kernel = load_kernel(symbols)
    cookie = 0x6B7F4C2D91A0E3F5

    def bill(image: Image) -> None:
        image.write(kernel.address("ExpPoolQuotaCookie"), cookie.to_bytes(8, "little"))
        _bill(image, cookie)

    queued = Apc("nt!PspUserApcKernelRoutine", 0x401230, pool_tag=b"Psap", label="billed")
    image = built(kernel, (Thread(BILLED, user_apcs=(queued,)),), (bill,))
    origin = origins(image, tmp_path, (tmp_path / "symbols",))[BILLED]
    assert origin is not None
    assert origin.text.endswith("by BAVSvc.exe (1264)?")


def test_the_pair_of_an_injecting_driver(found: dict[str, Any]) -> None:
    """A driver whose kernel APC is queued to the same thread injects by the known pair; alone it is the driver's."""
    assert [_origin(found, tid).text for tid in (PAIR, SINGLE)] == ["avhook?", "avhook?"]
    told = {tid: [fact for fact in _origin(found, tid).inferred if "inject" in fact] for tid in (PAIR, SINGLE)}
    assert told[SINGLE] == []
    assert [fact.partition(":")[0] for fact in told[PAIR]] == ["the pair by which drivers inject"]


@pytest.mark.parametrize(("tid", "phase"), [(FIRST, "first"), (SECOND, "second")])
def test_the_phase_of_a_special_user_apc(found: dict[str, Any], tid: int, phase: str) -> None:
    """A special user APC is queued twice, first with ApcMode KernelMode."""
    assert [phase in fact for fact in _origin(found, tid).evidence if "phases" in fact] == [True]
