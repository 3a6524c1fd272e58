"""The `apcaudit` command: its subcommands, and errors as one line on stderr."""

from __future__ import annotations

import argparse
import sys

from apcaudit import where
from apcaudit.errors import ApcAuditError
from apcaudit.synthetic import command as synth

#: Each module adds its subcommand's parser and sets `run`, a function from the parsed options to an exit code.
COMMANDS = (synth.add_parser, where.add_parser)


def parser() -> argparse.ArgumentParser:
    """Make the command's parser."""
    made = argparse.ArgumentParser(
        prog="apcaudit", description="Audit kernel APC queues of Windows memory images, and make images to test on."
    )
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command; give its exit code: 0, or 1 after an error."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ApcAuditError, OSError) as error:
        print(f"apcaudit: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
