"""Starting and stopping the real server; nothing is left behind, whatever ends it."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf import message_factory
from tritonclient.grpc import service_pb2, service_pb2_grpc

from base.names import ADMIN_HEADER
from pipeline import contract
from repository.live import LiveError, LiveServer
from repository.running import running_servers
from serving import server as server_module
from serving.errors import ServingError
from serving.hidden_arguments import STAND_IN
from serving.server import ServerOptions, TritonServer
from serving.tritonserver import find_tritonserver
from tests.chaos.faults_service import wait_for
from tests.local_user import looking_for
from tests.unit.serving.repositories import tiny_repository

pytestmark = pytest.mark.server

COMMAND = [sys.executable, "-m", "serving", "run", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]


def processes(group: int) -> list[str]:
    """Command lines of the live processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] != "Z":
                    found.append((entry / "cmdline").read_bytes().decode())
            except (OSError, IndexError):
                continue
    return found


def shared_memory() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir()}  # noqa: S108


@pytest.fixture
def tiny(tmp_path):
    """A repository of this project whose models need no network; the server starts in a second."""
    return tiny_repository(tmp_path / "tiny")


@pytest.fixture
def running(repository):
    """``python -m serving run`` as a person starts it, and what it prints."""
    process = subprocess.Popen(
        [*COMMAND, "--repository", str(repository), "--precisions", "int8"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C stops" in line:
            break
    yield process, "".join(lines)
    process.kill()
    process.wait()


def tritonserver_of(process: subprocess.Popen) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly(running, number):
    process, _ = running
    server = tritonserver_of(process)
    (prefix,) = (one.shm_prefix for one in running_servers() if one.pid == server)
    assert any(name.startswith(prefix) for name in shared_memory())
    for _ in range(2000):  # a terminal and a parent process send it twice, a moment apart
        process.send_signal(number)
    assert process.wait(40) == 0
    assert not processes(server)
    assert not any(name.startswith(prefix) for name in shared_memory())
    assert not find_leftovers(server)


def find_leftovers(pid: int) -> list[str]:
    from base.cache import cache_dir

    return [path.name for path in (cache_dir() / "servers").glob(f"{pid}.json")]


def test_a_killed_parent_takes_the_server_with_it(running):
    process, _ = running
    server = tritonserver_of(process)
    process.kill()
    process.wait()
    wait_for(lambda: not processes(server), 60, "the end of its processes")


def test_it_says_how_to_call_it_and_that_works(running, reference, tmp_path):
    _, text = running
    page = re.search(r"http://\S+/", text).group()
    assert text.strip().startswith(f"page: {page}\n")
    with urllib.request.urlopen(page, timeout=20) as answer:
        assert b"<title>Instance segmentation</title>" in answer.read()
    curl = re.search(r"curl -F .*", text).group().replace("PHOTO.jpg", str(reference.photographs[0]))
    for shell in ("sh", "bash"):
        result = subprocess.run([shell, "-c", curl], capture_output=True, text=True, check=True)
        (image,) = json.loads(result.stdout)["images"]
        assert (image["width"], image["height"]) == (909, 909)
        assert [found["class_name"] for found in image["detections"]] == ["card"]
    command = (
        re.search(r"python -m client PHOTO.jpg .*", text).group().replace("PHOTO.jpg", str(reference.photographs[0]))
    )
    command = command.replace("python -m", f"{sys.executable} -m").replace(" out", f" {tmp_path}/out")
    subprocess.run(command.split(), check=True, cwd=tmp_path)
    assert (tmp_path / "out" / "result.json").is_file()


def restricted_http(server, path, secret=None):
    host, port = server.http_url.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    headers = {ADMIN_HEADER: secret} if secret else {}
    connection.request("POST", path, body="{}", headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_model_control_api_is_not_offered_over_http(small):
    for path in ("/v2/repository/index", "/v2/repository/models/segment_int8/load"):
        for secret in (None, "wrong", small.admin_secret):
            assert restricted_http(small, path, secret) == http.client.FORBIDDEN
    assert [one.admin_secret for one in running_servers(small.options.repository)] == [small.admin_secret]


def test_another_user_never_sees_the_secret_that_opens_the_control_api(tiny):
    """In no arguments or environment, from before the server's start until after a restart; nor in its log."""
    secret, lines = secrets.token_hex(32), []
    server = TritonServer(ServerOptions(tiny, admin_secret=secret, log_verbose=2), lines.append)
    with looking_for(secret) as seen, server:
        server.restart()
        server.wait_ready()
        (running,) = running_servers(tiny)
        with LiveServer.of(running) as live:
            live.reload("segment_int8")
        with LiveServer(server.grpc_url, STAND_IN) as stranger, pytest.raises(LiveError, match="restricted"):
            stranger.reload("segment_int8")
    assert seen == []
    assert [line for line in lines if secret in line] == []
    assert len(lines) > 100


OPEN = {"ModelConfig", "ModelInfer", "ModelMetadata", "ModelReady", "ModelStatistics", "ModelStreamInfer"}
METHODS = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
CONTROL = [each for each in METHODS if each.name not in OPEN and "Server" not in each.name]


@pytest.mark.parametrize("method", CONTROL, ids=lambda each: each.name)
def test_every_call_over_grpc_that_controls_the_server_needs_the_secret(small, method):
    header = f"triton-grpc-protocol-{ADMIN_HEADER}"
    refused = [(), ((header, "wrong"),), ((header, ""),), ((header, "wrong"), (header, small.admin_secret))]
    with grpc.insecure_channel(small.grpc_url) as channel:
        call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method.name)
        request = message_factory.GetMessageClass(method.input_type)()
        for metadata in refused:
            with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
                call(request, metadata=metadata, timeout=10)
        try:
            call(request, metadata=((header, small.admin_secret),), timeout=10)
        except grpc.RpcError as error:  # an empty request is not always a good one
            assert "restricted" not in error.details()


@pytest.mark.parametrize("triton", [tritonclient.grpc, tritonclient.http], ids=["grpc", "http"])
def test_a_request_is_answered(small, triton):
    images = np.array([[b"four"], [b""], [bytes(100_000)]], object)
    tensor = triton.InferInput("image", images.shape, "BYTES")
    tensor.set_data_from_numpy(images)
    url = small.grpc_url if triton is tritonclient.grpc else small.http_url
    with triton.InferenceServerClient(url) as client:
        answer = client.infer("segment_int8", [tensor])
    assert answer.as_numpy("num_detections").tolist() == [[4], [0], [100_000]]


def test_every_ensemble_of_a_new_server_has_answered_once(repository):
    lines = []
    with TritonServer(ServerOptions(repository), log=lines.append) as server:

        def counted():
            with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
                metrics = answer.read().decode()
            found = re.findall(r'^nv_inference_request_success{[^}]*model="(\w+)"[^}]*} [1-9]', metrics, re.MULTILINE)
            return {*map(contract.ensemble_model, contract.PRECISIONS)} <= {*found}

        wait_for(counted, 10, "the requests to be counted")  # which tritonserver does behind the answer
    assert not [line for line in lines if "did not answer a first request" in line]


def test_only_loopback_listens(small):
    hexadecimal = {f"{int(url.split(':')[1]):04X}" for url in (small.http_url, small.grpc_url, small.metrics_url)}
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            host, port = address.split(":")
            if state == "0A" and port in hexadecimal:
                listening.add(host)
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, as IPv4 and mapped into IPv6
    assert listening
    assert listening <= loopback


@pytest.mark.parametrize("lost", [1, 2], ids=["grpc", "metrics"])  # HTTP is listened on before the others are chosen
def test_a_free_port_that_is_lost_before_the_server_listens_is_chosen_again(tiny, monkeypatch, lost):
    """Another server, ready and healthy, takes the port between the choice and the start."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        choose = server_module.free_ports
        choices = []

        def unlucky_once(*arguments):
            ports = choose(*arguments)
            if not choices:
                ports[lost] = taken
            choices.append(ports)
            return ports

        monkeypatch.setattr(server_module, "free_ports", unlucky_once)
        with TritonServer(ServerOptions(tiny)) as server:
            assert len(choices) == 2
            assert server.is_ready()
            assert str(taken) not in (server.http_url + server.grpc_url + server.metrics_url)


def test_a_server_that_cannot_load_its_models_says_why(tmp_path):
    broken = tiny_repository(tmp_path / "broken", model="import a_module_that_is_not_there\n")
    before = shared_memory()
    server = TritonServer(ServerOptions(broken))
    with pytest.raises(ServingError, match="a_module_that_is_not_there"), server:
        pytest.fail("it became ready")
    assert server.pid is None
    assert not {name for name in shared_memory() - before if name.startswith(server._shm_prefix)}


def test_nothing_is_left_after_stop(tiny):
    with TritonServer(ServerOptions(tiny)) as server:
        group = server.pid
        assert os.getpgid(group) == group
        assert any("triton_python_backend_stub" in line for line in processes(group))
        assert any(name.startswith(server._shm_prefix) for name in shared_memory())
    assert not processes(group)
    assert not find_leftovers(group)
    assert not any(name.startswith(server._shm_prefix) for name in shared_memory())


def test_a_server_that_hangs_is_killed_with_its_stubs(tiny):
    server = TritonServer(ServerOptions(tiny, exit_timeout_s=0))
    server.start()
    server.wait_ready()
    group = server.pid
    os.kill(group, signal.SIGSTOP)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 20
    wait_for(lambda: not processes(group), 60, "the end of its processes")
    assert not any(name.startswith(server._shm_prefix) for name in shared_memory())


def test_what_a_server_killed_with_its_parent_left_is_swept_by_the_next(tiny, tmp_path, monkeypatch):
    # A separate cache: any other server of this user that starts meanwhile would sweep, too.
    unpacked = find_tritonserver().binary.parent.parent
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / unpacked.name).symlink_to(unpacked)
    monkeypatch.setenv("TRITON_SEGMENTATION_CACHE", str(cache))
    script = (
        "import sys, time; from pathlib import Path; from serving.server import *\n"
        f"s = TritonServer(ServerOptions(Path({str(tiny)!r})))\n"
        "s.start(); s.wait_ready(); print(s.pid, s._shm_prefix, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid, prefix = process.stdout.readline().split()
    os.kill(process.pid, signal.SIGSTOP)  # so that it cannot clean up
    os.kill(int(pid), signal.SIGKILL)
    process.kill()
    process.wait()
    (Path("/dev/shm") / f"{prefix}left").touch()  # noqa: S108 - which regions stay is a matter of chance
    assert find_leftovers(int(pid))
    # The kernel takes a moment to free a server's memory.
    wait_for(lambda: int(pid) not in [running.pid for running in running_servers()], 30, "the end of the killed server")
    wait_for(lambda: not processes(int(pid)), 60, "the end of its processes")
    assert not find_leftovers(int(pid))
    assert not any(name.startswith(prefix) for name in shared_memory())
