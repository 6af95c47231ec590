"""Which processes are taken for dead. The server and its processes are stand-ins; tests/integration kill real ones."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from repository.store import SHIPPED_REPOSITORY
from serving import stubs
from serving.errors import ServingError
from serving.server import ServerOptions, TritonServer
from serving.stubs import Stub, StubWatch
from tests.chaos.faults_service import wait_for
from tests.unit.clock import Clock

ONE, OTHER = Stub(7, "preprocess", "1", "preprocess_0_0"), Stub(8, "preprocess", "1", "preprocess_0_1")
NEW = [Stub(9, "preprocess", "1", "preprocess_0_0"), Stub(10, "preprocess", "1", "preprocess_0_1")]


class Server:
    """What a watch asks of a server."""

    pid = 1
    models = ("admission", "preprocess", "segment_int8")
    state_folder = Path("/nowhere/segmentation_state")

    def __init__(self):
        self.ready, self.fault, self.reloaded = (1,), None, []
        self.counts = {"preprocess": 2}
        self.on_disk = {"name": "preprocess", "parameters": {"a": {"string_value": "disk"}}}

    def ready_versions(self, model):
        if self.fault:
            raise ServingError(self.fault)
        return self.ready

    def model_config(self, model):
        if self.on_disk is None:
            raise ServingError("not a model configuration")
        return dict(self.on_disk)

    def config(self, model):
        groups = [{"count": self.counts[model]}] if model in self.counts else []
        return {"name": "as loaded", "backend": "python" if groups else "", "instance_group": groups}

    def reload(self, model, config):
        self.reloaded.append((model, config))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stubs, "time", clock)
    return clock


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def alive(monkeypatch, clock):
    alive = [ONE, OTHER]
    monkeypatch.setattr(stubs.StubFinder, "find", lambda finder: list(alive))
    monkeypatch.setattr(stubs, "busy_for_s", lambda path, pid: 0.0)
    return alive


@pytest.fixture
def new_watch(server, alive, monkeypatch):
    """A watch that has not looked yet."""
    watch = StubWatch(server)
    monkeypatch.setattr(watch, "_live", lambda: contextlib.nullcontext(server))
    return watch


@pytest.fixture
def watch(new_watch):
    assert new_watch.poll() == []
    return new_watch


def polls(watch, clock, seconds):
    found = []
    for _ in range(round(seconds * 4)):
        clock.now += 0.25
        found = watch.poll()
    return found


def test_a_process_that_is_gone_is_dead_after_half_a_second(watch, clock, alive):
    alive.remove(ONE)
    assert polls(watch, clock, 0.25) == []
    assert polls(watch, clock, 0.5) == [ONE]
    assert polls(watch, clock, 5) == [ONE]  # until it is replaced


def test_one_that_was_overlooked_once_is_not(watch, clock, alive):
    alive.remove(ONE)
    polls(watch, clock, 0.25)
    alive.append(ONE)
    assert polls(watch, clock, 20) == []


def test_one_whose_version_was_replaced_is_not(watch, clock, alive, server):
    alive[:] = [Stub(9, "preprocess", "2", "preprocess_0_0"), Stub(10, "preprocess", "2", "preprocess_0_1")]
    server.ready = (2,)
    assert polls(watch, clock, 20) == []
    server.ready = (1, 2)  # served again much later, by other processes
    assert polls(watch, clock, 5) == []


def test_a_server_that_is_slow_to_say_what_it_serves_is_asked_again(watch, clock, alive, server):
    alive.remove(ONE)
    server.fault = "it could not list its models"
    assert polls(watch, clock, 8) == []
    server.fault = None
    assert polls(watch, clock, 0.25) == [ONE]


def test_a_version_that_becomes_ready_within_a_while_is_missed_after_all(watch, clock, alive, server):
    alive.remove(ONE)
    server.ready = ()
    assert polls(watch, clock, 5) == []
    server.ready = (1,)
    assert polls(watch, clock, 0.25) == [ONE]


def test_a_server_that_never_says_what_it_serves_is_a_fault(watch, clock, alive, server):
    alive.remove(ONE)
    server.fault = "it could not list its models"
    with pytest.raises(ServingError, match="could not list"):
        polls(watch, clock, 40)


@pytest.mark.parametrize(("damaged", "expected"), [(False, "disk"), (True, "as loaded")])
def test_a_model_is_loaded_as_its_configuration_says_on_disk(watch, clock, alive, server, damaged, expected):
    alive.remove(ONE)
    (dead,) = polls(watch, clock, 1)
    if damaged:
        server.on_disk = None
    watch.replace(dead)
    alive += NEW
    ((model, config),) = server.reloaded
    assert model == "preprocess"
    assert expected in config and "reloaded_at" in config
    assert polls(watch, clock, 5) == []


def test_a_new_process_that_dies_is_missed_while_its_predecessor_is_given_time(watch, clock, alive):
    alive.remove(ONE)
    (dead,) = polls(watch, clock, 1)
    watch.replace(dead)
    alive[:] = [OTHER, *NEW]
    assert polls(watch, clock, 1) == []
    alive.remove(NEW[1])  # in the place of OTHER, which still works off what it has
    assert polls(watch, clock, 1) == [NEW[1]]


def test_a_new_process_that_dies_before_the_next_look_is_missed(watch, clock, alive, server):
    alive.remove(ONE)
    (dead,) = polls(watch, clock, 1)
    server.reload = lambda model, config: alive.extend(NEW)
    watch.replace(dead)
    alive.remove(NEW[0])
    assert polls(watch, clock, 1) == [NEW[0]]


def test_a_process_that_died_before_it_was_ever_seen_is_missed(new_watch, server, clock, alive):
    alive.remove(ONE)
    server.fault = "it could not list its models"
    assert polls(new_watch, clock, 1) == []
    server.fault = None
    (dead,) = polls(new_watch, clock, 1)
    assert dead.title == "a process of preprocess"
    new_watch.replace(dead)
    alive[:] = [OTHER, *NEW]
    assert polls(new_watch, clock, 5) == []


def test_no_process_of_a_single_one_is_missed_too(new_watch, server, clock, alive):
    server.counts["admission"] = 1
    assert [dead.model for dead in polls(new_watch, clock, 1)] == ["admission"]


def test_one_that_is_seen_a_moment_later_is_not_missed(new_watch, server, clock, alive):
    alive.remove(ONE)
    assert polls(new_watch, clock, 0.25) == []
    alive.append(ONE)
    assert polls(new_watch, clock, 20) == []


def test_new_processes_that_die_within_the_reload_are_missed(watch, clock, alive, server):
    alive.remove(ONE)
    (dead,) = polls(watch, clock, 1)
    watch.replace(dead)
    alive[:] = [OTHER, Stub(9, "preprocess", "1", "preprocess_0_0")]
    assert [dead.title for dead in polls(watch, clock, 1)] == ["a process of preprocess"]


def test_the_children_of_a_process_are_found_as_they_come_and_go(tmp_path):
    program = tmp_path / "triton_python_backend_stub"
    program.symlink_to(sys.executable)
    code = tmp_path / "preprocess" / "3" / "model.py"
    code.parent.mkdir(parents=True)
    code.write_text("import time\ntime.sleep(60)\n")
    finder = stubs.StubFinder(os.getpid())
    assert finder.find() == []
    started = [subprocess.Popen([program, code, "region", f"preprocess_0_{number}"]) for number in range(2)]
    try:
        wait_for(lambda: len(finder.find()) == 2, 10, "two children")
        assert finder.find() == [
            Stub(process.pid, "preprocess", "3", f"preprocess_0_{number}") for number, process in enumerate(started)
        ]
        started[0].send_signal(signal.SIGSTOP)
        wait_for(lambda: finder.find()[0].stopped, 10, "the first to stop")
        started[1].kill()  # nobody has waited for it yet
        wait_for(lambda: [stub.pid for stub in finder.find()] == [started[0].pid], 10, "the second to be gone")
        assert stubs.StubFinder(started[0].pid).find() == []  # it has none
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert finder.find() == []


def test_the_configuration_on_disk_is_that_of_the_profile():
    server = TritonServer(ServerOptions(SHIPPED_REPOSITORY, profile="cuda"))
    network = server.model_config("network_fp16")
    assert network["parameters"]["provider"] == {"string_value": "cuda"}
    assert server.model_config("preprocess")["instance_group"][0]["count"] == 2
    with pytest.raises(ServingError, match="restore it"):
        server.model_config("no such model")
