"""What is deployed, without a container engine: the services' commands, and the images' steps, on this machine."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from base.names import ADMIN_HEADER
from client import SegmentationClient
from repository.live import GRPC_ADMIN_HEADER
from serving.stubs import StubFinder
from tests.compose import ROOT, resolved
from tests.dockerfiles import stages
from tests.processes import below

pytestmark = pytest.mark.server

PORTS = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
SERVING = {stage.name: stage for stage in stages(ROOT / "serving/Dockerfile")}


@contextmanager
def started(command, environment, cwd=ROOT):
    """A server started by a command; yields its process and where it listens."""
    process = subprocess.Popen(
        command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        found = {}
        for line in process.stdout:
            found.update(re.findall(r"(HTTP|gRPC) (127\.0\.0\.1:\d+)", line))
            if "Ctrl-C stops" in line:
                break
        assert set(found) == {"HTTP", "gRPC"}, "the server did not become ready"
        yield process, found["HTTP"], found["gRPC"]
    finally:
        process.kill() if process.poll() is None else None
        process.wait()


def substituted(words, places):
    """Words with the paths of a container replaced, in one pass, so that nothing is replaced twice."""
    pattern = re.compile("|".join(re.escape(place) for place in sorted(places, key=len, reverse=True)))
    return [pattern.sub(lambda found: str(places[found[0]]), word) for word in words]


@pytest.fixture(params=["gpu", "cpu"])
def service(request, repository, tmp_path):
    """The server of one stack: its resolved form, process and urls; the GPU's with the profile cpu."""
    config = resolved(stack=request.param, SEGMENTATION_PROFILE="cpu")["services"]["triton"]
    stage = SERVING[request.param]
    places = {
        "/models": repository,
        "/run/segmentation": tmp_path,
        "/tmp/segmentation": tmp_path / "cache",  # noqa: S108 - of the image
        "0.0.0.0": "127.0.0.1",  # noqa: S104 - of the service
    }
    entry = [sys.executable, *json.loads(stage.all("ENTRYPOINT")[0])[1:]]
    image = {name: value for name, value in stage.environment().items() if name in ("PYTHONUNBUFFERED",)}
    environment = {**os.environ, **image, **config.get("environment", {})}
    words = [word for word in config["command"] if not word.startswith("--published")]
    with started([*entry, *substituted(words, places), *PORTS], environment) as (
        process,
        http_url,
        grpc_url,
    ):
        yield config, process, http_url, grpc_url, tmp_path / "admin_secret"


def test_a_service_segments_guards_its_control_and_stops_in_time(service, reference):
    config, process, http_url, grpc_url, secret_file = service
    for protocol, url in (("http", http_url), ("grpc", grpc_url)):
        with SegmentationClient(url, protocol, "int8") as client:
            assert len(client.segment(reference.photographs[0])) >= 1

    # The secret was made at the first start, for its owner's eyes alone.
    secret = secret_file.read_text().strip()
    assert secret_file.stat().st_mode & 0o777 == 0o600
    assert restricted_over_http(http_url, {}) == http.client.FORBIDDEN
    assert restricted_over_http(http_url, {ADMIN_HEADER: "wrong"}) == http.client.FORBIDDEN
    assert restricted_over_http(http_url, {ADMIN_HEADER: secret}) == http.client.FORBIDDEN  # gRPC only
    control = tritonclient.grpc.InferenceServerClient(grpc_url)
    with pytest.raises(InferenceServerException, match="expecting header"):
        control.get_model_repository_index()
    assert control.get_model_repository_index(headers={GRPC_ADMIN_HEADER: secret}).models
    control.close()

    # The instance counts are those of the service, not those of the repository.
    counts = dict(re.findall(r"--(preprocess|postprocess)-instances=(\d+)", " ".join(config["command"])))
    for model, count in counts.items():
        assert len(stubs(process.pid, model)) == int(count)

    # The health check, where the ports are.
    test = [sys.executable, *substituted(config["healthcheck"]["test"][2:], {"127.0.0.1:8000": http_url})]
    assert subprocess.run(test, check=False).returncode == 0

    started_at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert time.monotonic() - started_at < int(config["stop_grace_period"].removesuffix("s"))
    assert subprocess.run(test, check=False, stderr=subprocess.DEVNULL).returncode != 0


def restricted_over_http(url, headers):
    host, port = url.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("POST", "/v2/repository/index", headers=headers)
    return connection.getresponse().status


def stubs(pid, model):
    return [stub for server in tritonservers(pid) for stub in StubFinder(server.pid).find() if stub.model == model]


def tritonservers(pid):
    return below(pid, "tritonserver")
