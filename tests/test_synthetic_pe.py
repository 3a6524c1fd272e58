"""Images of synthetic drivers are PE images to a parser that is not ours."""

from __future__ import annotations

import pytest

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Driver, Process, Scene
from apcaudit.synthetic.scenes.common import HAL
from apcaudit.synthetic.user import UserImage, UserSpace

pefile = pytest.importorskip("pefile")

_DRIVER = Driver(
    "Bfilter.sys",
    size=0x8000,
    exports={"ScInitExcludePath": 0x1400, "ScUnInitExcludePath": 0x1870},
    imports={"nt": ("KeInitializeApc", "KeInsertQueueApc"), "hal.dll": ("ExAcquireFastMutex",)},
    code={0x1900: b"\xde\xad\xbe\xef"},
)


@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])
def test_driver_image(kernel: str) -> None:
    """Sections, exports, the PDB's name, and imports resolved to the addresses of what they name."""
    image = build(Scene("pe", "", kernel, (Process("System", 4),), (HAL, _DRIVER)), load_kernel(kernel))
    base = image.address_of["driver:Bfilter.sys"]
    # INIT, the last page, has been discarded.
    data = image.read(base, _DRIVER.size - 0x1000) + bytes(0x1000)
    parsed = pefile.PE(data=data, fast_load=False)
    assert parsed.OPTIONAL_HEADER.SizeOfImage == _DRIVER.size
    names = [section.Name.rstrip(b"\0") for section in parsed.sections]
    assert names == [b".text", b".rdata", b".data", b"INIT"]
    parsed.parse_data_directories()
    exports = {each.name.decode(): each.address for each in parsed.DIRECTORY_ENTRY_EXPORT.symbols}
    assert exports == dict(_DRIVER.exports)
    mask = image.memory.layout.pointer_mask
    width = image.memory.pointer_size
    table = next(each for each in parsed.OPTIONAL_HEADER.DATA_DIRECTORY if each.name == "IMAGE_DIRECTORY_ENTRY_IAT")
    slots = [image.memory.read_pointer(base + table.VirtualAddress + width * each) for each in range(5)]
    names = ["nt!KeInitializeApc", "nt!KeInsertQueueApc", None, "hal!ExAcquireFastMutex", None]
    assert slots == [image.resolve(name) & mask if name else 0 for name in names]
    assert [entry.dll for entry in parsed.DIRECTORY_ENTRY_IMPORT] == [b"ntoskrnl.exe", b"hal.dll"]
    assert parsed.DIRECTORY_ENTRY_DEBUG[0].entry.PdbFileName.rstrip(b"\0") == b"Bfilter.pdb"
    assert data[0x1900:0x1904] == b"\xde\xad\xbe\xef"


@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64", "11-26100-x64"])
def test_kernel_image(kernel: str) -> None:
    """The kernel's image names its PDB and exports what drivers import, not what is internal."""
    image = build(Scene("pe", "", kernel, (Process("System", 4),)), load_kernel(kernel))
    size = image.kernel.image_size
    data = b"".join(
        image.read(image.kernel.base + at, 0x1000)
        if image.memory.space.is_mapped(image.kernel.base + at)
        else bytes(0x1000)
        for at in range(0, size, 0x1000)
    )
    parsed = pefile.PE(data=data)
    exports = {each.name.decode(): each.address for each in parsed.DIRECTORY_ENTRY_EXPORT.symbols}
    assert exports["KeInsertQueueApc"] == image.kernel.addresses["KeInsertQueueApc"]
    assert "IopCompleteRequest" not in exports
    entry = parsed.DIRECTORY_ENTRY_DEBUG[0].entry
    assert entry.PdbFileName.rstrip(b"\0").decode() == image.kernel.pdb.name
    assert entry.Signature_String[:32].upper() == image.kernel.pdb.guid


@pytest.mark.parametrize(("kernel", "bits"), [("xp-sp3-x86", 32), ("10-19041-x64", 64), ("10-19041-x64", 32)])
def test_user_image(kernel: str, bits: int) -> None:
    """A DLL of user space exports by name, by ordinal alone and by forwarding; its code alone is executable."""
    dll = UserImage(
        "mixed.dll",
        exports={"Second": 0x1400, "First": 0x1200},
        forwards={"Elsewhere": "NTDLL.NtContinue"},
        functions={"Nameless": 0x1800, "Internal": 0x1900},
        ordinals={3: "Nameless"},
        bits=bits,
    )
    process = Process("host.exe", 100, space=UserSpace((dll,)))
    image = build(Scene("pe", "", kernel, (process,)), load_kernel(kernel))
    data = image.user(100).space.read(image.address_of["image:mixed"], dll.size)
    parsed = pefile.PE(data=data)
    assert (pefile.OPTIONAL_HEADER_MAGIC_PE_PLUS if bits == 64 else pefile.OPTIONAL_HEADER_MAGIC_PE) == parsed.PE_TYPE
    executable = {each.Name.rstrip(b"\0"): each.IMAGE_SCN_MEM_EXECUTE for each in parsed.sections}
    assert executable == {b".text": True, b".rdata": False, b".data": False, b".reloc": False}
    found = {
        (each.ordinal, each.name): (each.address, each.forwarder) for each in parsed.DIRECTORY_ENTRY_EXPORT.symbols
    }
    assert found.pop((4, b"Elsewhere"))[1] == b"NTDLL.NtContinue"
    assert found == {(3, None): (0x1800, None), (5, b"First"): (0x1200, None), (6, b"Second"): (0x1400, None)}
    assert image.resolve("mixed!Internal") == image.address_of["image:mixed"] + 0x1900
