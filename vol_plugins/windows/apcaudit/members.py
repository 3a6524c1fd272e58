"""The members of _ETHREAD (and its _KTHREAD) that the audit reads, as named tuples."""

from __future__ import annotations

from typing import NamedTuple


class PrefilterMembers(NamedTuple):
    """The ThreadMembers that checks.Prefilter needs to skip a thread; see there."""

    tid: int | None
    process: int | None
    state: int | None
    apc_queueable: int | None
    apc_state_index: int | None
    kernel_apc_pending: int | None
    system_thread: int | None
    start_address: int | None
    thread_list_flink: int | None
    thread_list_blink: int | None
    apc_kernel_flink: int | None
    apc_kernel_blink: int | None
    apc_user_flink: int | None
    apc_user_blink: int | None
    apc_process: int | None
    saved_process: int | None
    saved_kernel_flink: int | None
    saved_user_flink: int | None
    wait_mode: int | None
    suspend_count: int | None
    kernel_apc_disable: int | None
    special_apc_disable: int | None


class ThreadMembers(NamedTuple):
    """The members of an _ETHREAD as memory holds them; formats.layout maps them to the names in the PDB.

    None is a member that could not be read or that this Windows lacks (Layout.lacks names those). `suspend_apc` is
    the KAPC that suspends the thread: SchedulerApc since Windows 8, SuspendApc before; `teb_apc` is UpdateTebApc.
    This is a named tuple because one is created for every thread of the image; creating a frozen dataclass of this
    size takes eight times as long.
    """

    pid: int | None
    tid: int | None
    dispatcher_type: int | None
    process: int | None
    state: int | None
    wait_reason: int | None
    wait_irql: int | None
    wait_mode: int | None
    wait_state: int | None
    suspend_count: int | None
    freeze_count: int | None
    alertable: int | None
    apc_queueable: int | None
    apc_state_index: int | None
    kernel_apc_disable: int | None
    special_apc_disable: int | None
    terminated: int | None
    termination_request: int | None
    system_thread: int | None
    start_address: int | None
    win32_start_address: int | None
    next_processor: int | None
    kernel_stack: int | None
    initial_stack: int | None
    stack_base: int | None
    stack_limit: int | None
    thread_list_flink: int | None
    thread_list_blink: int | None
    irp_list_flink: int | None
    create_time: int | None
    exit_time: int | None
    apc_kernel_flink: int | None
    apc_kernel_blink: int | None
    apc_user_flink: int | None
    apc_user_blink: int | None
    apc_process: int | None
    kernel_apc_in_progress: int | None
    special_apc_in_progress: int | None
    kernel_apc_pending: int | None
    user_apc_pending: int | None
    saved_kernel_flink: int | None
    saved_kernel_blink: int | None
    saved_user_flink: int | None
    saved_user_blink: int | None
    saved_process: int | None
    suspend_apc_type: int | None
    suspend_apc_size: int | None
    suspend_apc_thread: int | None
    suspend_apc_kernel: int | None
    suspend_apc_rundown: int | None
    suspend_apc_normal: int | None
    suspend_apc_inserted: int | None
    teb_apc_type: int | None
    teb_apc_size: int | None
    teb_apc_thread: int | None
    teb_apc_kernel: int | None
    teb_apc_rundown: int | None
    teb_apc_normal: int | None
