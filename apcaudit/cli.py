"""The `apcaudit` command: its subcommands, and errors as one line on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from apcaudit import ending, show, streams, where
from apcaudit.bulk import export_command as export
from apcaudit.bulk import scan_command as scan
from apcaudit.bulk import stack_command as stack
from apcaudit.bulk import symbols_command as symbols
from apcaudit.errors import ApcAuditError
from apcaudit.reports import command as report
from apcaudit.synthetic import command as synth
from apcaudit.text import one_line

#: Each module adds its subcommand's parser and sets `run`, a function from the parsed options to an exit code.
COMMANDS = (
    scan.add_parser,
    stack.add_parser,
    export.add_parser,
    report.add_parser,
    symbols.add_parser,
    synth.add_parser,
    show.add_parser,
    where.add_parser,
)


class Parser(argparse.ArgumentParser):
    """A parser that exits with 1 on an error in use: 2 has a meaning of its own in `apcaudit scan`."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong with it."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Make the command's parser."""
    made: argparse.ArgumentParser = Parser(
        prog="apcaudit", description="Audit kernel APC queues of Windows memory images, and make images to test on."
    )
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command; give its exit code: 1 after an error, else the subcommand's."""
    streams.prepare()
    try:
        options = parser().parse_args(arguments)
        with ending.in_order():
            code = int(options.run(options))
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has had enough, as `head` does.
        _end_stdout()
        return 1
    except KeyboardInterrupt:
        print("apcaudit: interrupted", file=sys.stderr)
        return 1
    except (ApcAuditError, OSError) as error:
        print(f"apcaudit: {one_line(str(error))}", file=sys.stderr)
        _end_stdout()
        return 1
    return code


def _end_stdout() -> None:
    """Let nothing be left that Python would try to write at its end, to complain once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
