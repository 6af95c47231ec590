"""``python -m serving run`` with a server that dies: started again where it was, or given up with a clear message."""

from __future__ import annotations

import os
import signal

import pytest
import tritonclient.grpc

from repository.live import GRPC_ADMIN_HEADER
from tests.chaos.faults_service import Service

pytestmark = pytest.mark.server

SECRET = "0123456789abcdef0123456789abcdef"
READY_AGAIN_S = 180
# Far longer than any machine takes to end a process.
LONG_PAUSES = """
import sys
from serving.restarts import RestartPolicy
RestartPolicy.pause_s = lambda policy, restart: 600.0
from serving.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def start(repository, tmp_path):
    """Starts the command, with a secret that is known here; it runs until the end of the test."""
    (tmp_path / "secret").write_text(SECRET)
    services = []

    def service(*options, **more):
        options = ("--precisions=int8", f"--admin-secret-file={tmp_path / 'secret'}", *options)
        services.append(Service(repository, *options, **more))
        return services[-1].__enter__()

    yield service
    for each in services:
        each.stop()


def answers(url):
    with tritonclient.grpc.InferenceServerClient(url) as client:
        index = client.get_model_repository_index(headers={GRPC_ADMIN_HEADER: SECRET}, client_timeout=10)
        return "segment_int8" in [model.name for model in index.models if model.state == "READY"]


def test_a_killed_server_comes_back_on_the_same_ports_with_the_same_secret(start):
    service = start()
    before = service.server
    assert answers(before.grpc)
    os.kill(before.pid, signal.SIGKILL)
    service.wait_said("tritonserver ended by signal SIGKILL; starting it again", READY_AGAIN_S)
    service.wait_said("tritonserver is ready again", READY_AGAIN_S)
    assert service.server.pid != before.pid
    assert answers(before.grpc)
    assert service.stop() == 0


def test_a_server_that_cannot_stay_up_is_given_up(start):
    service = start("--restarts=1")
    os.kill(service.server.pid, signal.SIGKILL)
    service.wait_said("tritonserver is ready again", READY_AGAIN_S)
    os.kill(service.server.pid, signal.SIGKILL)
    assert service.process.wait(40) == 1
    service.wait_said("error: tritonserver ended by signal SIGKILL, 2 times without staying up for 60 s; giving up", 10)


def test_a_signal_ends_a_pause_at_once(start):
    service = start("--restarts=5", program=("-c", LONG_PAUSES))
    os.kill(service.server.pid, signal.SIGKILL)
    service.wait_said(r"starting it again in \d{3,}\.\d s \(restart 1 of 5\)", READY_AGAIN_S)
    assert service.stop() == 0
