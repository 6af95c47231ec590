"""The gateway's process: it listens before tritonserver does, and comes back when it dies or hangs."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import time

import pytest

from serving import front as front_module
from serving.errors import PortInUse
from serving.front import HttpFront
from tests.chaos.faults_service import wait_for

NOBODY = "127.0.0.1:9"  # discard: tritonserver is away


@pytest.fixture
def said():
    return []


@pytest.fixture
def front(said):
    running = HttpFront("127.0.0.1", 0, said.append)
    running.start(NOBODY)
    yield running
    running.stop()


def status(front):
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status
    finally:
        connection.close()


def test_connections_wait_until_the_gateway_runs(front):
    assert status(front) == 503  # sent while Python still starts
    assert os.getpgid(front.pid) == front.pid  # no terminal's Ctrl-C ends it before its requests


def test_a_gateway_that_died_is_started_again_on_the_same_port(front, said):
    front.start(NOBODY)
    first = front.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: front.pid is None, 10, "the end of the gateway")
    front.look(30.0)
    assert front.pid not in (None, first)
    assert any("ended (status -9); starting it again in 0.0 s" in line for line in said)
    assert status(front) == 503
    os.kill(front.pid, signal.SIGKILL)
    wait_for(lambda: front.pid is None, 10, "the end of the gateway")
    front.look(30.0)
    assert front.pid is None
    assert re.search(r"starting it again in 0\.[2-5] s", said[-1])
    time.sleep(0.6)
    front.look(30.0)
    assert status(front) == 503


def test_a_gateway_that_dies_for_hours_is_started_again_still(front, said):
    front._deaths = 5000
    os.kill(front.pid, signal.SIGKILL)
    wait_for(lambda: front.pid is None, 10, "the end of the gateway")
    front.look(30.0)
    assert re.search(r"starting it again in (1[5-9]|2\d|30)\.\d s", said[-1])


def test_a_gateway_that_hangs_is_killed(front, said, monkeypatch):
    monkeypatch.setattr(front_module, "_PROBE_EVERY_S", 0.0)
    assert status(front) == 503
    front.look(0.1)
    hung = front.pid
    os.kill(hung, signal.SIGSTOP)
    time.sleep(0.2)
    front.look(0.1)
    wait_for(lambda: front.pid is None, 10, "the end of the gateway")
    assert any("has not answered for" in line for line in said)
    front.look(0.1)
    assert status(front) == 503


def test_a_port_in_use_is_named(said):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"port {port} on 127.0.0.1 is in use.*--http-port"):
            HttpFront("127.0.0.1", port, said.append)


def test_nothing_listens_after_stop(said):
    front = HttpFront("127.0.0.1", 0, said.append)
    front.start(NOBODY)
    process = front._process
    front.stop()
    assert process.poll() is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", front.port), 5)
