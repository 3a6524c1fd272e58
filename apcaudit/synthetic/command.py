"""`apcaudit synth`: a scene built into an image file."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from apcaudit import output
from apcaudit.errors import ApcAuditError
from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import OWN, load_kernel
from apcaudit.synthetic.scene import Scene
from apcaudit.synthetic.scenes import SCENES


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "synth",
        help="make a memory image of a synthetic Windows machine",
        description="Make a memory image of a synthetic Windows machine, to test detections on.",
    )
    parser.add_argument("scene", nargs="?", metavar="SCENE", help="what the machine holds; --list names the scenes")
    parser.add_argument("-o", "--output", type=Path, metavar="IMAGE", help="file to write")
    parser.add_argument("--format", choices=("raw", "dump"), default="raw", help="raw memory, or a full crash dump")
    parser.add_argument("--kernel", metavar="NAME", help="kernel by name, or a symbol file (.json.xz); see --list")
    parser.add_argument("--threads", type=int, metavar="N", help="thread count, for scenes that have one")
    parser.add_argument("--implant", action="store_true", help="plant one implant, in scenes that can have one")
    parser.add_argument("--list", action="store_true", help="list scenes and kernels")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Build a scene and write it, or list what there is."""
    if options.list:
        _list()
        return 0
    if options.scene is None or options.output is None:
        raise ApcAuditError("synth needs a SCENE and -o IMAGE (or --list)")
    scene = declare(options.scene, options.kernel, options.threads, implant=options.implant)
    with output.writing(options.output) as file:
        image = build(scene, load_kernel(scene.kernel))
        (image.stream_dump if options.format == "dump" else image.stream_raw)(file)
    return 0


def declare(name: str, kernel: str | None, threads: int | None, *, implant: bool = False) -> Scene:
    """Declare a scene by name; what is None is the scene's own default."""
    if name not in SCENES:
        raise ApcAuditError(f"no scene {name}: give one of {', '.join(SCENES)}")
    arguments = {"kernel": kernel, "threads": threads, "implant": implant or None}
    given: dict[str, object] = {key: value for key, value in arguments.items() if value is not None}
    unknown = given.keys() - inspect.signature(SCENES[name]).parameters.keys()
    if unknown:
        raise ApcAuditError(f"scene {name} takes no --{', --'.join(sorted(unknown))}")
    return SCENES[name](**given)


def _list() -> None:
    for name, declared in SCENES.items():
        scene = declared()
        print(f"{name:12} {scene.description} (kernel {scene.kernel})")
    print(f"kernels      {' '.join(OWN)}, or a symbol file")
