"""Whose socket it is that listens on a port."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

import grpc
import pytest

from base import listeners
from base.listeners import is_ours
from repository.live import LiveError, LiveServer

# Says it is live, as an impostor would, and writes down what it is sent.
_IMPOSTOR = """
import socket, sys
from os import setgroups, setuid
listener = socket.create_server(("127.0.0.1", 0))
setgroups([]); setuid(65534)  # the socket keeps its first owner ...
listener = socket.create_server(("127.0.0.1", 0))  # ... so that it takes another one
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
listener.setblocking(False)
try:
    print(listener.accept()[0].recv(10000))
except BlockingIOError:
    print("nothing")
"""


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "as gRPC does it"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - what is tested
def test_ones_own_socket(family, host):
    with contextlib.closing(socket.socket(family)) as listener:
        if family == socket.AF_INET6:
            try:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                listener.bind((f"::ffff:{host}", 0))
            except OSError as error:
                pytest.skip(f"IPv6 is missing ({error}); make test-unit runs it where there is some")
        else:
            listener.bind((host, 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert not is_ours(address)  # nobody listens yet
        listener.listen()
        assert is_ours(address)
    assert not is_ours(address)


def test_a_grpc_servers_socket():
    server = grpc.server(None)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert is_ours(f"127.0.0.1:{port}")
    server.stop(None)


@pytest.mark.skipif(os.geteuid() != 0, reason="root is missing; as root, make test-unit runs it")
def test_another_user_on_the_port_is_not_sent_the_secret():
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _IMPOSTOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as impostor:
        address = f"127.0.0.1:{int(impostor.stdout.readline())}"
        assert not is_ours(address)
        with LiveServer(address, "secret", answer_timeout_s=1, own=True) as live:
            with pytest.raises(LiveError, match="another user listens there, who is not sent the secret"):
                live.ready_versions("admission")
            with pytest.raises(LiveError, match="another user"):
                live.reload("admission")
        impostor.stdin.close()
        assert impostor.stdout.read() == "nothing\n"


def test_without_the_kernels_tables_there_is_no_answer_to_wait_for(tmp_path, monkeypatch):
    monkeypatch.setattr(listeners, "_TABLES", (tmp_path / "tcp",))
    assert is_ours("127.0.0.1:1")
