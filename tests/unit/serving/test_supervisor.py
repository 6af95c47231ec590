"""When a server that died is started again. The server is a stand-in here; tests/integration kill the real one."""

from __future__ import annotations

import pytest

from serving import supervisor
from serving.errors import ServingError
from serving.restarts import RestartPolicy
from serving.supervisor import supervise
from tests.unit.clock import Clock


class Server:
    """Dies as planned: seconds of life and exit status of each start; a start may fail instead."""

    pid = 42

    def __init__(self, clock, lives):
        self.clock, self.lives, self.starts = clock, list(lives), 0

    def start(self):
        self.starts += 1
        self.life = self.lives.pop(0)
        if isinstance(self.life, str):
            raise ServingError(self.life)

    restart = start

    def wait_ready(self, timeout_s):
        assert timeout_s == 120.0

    def wait(self, timeout_s=None):
        assert timeout_s is None
        seconds, status = self.life
        self.clock.now += seconds
        return status

    def last_words(self):
        return ". Its log ends:\n  E out of luck"


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    return clock


def run(clock, lives, policy=RestartPolicy(restarts=3)):  # noqa: B008 - frozen
    server, said, ready = Server(clock, lives), [], []
    with pytest.raises(ServingError) as given_up:
        supervise(server, policy, 120.0, lambda: ready.append(1), said.append)
    return server, said, ready, str(given_up.value)


def test_a_server_that_cannot_stay_up_is_given_up_with_its_last_words(clock):
    server, said, ready, error = run(clock, [(5, -9)] * 4)
    assert server.starts == 4
    assert ready == [1]
    assert "by signal SIGKILL, 4 times without staying up for 60 s; giving up" in error
    assert "E out of luck" in error
    assert next(line for line in said if "starting it again" in line).startswith("tritonserver ended by signal SIGKILL")
    assert sum("ready again (process 42)" in line for line in said) == 3


def test_pauses_double_up_to_their_bound(clock):
    policy = RestartPolicy(restarts=8, first_s=1.0, most_s=10.0)
    run(clock, [(0.1, 1)] * 9, policy)
    bounds = [1, 2, 4, 8, 10, 10, 10, 10]
    assert all(bound / 2 <= pause <= bound for pause, bound in zip(clock.pauses, bounds, strict=True))


def test_by_default_it_is_never_given_up(clock):
    """Whoever can crash the server cannot end it: the policy of ``serving run`` has no last restart."""
    server, said = Server(clock, [(0.1, -11)] * 2000), []
    with pytest.raises(IndexError):  # no more lives are foreseen
        supervise(server, RestartPolicy(), 120.0, lambda: None, said.append)
    assert server.starts == 2001
    assert max(clock.pauses) <= 30.0
    assert "tritonserver ended by signal SIGSEGV; starting it again in" in said[-1]


def test_a_server_that_stayed_up_is_counted_anew(clock):
    server, _, _, _ = run(clock, [(5, 1), (5, 1), (5, 1), (100, 1), (5, 1), (5, 1), (5, 1)])
    assert server.starts == 7


def test_a_first_start_that_fails_is_not_tried_again(clock):
    server, said, ready, error = run(clock, ["no version can be served"])
    assert (server.starts, said, ready, error) == (1, [], [], "no version can be served")


def test_a_restart_that_fails_counts_as_a_death(clock):
    server, said, _, error = run(clock, [(5, 1), "port 8000 is in use", "port 8000 is in use", "port 8000 is in use"])
    assert server.starts == 4
    assert "port 8000 is in use, 4 times" in error
    assert any(line.startswith("port 8000 is in use; starting it again") for line in said)


def test_the_log_of_a_restart_that_fails_is_quoted_once(clock):
    broken = "tritonserver ended before it was ready. Its log ends:\n  E out of luck"
    _, said, _, error = run(clock, [(5, 1), broken, broken, broken])
    assert "ended before it was ready, 4 times" in error
    assert error.count("E out of luck") == 1
    assert not any("\n" in line for line in said)


def test_another_watch_may_say_what_the_server_died_of(clock):
    server, said = Server(clock, [(5, 1)]), []
    with pytest.raises(ServingError, match="it hung; giving up"):
        supervise(server, RestartPolicy(restarts=0), 120.0, lambda: None, said.append, watch=lambda running: "it hung")


def test_no_restarts_when_none_are_asked_for(clock):
    server, said, _, error = run(clock, [(1000, 3)], RestartPolicy(restarts=0))
    assert (server.starts, said) == (1, [])
    assert error.startswith("tritonserver ended with status 3; giving up")
