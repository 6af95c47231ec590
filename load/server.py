"""The server under test: a running one, or one that is started for the test."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from base.paths import local_path
from load.compare import Endpoints
from load.options import add_url_arguments, checked_url_of
from pipeline import contract
from repository.running import running_servers
from repository.store import SHIPPED_REPOSITORY
from serving.server import ServerOptions, TritonServer, add_port_arguments


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where the server is, or which to start."""
    group = parser.add_argument_group("server", "without a url, one is started for as long as this takes")
    group.add_argument("--repository", type=local_path, help=f"model repository (default: {SHIPPED_REPOSITORY.name})")
    group.add_argument("--profile", choices=contract.PROFILES, default="cpu", help="of the server to start (cpu)")
    add_port_arguments(group)
    add_url_arguments(group, defaults=False)
    group.add_argument("--url-metrics", default="", help="HOST:PORT of its metrics, for CPU, memory and GPU")


@contextmanager
def server_under_test(
    options: argparse.Namespace, protocols: Sequence[str], precisions: Sequence[str] | None
) -> Iterator[tuple[Endpoints, dict[str, Any]]]:
    """Where the server listens, and its description for the report.

    Raises:
        ValueError: a url is missing or has another form than ``host:port``.
        ServingError: a server cannot be started.
    """
    given = {name: getattr(options, f"url_{name}") for name in ("grpc", "http") if getattr(options, f"url_{name}")}
    if given:
        missing = [protocol for protocol in protocols if protocol not in given]
        if missing:
            raise ValueError(f"--url-{missing[0]} is missing; give it too, or leave {missing[0]} out of --protocols")
        urls = {protocol: checked_url_of(protocol, url) for protocol, url in given.items()}
        metrics, repository = options.url_metrics or None, options.repository
        for server in running_servers():
            # A server of this machine: its repository and its metrics endpoint are recorded.
            if urls.get("grpc") == server.grpc or urls.get("http") == server.http:
                metrics, repository = metrics or server.metrics, repository or Path(server.repository)
        yield Endpoints(urls, metrics, repository), {"started by": "someone else", **urls}
        return
    repository = options.repository or SHIPPED_REPOSITORY
    wanted = tuple(dict.fromkeys(precisions)) if precisions is not None else None
    ports = {name: getattr(options, name) for name in ("http_port", "grpc_port", "metrics_port")}
    settings = ServerOptions(repository, options.profile, wanted, **ports)
    with TritonServer(settings) as started:
        urls = {"grpc": started.grpc_url, "http": started.http_url}
        described = {"started by": "this command", "profile": options.profile, **urls}
        yield Endpoints(urls, started.metrics_url, repository), described
