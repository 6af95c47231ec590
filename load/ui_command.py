"""``python -m load ui``: Locust's web page, with a server to load."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Final

from base.interpreter import PYTHON
from load.errors import LoadError
from load.generator import environment
from load.server import add_server_arguments, server_under_test
from serving.lifetime import end_with, interruptible

_LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
_STOP_S: Final = 40.0  # its users finish the requests that they are at


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("ui", help="open Locust's web page on a server", description=__doc__)
    add_server_arguments(parser)
    parser.add_argument("--web-host", default="127.0.0.1", help="address of the page (default: 127.0.0.1)")
    parser.add_argument("--web-port", type=int, default=8089, help="port of the page (default: 8089)")
    parser.add_argument("locust", nargs=argparse.REMAINDER, help="behind --: options of Locust's own")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run Locust until it ends, or this process is interrupted or terminated; returns its exit status.

    Raises:
        LoadError: it was asked to end and did not.
    """
    more = options.locust[1:] if options.locust[:1] == ["--"] else options.locust
    with interruptible(), server_under_test(options, (), None) as (endpoints, _):
        urls = [f"--url-{protocol}={url}" for protocol, url in endpoints.urls.items()]
        print(f"Locust's page: http://{options.web_host}:{options.web_port}   Ctrl-C stops", flush=True)
        web = [f"--web-host={options.web_host}", f"--web-port={options.web_port}", "--class-picker"]
        command = [*PYTHON, "-m", "locust", "-f", str(_LOCUSTFILE), *web, *urls, *more]
        parent = os.getpid()
        process = subprocess.Popen(command, env=environment(), preexec_fn=lambda: _follow(parent))  # noqa: PLW1509
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            try:
                # Before it listens to signals, it ends by this one.
                return max(process.wait(_STOP_S), 0)
            except subprocess.TimeoutExpired:
                raise LoadError(f"Locust did not end within {_STOP_S:.0f} s and was killed") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _follow(parent: int) -> None:
    """End with the parent, by its signal only: a terminal sends Ctrl-C to both, and two would cut the end short."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
