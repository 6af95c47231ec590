import json
import socket
import subprocess
import sys
import time

import pytest

from load import generator
from load.errors import LoadError
from load.generator import run_step
from load.options import UserOptions
from load.payloads import Payload
from load.results import Load, StepSpec

PAYLOADS = (Payload("one", b"\x00\x01", (4, 5), 3), Payload("two", b"", (6, 7)))


def spec(url, protocol="grpc", duration_s=1.0, timeout_s=1.0):
    return StepSpec("int8", protocol, url, Load(2), 0, 0.0, duration_s, PAYLOADS, UserOptions(timeout_s=timeout_s))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_no_server_is_reported_as_failures_and_ends(protocol):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{unused.getsockname()[1]}"
        values = run_step(spec(url, protocol=protocol))
    assert set(values["kinds"]) == {"unavailable"}
    assert values["locust_requests"] == values["locust_failures"] == len(values["kinds"]) < 30


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_never_answers_times_out(protocol):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        values = run_step(spec(url, protocol=protocol, duration_s=0.5))
    assert values["kinds"]
    assert set(values["kinds"]) <= {"timeout", "unavailable"}


def test_a_generator_that_outlasts_its_time_is_killed(monkeypatch):
    monkeypatch.setattr(generator, "GRACE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(LoadError, match="did not end within"):
            run_step(spec(url, duration_s=0.1, timeout_s=0.1))
    assert time.monotonic() - started < 10


def test_a_generator_that_fails_says_why():
    with pytest.raises(LoadError, match="KeyError: 'soap'"):
        run_step(spec("127.0.0.1:1", protocol="soap"))


# A process of its own, because Locust changes the standard library.
STOPPED_WORKER = """
import json
from locust.env import Environment
from locust.runners import WorkerRunner
from locust.stats import setup_distributed_stats_event_listeners
from load import locustfile

sent = []
runner = object.__new__(WorkerRunner)
runner.client_id = "one"
runner.send_message = lambda kind, data: sent.append([kind, data["stats_total"]["num_requests"]])
environment = Environment(stop_timeout=35.0)
environment.runner = runner
setup_distributed_stats_event_listeners(environment.events, environment.stats)
environment.stats.log_request("grpc", "segment_int8", 40, 1000)
locustfile._ended(environment)
print(json.dumps([sent, environment.stop_timeout]))
"""


def test_a_worker_reports_its_last_requests_before_it_says_that_it_has_stopped():
    done = subprocess.run([sys.executable, "-c", STOPPED_WORKER], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[["stats", 1]], 0.0]
