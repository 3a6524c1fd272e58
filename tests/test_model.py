"""The values that pass between the stages."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest
from volatility3.plugins.windows.apcaudit import model
from volatility3.plugins.windows.apcaudit.findings import Severity
from volatility3.plugins.windows.apcaudit.model import Apc, Ending, Process, Queue, QueueName

from tests.situations_pure import KERNEL_HEAD, code, normal, special, thread, user


def test_severities_are_ordered() -> None:
    """Critical is above high, medium, low and info, and each prints as in the vocabulary."""
    assert [str(severity) for severity in sorted(Severity)] == ["info", "low", "medium", "high", "critical"]
    assert max(Severity.LOW, Severity.CRITICAL, Severity.HIGH) is Severity.CRITICAL


@pytest.mark.parametrize(
    ("name", "text", "mode", "saved"),
    [
        (QueueName.KERNEL, "kernel", 0, False),
        (QueueName.USER, "user", 1, False),
        (QueueName.SAVED_KERNEL, "saved-kernel", 0, True),
        (QueueName.SAVED_USER, "saved-user", 1, True),
        (QueueName.OFF_LIST, "off-list", None, False),
    ],
)
def test_lists(name: QueueName, text: str, mode: int | None, saved: bool) -> None:
    """A list has the column's name, the ApcMode that belongs on it, and the APC state that holds it."""
    assert (name.value, name.mode, name.saved) == (text, mode, saved)


@pytest.mark.parametrize(
    ("apc", "kind"),
    [
        pytest.param(special(), "special-kernel", id="kernel mode without a NormalRoutine"),
        pytest.param(normal(), "normal-kernel", id="kernel mode with a NormalRoutine"),
        pytest.param(user(), "user", id="user mode"),
        pytest.param(user(normal_routine=None), "user", id="user mode, NormalRoutine unreadable"),
        pytest.param(normal(apc_mode=None), None, id="ApcMode unreadable"),
        pytest.param(normal(normal_routine=None), None, id="kernel mode, NormalRoutine unreadable"),
    ],
)
def test_kinds_of_apcs(apc: Apc, kind: str | None) -> None:
    """A special kernel APC has NormalRoutine 0, a normal one has not; what is unknown has no kind."""
    assert apc.kind == kind


@pytest.mark.parametrize(
    ("apcs", "ending", "broken_at", "intact", "empty"),
    [
        ((), Ending.CLOSED, None, True, True),
        ((special(),), Ending.CLOSED, None, True, False),
        ((), Ending.CLOSED, KERNEL_HEAD, False, False),
        ((), Ending.UNREADABLE, None, False, False),
        ((special(),), Ending.CYCLE, None, False, False),
        ((special(),), Ending.MISALIGNED, None, False, False),
        ((special(),), Ending.BOUND, None, False, False),
    ],
)
def test_a_damaged_list_is_neither_intact_nor_empty(
    apcs: tuple[Apc, ...], ending: Ending, broken_at: int | None, intact: bool, empty: bool
) -> None:
    """Only a list whose every link agrees is intact, and only an intact one without an APC is empty."""
    queue = Queue(QueueName.KERNEL, KERNEL_HEAD, apcs, ending, KERNEL_HEAD, broken_at)
    assert (queue.intact, queue.empty) == (intact, empty)


def test_a_thread_knows_its_lists_by_name() -> None:
    """A thread gives the list asked for, None where that list is quiet."""
    subject = thread(kernel=[normal()], user=[user()])
    kernel = subject.queue(QueueName.KERNEL)
    assert kernel is not None
    assert [apc.kind for apc in kernel.apcs] == ["normal-kernel"]
    assert subject.queue(QueueName.SAVED_KERNEL) is None


@pytest.mark.parametrize(
    ("process", "text"),
    [
        (Process(0x8A6BDBB0, 1172, "BAVSvc.exe"), "BAVSvc.exe (1172)"),
        (Process(0x8A6BDBB0, 0, "Idle"), "Idle (0)"),
        (Process(0x8A6BDBB0, None, "BAVSvc.exe"), "BAVSvc.exe (?)"),
        (Process(0x8A6BDBB0, None, None), "0x8a6bdbb0 (?)"),
    ],
)
def test_a_process_prints_as_name_and_pid(process: Process, text: str) -> None:
    """A process prints as name and PID; what is unknown of it shows as unknown."""
    assert str(process) == text


def test_values_are_frozen() -> None:
    """No stage can change what another has read."""
    apc = special()
    with pytest.raises(FrozenInstanceError):
        apc.inserted = 0  # type: ignore[misc]
    assert replace(apc, inserted=0) != apc
    assert str(code(0x1000, text="nt!X")) == "nt!X"


def test_every_class_of_values_is_frozen_and_slotted() -> None:
    """Every dataclass of the model is frozen and has slots."""
    classes = [value for value in vars(model).values() if is_dataclass(value) and isinstance(value, type)]
    assert len(classes) >= 9
    for value in classes:
        assert value.__dataclass_params__.frozen, value
        slots = {name for each in value.__mro__ for name in getattr(each, "__slots__", ())}
        assert slots == {field.name for field in fields(value)}, value
