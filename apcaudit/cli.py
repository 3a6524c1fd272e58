"""The entry point of the `apcaudit` command: it runs a subcommand and prints errors as one line on stderr."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable
from typing import NoReturn

from apcaudit import ending, streams
from apcaudit.errors import ApcAuditError
from apcaudit.text import one_line

COMMANDS = {
    "scan": "apcaudit.bulk.scan_command",
    "stack": "apcaudit.bulk.stack_command",
    "export": "apcaudit.bulk.export_command",
    "report": "apcaudit.reports.command",
    "symbols": "apcaudit.bulk.symbols_command",
    "synth": "apcaudit.synthetic.command",
    "show": "apcaudit.show",
    "explain": "apcaudit.explain",
    "where": "apcaudit.where",
}
"""The module of each subcommand, whose `add_parser` adds its parser and sets `run`, from options to an exit code."""


class Parser(argparse.ArgumentParser):
    """A parser that exits with 1 after a wrong command line, since 2 has another meaning in `apcaudit scan`."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong with it."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


class _Version(argparse.Action):
    """Prints the versions of the programs that results depend on; it imports vol, which takes a moment."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the versions of apcaudit and what it uses")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print a line a program."""
        from apcaudit.bulk import provenance

        print(*provenance.versions(), sep="\n")
        parser.exit()


def parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Make the command's parser, with the subcommands of these names."""
    made: argparse.ArgumentParser = Parser(
        prog="apcaudit", description="Audit kernel APC queues of Windows memory images, and make images to test on."
    )
    made.add_argument("--version", action=_Version)
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in names:
        importlib.import_module(COMMANDS[name]).add_parser(commands)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 1 after an error or without a subcommand, else the subcommand's."""
    streams.prepare()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser().print_help(sys.stderr)
        return 1
    # All commands together take longer to load than most of them take to run.
    chosen = [name for name in arguments[:1] if name in COMMANDS] or COMMANDS
    try:
        options = parser(chosen).parse_args(arguments)
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
