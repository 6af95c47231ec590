"""A real tritonserver with real versions of the reference model, made once per test run."""

from __future__ import annotations

import pytest
from rich.console import Console

from builder.build import build
from builder.progress import Steps
from builder.reference import fetch_reference
from builder.settings import load_settings
from serving.server import ServerOptions, TritonServer


@pytest.fixture(scope="session")
def reference():
    return fetch_reference()


@pytest.fixture(scope="session")
def repository(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "repository"
    # A quarter of the usual scenes: the tests compare with the photographs, not with the gates' margins.
    settings = {"repository": path, "calibration.scenes": 32, "verification.scenes": 32}
    build(load_settings(None, settings), Steps(Console(quiet=True)))
    return path


@pytest.fixture(scope="session")
def server(repository):
    with TritonServer(ServerOptions(repository, http_port=0, grpc_port=0, metrics_port=0)) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@pytest.fixture
def url(server, protocol):
    return server.grpc_url if protocol == "grpc" else server.http_url
