"""What is done about processes that died or hang. The server is a stand-in; tests/integration break the real one."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from serving import watch
from serving.errors import ServingError
from serving.restarts import RestartPolicy
from serving.stubs import Stub
from serving.watch import Health, StallWatch, StubKeeper, watch_over
from tests.unit.clock import Clock

POLICY = RestartPolicy(restarts=3, first_s=1.0, most_s=30.0, steady_s=60.0)
DEAD = Stub(7, "preprocess", "1", "preprocess_0_0")


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


class Stubs:
    """Reports as dead what it is given, until that is replaced."""

    def __init__(self):
        self.dead, self.replaced, self.killed, self.fault = [], [], [], None

    def poll(self):
        if isinstance(self.fault, Exception):
            raise self.fault
        return list(self.dead)

    def replace(self, stub):
        if self.fault:
            raise ServingError(self.fault)
        self.replaced.append(stub)
        self.dead = []

    def kill(self, model):
        self.killed.append(model)
        return model != "network_fp32"


@pytest.fixture
def stubs():
    return Stubs()


@pytest.fixture
def said():
    return []


@pytest.fixture
def keeper(clock, stubs, said):
    return StubKeeper(stubs, POLICY, said.append)


def test_the_first_dead_process_is_replaced_at_once(keeper, stubs, said):
    stubs.dead = [DEAD]
    assert keeper.look() is None
    assert stubs.replaced == [DEAD]
    assert said == ["process 7 of preprocess died; the model was loaded again in 0.0 s"]


def test_deaths_in_a_row_are_followed_by_replacements_after_growing_pauses_then_not_at_all(keeper, stubs, clock):
    for bound in (0.0, 1.0, 2.0):
        stubs.dead = [DEAD]
        count = len(stubs.replaced)
        keeper.look()
        if bound:
            assert len(stubs.replaced) == count
            clock.now += bound
            keeper.look()
        assert len(stubs.replaced) == count + 1
    stubs.dead = [DEAD]
    assert keeper.look() == "processes of preprocess died 4 times in a row"


def test_a_death_after_a_steady_time_counts_as_the_first(keeper, stubs, clock):
    for _ in range(10):
        stubs.dead = [DEAD]
        assert keeper.look() is None
        clock.now += POLICY.steady_s
    assert len(stubs.replaced) == 10


def test_the_server_is_started_again_once_it_holds_what_many_dead_processes_left(keeper, stubs, clock):
    for _ in range(watch.MOST_REPLACED):
        stubs.dead = [DEAD]
        assert keeper.look() is None
        clock.now += POLICY.steady_s
    stubs.dead = [DEAD]
    assert keeper.look() == "process 7 of preprocess died, the 17th since tritonserver was started"


def test_a_model_that_cannot_be_loaded_again_is_a_case_for_a_restart(keeper, stubs):
    stubs.dead, stubs.fault = [DEAD], "no such file"
    assert keeper.look() == "process 7 of preprocess died, and no such file"


def test_a_server_that_does_not_say_what_it_serves_is_a_case_for_a_restart(keeper, stubs):
    stubs.fault = ServingError("it could not list its models")
    assert keeper.look() == "it could not list its models"


def metrics(waiting, done, model="network_int8"):
    return (
        f'nv_inference_pending_request_count{{model="{model}",version="1"}} {waiting}\n'
        f'nv_inference_exec_count{{model="{model}",version="1"}} {done}\n'
        f'nv_inference_request_failure{{model="{model}",reason="OTHER",version="1"}} 0\n'
    )


def test_only_requests_that_wait_while_nothing_moves_are_a_stall():
    stalls = StallWatch(30.0)
    assert stalls.stalled(metrics(3, 5), 0.0) == []
    assert stalls.stalled(metrics(3, 6), 29.0) == []  # it moved
    assert stalls.stalled(metrics(3, 6), 58.0) == []
    assert stalls.stalled(metrics(0, 6), 60.0) == []  # nothing waits
    assert stalls.stalled(metrics(2, 6), 62.0) == []
    assert stalls.stalled(metrics(2, 6), 89.0) == []
    assert stalls.stalled(metrics(2, 6), 91.0) == ["network_int8"]


class Server:
    front = None
    pid = None
    metrics_url = "127.0.0.1:1"


@pytest.mark.parametrize(("model", "trouble"), [("network_int8", None), ("network_fp32", "requests to network_fp32")])
def test_the_processes_of_a_model_that_hangs_are_killed(clock, stubs, said, monkeypatch, model, trouble):
    """A model without processes (a TensorRT plan) takes the server with it."""
    monkeypatch.setattr(watch, "_metrics", lambda url: metrics(1, 5, model))
    health = Health(Server(), 30.0, said.append)
    found = []
    for _ in range(8):
        clock.now += 6.0
        found.append(health.look(stubs))
    assert model in stubs.killed
    message = next((text for text in found if text), None)
    assert (message or "").startswith(trouble or "")
    assert (message is None) == (trouble is None)
    assert bool(said) == (trouble is None)


def test_a_server_that_is_silent_is_a_case_for_a_restart(clock, stubs, said, monkeypatch):
    monkeypatch.setattr(watch, "_metrics", lambda url: None)
    health = Health(Server(), 30.0, said.append)
    found = []
    for _ in range(6):
        clock.now += 6.0
        found.append(health.look(stubs))
    assert found == [
        None,
        None,
        None,
        None,
        "tritonserver has not answered for 30 s",
        "tritonserver has not answered for 36 s",
    ]


def test_without_restarts_nothing_is_looked_at(monkeypatch):
    monkeypatch.setattr(watch, "StubWatch", lambda server: pytest.fail("it was"))
    monkeypatch.setattr(watch, "wait_for_end", lambda server: "it ended")
    assert watch_over(Server(), RestartPolicy(restarts=0), print) == "it ended"


def test_a_server_in_trouble_is_killed(monkeypatch, stubs):
    stubs.dead, stubs.fault = [DEAD], "no such file"
    with subprocess.Popen(["sleep", "60"]) as process:

        class Running(Server):
            pid = process.pid

            def wait(self, timeout_s):
                raise subprocess.TimeoutExpired("sleep", timeout_s)

        monkeypatch.setattr(watch, "StubWatch", lambda server: stubs)
        assert "no such file" in watch_over(Running(), POLICY, print)
        assert process.wait(10) == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
