"""Rules that cannot be used stop the plugin before the image is opened, and those that can are read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from volatility3.framework.exceptions import UnsatisfiedException

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scenes import seed
from tests.signed_drivers import write
from tests.volatility import CACHE, construct, rows


@pytest.mark.parametrize("option", ["yara_file", "yara_compiled_file"])
def test_rules_that_cannot_be_used_stop_the_plugin(option: str, tmp_path: Path) -> None:
    """Vol does not run the plugin, and prints what is wrong with the rules."""
    image = tmp_path / "seed.dmp"
    build(seed.scene(), load_kernel("xp-sp3-x86")).write_dump(image)
    rules = write(tmp_path, "bad.yar", "rule a {\n condition: nothing }")
    with pytest.raises(UnsatisfiedException) as caught:
        construct(image, "windows.apcaudit.ApcAudit", cache=CACHE, **{option: rules})
    (requirement,) = caught.value.unsatisfied.values()
    assert requirement.description.startswith(f"{rules}:2: " if option == "yara_file" else f"{rules}: no compiled")
    assert list(caught.value.unsatisfied) == [f"plugins.ApcAudit.{option.replace('_', '-')}"]


def test_rules_that_cannot_be_used_come_before_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vol opens no image, however large, for rules that do not compile, and tells of nothing else."""
    from volatility3.framework.layers.physical import FileLayer

    opened: list[str] = []
    monkeypatch.setattr(FileLayer, "_file", property(lambda layer: opened.append(layer.name)))
    image = tmp_path / "none.raw"
    image.write_bytes(bytes(0x10000))
    rules = write(tmp_path, "bad.yar", "rule a {\n condition: nothing }")
    with pytest.raises(UnsatisfiedException) as caught:
        construct(image, "windows.apcaudit.ApcAudit", cache=CACHE, yara_file=rules)
    assert list(caught.value.unsatisfied) == ["plugins.ApcAudit.yara-file"]
    assert opened == []


def test_rules_are_read_when_they_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vol asks ten times whether rules can be used: they are read once for that, and again when they have changed."""
    from volatility3.plugins.windows.apcaudit.signatures import rules as rules_module

    read: list[object] = []
    gather = rules_module.gather

    def counting(options: Any) -> Any:
        read.append(options)
        return gather(options)

    monkeypatch.setattr(rules_module, "gather", counting)
    image = tmp_path / "seed.dmp"
    build(seed.scene(), load_kernel("xp-sp3-x86")).write_dump(image)
    path = write(tmp_path, "own.yar", "rule first { condition: true }")
    arguments = {"cache": CACHE, "yara_file": path, "no_default_rules": True, "wide": True}
    assert [row["Yara"] for row in rows(image, **arguments)] == ["first"]
    assert 2 <= len(read) <= 3
    write(tmp_path, "own.yar", "rule second { condition: true }")
    assert [row["Yara"] for row in rows(image, **arguments)] == ["second"]
    write(tmp_path, "own.yar", "rule third { condition: truth }")
    with pytest.raises(UnsatisfiedException):
        rows(image, **arguments)
    write(tmp_path, "own.yar", "rule third { condition: true }")
    assert [row["Yara"] for row in rows(image, **arguments)] == ["third"]
