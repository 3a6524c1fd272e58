"""Drivers that most scenes have."""

from __future__ import annotations

from apcaudit.synthetic.scene import Driver

#: Relative addresses and sizes are ours; names are those of Windows.
HAL = Driver(
    "hal.dll",
    size=0x8000,
    # 32-bit Windows up to 7 has fast mutexes here.
    exports={"ExAcquireFastMutex": 0x2000, "ExReleaseFastMutex": 0x2080, "KfAcquireSpinLock": 0x2100},
    driver_object=False,
)
FLTMGR = Driver(
    "fltMgr.sys",
    size=0x1F000,
    exports={
        "FltRegisterFilter": 0x4010,
        "FltCreateCommunicationPort": 0x6120,
        "FltSendMessage": 0x14472,
        "FltReleaseFileNameInformation": 0x16230,
    },
    imports={"nt": ("KeWaitForMultipleObjects", "MmProbeAndLockPages"), "hal.dll": ("ExAcquireFastMutex",)},
    devices=("FltMgr",),
)
NTFS = Driver(
    "Ntfs.sys",
    size=0x20000,
    exports={},
    imports={"nt": ("IoBuildDeviceIoControlRequest", "IofCallDriver", "IofCompleteRequest")},
    devices=("", ""),
)
DISK = Driver(
    "disk.sys",
    size=0xA000,
    exports={},
    imports={"nt": ("IofCallDriver", "IofCompleteRequest")},
    devices=("Harddisk0\\DR0",),
)
