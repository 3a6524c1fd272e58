"""Numbers of thread states and wait reasons, which layouts hold as plain bytes."""

from __future__ import annotations

#: KTHREAD_STATE, as in the public PDBs of Windows 8 and later; earlier ones number alike up to Transition.
STATES = {
    "Initialized": 0,
    "Ready": 1,
    "Running": 2,
    "Standby": 3,
    "Terminated": 4,
    "Waiting": 5,
    "Transition": 6,
    "DeferredReady": 7,
    "GateWait": 8,
    "WaitingForProcess": 9,
}

#: KWAIT_REASON (wdm.h), one row for seven; WrGuardedMutex and what follows came with Vista and later.
WAIT_REASONS = {
    name: value
    for value, name in enumerate(
        """
        Executive FreePage PageIn PoolAllocation DelayExecution Suspended UserRequest
        WrExecutive WrFreePage WrPageIn WrPoolAllocation WrDelayExecution WrSuspended WrUserRequest
        WrEventPair WrQueue WrLpcReceive WrLpcReply WrVirtualMemory WrPageOut WrRendezvous
        WrKeyedEvent WrTerminated WrProcessInSwap WrCpuRateControl WrCalloutStack WrKernel WrResource
        WrPushLock WrMutex WrQuantumEnd WrDispatchInt WrPreempted WrYieldExecution WrFastMutex
        WrGuardedMutex WrRundown WrAlertByThreadId WrDeferredPreempt
        """.split()  # noqa: SIM905
    )
}
