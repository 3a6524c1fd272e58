"""The audit as one value: what other plugins get, and the JSON of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from volatility3.framework import interfaces, renderers
from volatility3.framework.configuration import requirements
from volatility3.plugins.windows.apcaudit import ApcAudit
from volatility3.plugins.windows.apcaudit.output.document import Document

from apcaudit.synthetic import situations
from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.machine import SYSTEM_TIME
from apcaudit.synthetic.scene import Apc, Bugcheck, Process, Scene, Thread, UnloadedDriver
from apcaudit.synthetic.scenes import seed
from apcaudit.synthetic.scenes.common import FLTMGR, HAL
from tests.volatility import CACHE, construct

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])
TIME = 132_000_000_000_000_000


def machine(kernel: str, folder: Path) -> tuple[Image, Path]:
    """Build a machine that a detach stopped: a thread in System attached to a service with an APC queued."""
    stuck = Thread(
        8,
        state="Running",
        running_on=0,
        attached_to="svchost.exe",
        kernel_apc_pending=True,
        kernel_apcs=(Apc(label="stuck"),),
    )
    service = Process("svchost.exe", 1000, (Thread(1004, start=0x1000, system=False),))
    scene = Scene(
        "document",
        "one stuck thread",
        kernel,
        (Process("System", 4, (stuck, Thread(12)), parent=0), service),
        (HAL, FLTMGR),
        (UnloadedDriver("gone.sys", 0xF8A00000, 0xF8A08000),) if kernel.endswith("x86") else (),
        bugcheck=Bugcheck(0x6),
        crashing_thread=8,
    )
    image = build(scene, load_kernel(kernel))
    path = folder / "document.dmp"
    image.write_dump(path)
    return image, path


def audit(kernel: str, folder: Path, **arguments: Any) -> tuple[Image, Document]:
    image, path = machine(kernel, folder)
    plugin = construct(path, "windows.apcaudit.ApcAudit", cache=CACHE, kernel=image.kernel)
    return image, ApcAudit.audit(plugin.context, plugin.config["kernel"], **arguments)


@KERNELS
def test_image_facts(kernel: str, tmp_path: Path) -> None:
    """The document says what the image is: kernel, Windows, processors, clock, crash, drivers, whole views."""
    image, document = audit(kernel, tmp_path)
    facts, own = document.image, image.kernel
    assert (facts.kernel_base, facts.bits, facts.version) == (own.base, 64 if own.is_64bit else 32, own.version)
    assert facts.symbols == f"{own.pdb.name}/{own.pdb.guid}-{own.pdb.age}.json.xz"
    assert (facts.processors, facts.system_time, facts.borrowed_types) == (1, SYSTEM_TIME, None)
    assert facts.bugcheck is not None
    assert (facts.bugcheck.code, facts.crashing_thread) == (0x6, image.address_of[8])
    assert facts.complete == {"processes": True, "modules": True, "cid": True}
    assert {"ntoskrnl.exe", HAL.name, FLTMGR.name} <= {driver.name for driver in facts.drivers}
    assert [driver.name for driver in facts.unloaded] == (["gone.sys"] if kernel.endswith("x86") else [])
    assert (facts.partial, facts.scanned, document.notes) == (False, False, ())


@KERNELS
def test_threads_and_findings(kernel: str, tmp_path: Path) -> None:
    """The document holds the reported threads with their findings, queues and origins, as the rows do."""
    image, document = audit(kernel, tmp_path)
    (audited,) = document.threads
    assert audited.thread.address == image.address_of[8]
    assert {finding.code: str(finding.severity) for finding in audited.findings}["detach-bugcheck"] == "critical"
    (queue,) = audited.thread.queues
    assert [apc.address for apc in queue.apcs] == [image.address_of["apc:stuck"]]
    assert audited.get(queue.apcs[0]).origin is not None


def test_frozen(tmp_path: Path) -> None:
    """Nobody who is handed the document can change it for others."""
    _, document = audit("10-19041-x64", tmp_path)
    with pytest.raises(FrozenInstanceError):
        document.threads = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        document.image.bits = 32  # type: ignore[misc]


KEYS = {
    "document": {"schema", "image", "notes", "threads"},
    "image": {
        "kernel_base",
        "bits",
        "version",
        "symbols",
        "borrowed_types",
        "processors",
        "system_time",
        "up_time",
        "bugcheck",
        "crash",
        "crashing_thread",
        "partial",
        "scanned",
        "complete",
        "lacks",
        "drivers",
        "unloaded",
    },
    "thread": {
        "address",
        "members",
        "owner",
        "attached",
        "views",
        "queues",
        "start",
        "processor",
        "idle",
        "irql",
        "nested_attach",
        "crash",
        "created",
        "exited",
        "yara",
        "yara_hits",
        "stack",
        "severity",
        "findings",
    },
    "queue": {"name", "head", "apcs", "ending", "ended_at", "broken_at"},
    "apc": {
        "address",
        "queue",
        "position",
        "kind",
        "kernel_routine",
        "rundown_routine",
        "normal_routine",
        "apc_mode",
        "inserted",
        "origin",
        "findings",
    },
    "code": {"address", "backing", "text", "module", "symbol"},
    "finding": {"code", "severity", "explanation"},
}
"""What readers of schema 2 rely on; further keys may come."""


def test_json_of_the_seed(tmp_path: Path) -> None:
    """The seed's stack as the post prints it, each frame with how it was found, and where each rule hit."""
    image = tmp_path / "seed.dmp"
    build(seed.scene(), load_kernel("xp-sp3-x86")).write_dump(image)
    plugin = construct(image, "windows.apcaudit.ApcAudit", cache=CACHE)
    document = plugin.audit(plugin.context, plugin.config["kernel"])
    (thread,) = json.loads(document.to_json())["threads"]
    frames = [
        (
            int(frame["address"], 16),
            None if frame["return_address"] is None else int(frame["return_address"], 16),
            tuple(int(argument, 16) for argument in frame["arguments"]),
            frame["code"]["text"],
            frame["how"],
        )
        for frame in thread["stack"]["frames"]
    ]
    found = "frame pointer"
    assert frames == [
        (0xBA6E5BE0, 0x80508D2F, (0x6, 0x8A715818, 0), "nt!KeBugCheck+0x14", "saved"),
        (0xBA6E5C00, 0x8062CFD8, (0xBA6E5C18, 0x8A715818, 0), "nt!KeUnstackDetachProcess+0x118", found),
        (0xBA6E5C50, 0xF745664D, (0x8A3105E8, 0x8A6BDBB0, 1), "nt!MmProbeAndLockProcessPages+0x6a", found),
        (0xBA6E5D54, 0xBA711870, (0x8AB61818, 0xBA71708C, 0xE4446410), "fltMgr!FltSendMessage+0x1db", found),
        (0xBA6E5DAC, 0x80576320, (0, 0, 0), "Bfilter!ScUnInitExcludePath", found),
        (0xBA6E5DDC, 0x804EC7B9, (0xBA7118A0, 0, 0), "nt!PspSystemThreadStartup+0x34", found),
        (0, None, (), "nt!KiThreadStartup+0x16", found),
    ]
    hits = {hit["rule"]: (hit["unit"], hit["at_start"]) for hit in thread["yara_hits"]}
    assert hits == dict.fromkeys(("bfilter_message_sender", "flt_send_from_system_thread"), ("Bfilter", True))


@KERNELS
def test_json_keeps_its_keys(kernel: str, tmp_path: Path) -> None:
    """Schema 2 has these keys at these places, in text that is JSON, whose values to_dict() gives too."""
    image, document = audit(kernel, tmp_path)
    read = json.loads(document.to_json())
    assert read == document.to_dict()
    assert read["schema"] == 2
    (thread,) = read["threads"]
    (queue,) = thread["queues"]
    (apc,) = queue["apcs"]
    places = {
        "document": read,
        "image": read["image"],
        "thread": thread,
        "queue": queue,
        "apc": apc,
        "code": apc["kernel_routine"],
        "finding": thread["findings"][0],
    }
    missing = {(name, key) for name, keys in KEYS.items() for key in keys - places[name].keys()}
    assert missing == set()
    assert (thread["address"], apc["address"]) == (hex(image.address_of[8]), hex(image.address_of["apc:stuck"]))
    assert (thread["severity"], queue["name"], apc["kind"]) == ("critical", "kernel", "special-kernel")
    assert apc["kernel_routine"]["text"] == "nt!IopCompleteRequest"
    assert apc["kernel_routine"]["backing"] == "module"
    assert thread["views"] == ["list", "cid", "cpu"]
    assert (thread["members"]["apc_state_index"], thread["attached"]["pid"]) == (1, 1000)
    # Unknown stays unknown: what XP lacks is null, and the image's facts name it.
    assert (thread["members"]["special_apc_disable"] is None) is kernel.startswith("xp")
    assert ("special_apc_disable" in read["image"]["lacks"]) is kernel.startswith("xp")


@KERNELS
def test_selection(kernel: str, tmp_path: Path) -> None:
    """A caller chooses threads as the options do."""
    from volatility3.plugins.windows.apcaudit.audit import Selection

    _, clean = audit(kernel, tmp_path, selection=Selection(tids=frozenset({12}), clean_too=True))
    assert [each.thread.members.tid for each in clean.threads] == [12]
    _, nothing = audit(kernel, tmp_path, selection=Selection(tids=frozenset({12})))
    assert nothing.threads == ()


class Caller(interfaces.plugins.PluginInterface):
    """Counts threads with findings: another plugin that uses the audit."""

    _required_framework_version = (2, 0, 0)
    _version = (1, 0, 0)
    wanted: ClassVar[tuple[int, int, int]] = (3, 0, 0)

    @classmethod
    def get_requirements(cls) -> list[interfaces.configuration.RequirementInterface]:
        """Require the kernel and a version of the audit."""
        return [
            requirements.ModuleRequirement(name="kernel", architectures=["Intel32", "Intel64"]),
            requirements.VersionRequirement(name="apcaudit", component=ApcAudit, version=cls.wanted),
        ]

    def run(self) -> renderers.TreeGrid:
        """Give a row a code."""
        document = ApcAudit.audit(self.context, self.config["kernel"])
        codes = sorted({finding.code for audited in document.threads for finding in audited.findings})
        return renderers.TreeGrid([("Code", str)], ((0, (code,)) for code in codes))


class TooNew(Caller):
    """Needs a version that does not exist."""

    wanted = (4, 0, 0)


def call(caller: type[Caller], image: Path, cache: Path) -> list[str]:
    """Run another plugin as vol does."""
    plugin = construct(image, caller, cache=cache)
    codes: list[str] = []
    plugin.run().populate(lambda node, _: codes.append(str(node.values[0])), None)
    return codes


@KERNELS
def test_another_plugin_calls_it(kernel: str, tmp_path: Path) -> None:
    """A plugin that declares VersionRequirement for the audit gets its findings."""
    _, path = machine(kernel, tmp_path)
    assert "detach-bugcheck" in call(Caller, path, CACHE)


def test_another_version_is_refused(tmp_path: Path) -> None:
    """A plugin that needs a version of the audit that this is not is not run by vol."""
    from volatility3.framework.exceptions import UnsatisfiedException

    _, path = machine("10-19041-x64", tmp_path)
    with pytest.raises(UnsatisfiedException) as refused:
        call(TooNew, path, CACHE)
    assert "plugins.TooNew.apcaudit" in refused.value.unsatisfied


def test_json_of_a_thread_without_findings(tmp_path: Path) -> None:
    """A clean thread has no findings and severity info."""
    from volatility3.plugins.windows.apcaudit.findings import Audited
    from volatility3.plugins.windows.apcaudit.output.document import thread_json

    from tests.situations_pure import WINDOWS_10, thread

    subject = replace(thread(), owner=None)
    read = json.loads(json.dumps(thread_json(Audited(subject, (), {}), WINDOWS_10)))
    assert (read["severity"], read["findings"], read["queues"], read["owner"]) == ("info", [], [], None)
    # 132,000,000,000,000,000 ticks of 100 ns since 1601, by the calendar.
    assert (read["created"], read["exited"]) == ("2019-04-17T18:40:00.000000+00:00", None)


def numbers(value: Any) -> Iterator[int | float]:
    """Yield all numbers in values of JSON."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, (int, float)):
        yield value


def test_no_number_is_rounded(tmp_path: Path) -> None:
    """Of threads in every situation no number is above 2^53, from where readers of JSON round: addresses are text."""
    from volatility3.plugins.windows.apcaudit.audit import Selection

    scene = situations.scene("10-19041-x64")
    image = build(replace(scene, bugcheck=Bugcheck(0x6)), load_kernel(scene.kernel))
    image.write_dump(tmp_path / "situations.dmp")
    plugin = construct(tmp_path / "situations.dmp", "windows.apcaudit.ApcAudit", cache=CACHE, kernel=image.kernel)
    arguments: dict[str, Any] = {"selection": Selection(clean_too=True, stacks=True), "scan": True}
    read = plugin.audit(plugin.context, plugin.config["kernel"], **arguments).to_dict()
    assert len(read["threads"]) > 50
    assert max(map(abs, numbers(read))) < 1 << 53
    assert read["image"]["kernel_base"] == hex(image.kernel.base)
    assert read["image"]["system_time"] == "2026-01-02T03:04:05.000000+00:00"


@pytest.mark.parametrize(
    ("filetime", "text"),
    [
        (None, None),
        (132_593_079_678_900_000, "2021-03-04T05:06:07.890000+00:00"),
        # No calendar goes as far, and the value is known all the same.
        ((1 << 63) - 1, "0x7fffffffffffffff"),
    ],
)
def test_times_in_json(filetime: int | None, text: str | None) -> None:
    """Times are text in ISO 8601; ticks that no calendar has are hexadecimal."""
    from volatility3.plugins.windows.apcaudit.output.document import time_json

    assert time_json(filetime) == text


def test_the_schema_in_docs_is_that_of_the_types() -> None:
    """docs/document.schema.json is what `python -m docs.schema` makes."""
    from docs import schema

    assert schema.PATH.read_text(encoding="utf-8") == schema.text()


@KERNELS
def test_documents_keep_to_the_schema(kernel: str, tmp_path: Path) -> None:
    """Threads with queues, findings, stacks and none of them are as the published schema says."""
    # Not jsonschema: where that is installed, vol holds every symbol file to a schema, which takes seconds.
    import fastjsonschema
    from volatility3.plugins.windows.apcaudit.audit import Selection

    from docs import schema

    validate = fastjsonschema.compile(json.loads(schema.PATH.read_text(encoding="utf-8")))
    for selection in (None, Selection(clean_too=True, stacks=True)):
        _, document = audit(kernel, tmp_path, selection=selection)
        read = json.loads(document.to_json())
        validate(read)
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        validate({**read, "threads": [{}]})
