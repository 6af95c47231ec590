"""``python -m demo``: build, serve and segment the reference photographs in every precision over both protocols."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from base.errors import OperatorError
from base.paths import local_path
from client.errors import SegmentationError
from demo.run import run_demo
from pipeline import command_line
from repository.store import SHIPPED_REPOSITORY
from serving.server import add_port_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration.

    Returns:
        0; 1 if it failed (the fault and its remedy are on standard error).
    """
    command_line.prepare()
    parser = command_line.Parser(prog="python -m demo", description=__doc__)
    parser.add_argument("--repository", type=local_path, default=SHIPPED_REPOSITORY, help="model repository")
    parser.add_argument("--out", type=local_path, default=Path("out"), help="where overlays and JSON go (default: out)")
    add_port_arguments(parser)
    options = parser.parse_args(arguments)
    ports = options.http_port, options.grpc_port, options.metrics_port
    return command_line.exit_status(
        lambda: run_demo(options.repository, options.out, ports), (OperatorError, SegmentationError)
    )


if __name__ == "__main__":
    sys.exit(main())
