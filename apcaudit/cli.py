"""The entry point of the `apcaudit` command: it runs a subcommand and prints errors as one line on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from apcaudit import ending, explain, show, streams, where
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
    explain.add_parser,
    where.add_parser,
)


class Parser(argparse.ArgumentParser):
    """A parser that exits with 1 after a wrong command line, since 2 has another meaning in `apcaudit scan`."""

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
    """Run the command; return its exit code: 1 after an error, else the subcommand's."""
    streams.prepare()
    try:
        options = parser().parse_args(arguments)
        with ending.in_order():
            code = int(options.run(options))
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has closed it, as `head` does.
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
    """Flush stdout or drop its content, so that Python does not fail to flush it at exit and report that too."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
