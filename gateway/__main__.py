"""``python -m gateway``: the bounded HTTP front of a tritonserver."""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from base.allocator import keep_large_blocks
from gateway.app import run
from gateway.tracing import Tracing, TracingError, asked_for
from pipeline import command_line
from pipeline.api_key import read_key


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 if the port cannot be listened on, or the API key cannot be read; 2 for a wrong command line.
    """
    command_line.prepare()
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except OSError as error:
        print(
            f"error: {options.host}:{options.http_port}: {error}; choose another --host or --http-port", file=sys.stderr
        )
        return 1


def _run(options: argparse.Namespace) -> int:
    keep_large_blocks()
    key = None
    if options.api_key_file is not None:
        try:
            key = read_key(options.api_key_file).encode()
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if options.http_fd is not None:
        listener = socket.socket(fileno=options.http_fd)
    else:
        listener = socket.create_server((options.host, options.http_port), backlog=1024)
        host, port = listener.getsockname()[:2]
        print(f"http://{host}:{port}/ answered by gRPC {options.grpc_url}; Ctrl-C stops", flush=True)
    asyncio.run(run(listener, options.grpc_url, api_key=key, tracing=_tracing()))
    return 0


def _tracing() -> Tracing | None:
    """Traces, where they are asked for and can be sent; a front without them is better than none."""
    try:
        return Tracing() if asked_for() else None
    except (TracingError, ImportError) as error:
        print(f"no traces: {error}", file=sys.stderr)
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gateway", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    running = commands.add_parser("run", help="answer HTTP requests out of tritonserver's gRPC API, until Ctrl-C")
    running.add_argument("--grpc-url", default="127.0.0.1:8001", metavar="HOST:PORT", help="default: 127.0.0.1:8001")
    running.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    running.add_argument("--http-port", type=int, default=8000, metavar="N", help="0 takes a free one (default: 8000)")
    running.add_argument("--http-fd", type=int, metavar="N", help="a socket that listens already, in place of both")
    running.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="ask callers for the key in it (default: none)"
    )
    running.set_defaults(run=_run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
