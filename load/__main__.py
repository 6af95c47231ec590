"""``python -m load``: compare precisions under load, or open Locust's web page."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from base.errors import OperatorError
from client.errors import SegmentationError
from load import compare_command, ui_command
from pipeline import command_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 if it failed, a condition held, or requests failed; 2 for a wrong command line.
    """
    command_line.prepare()
    parser = command_line.Parser(prog="python -m load", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (compare_command, ui_command):
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    failures = (OperatorError, SegmentationError, OSError)
    return command_line.exit_status(lambda: int(options.run(options)), failures, wrong_usage=(ValueError,))


if __name__ == "__main__":
    sys.exit(main())
