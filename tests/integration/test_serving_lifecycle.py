"""Starting and stopping the real server; nothing is left behind, whatever ends it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from serving.errors import PortInUse, ServingError
from serving.server import ADMIN_HEADER, ServerOptions, TritonServer
from serving.state import find_server

pytestmark = pytest.mark.server

FREE = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
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


def gone(group: int, within_s: float = 20) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not processes(group):
            return True
        time.sleep(0.1)
    return False


def shared_memory() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir()}  # noqa: S108


@pytest.fixture
def running(repository):
    """``python -m serving run`` as a person starts it; what it prints; the shared memory there was before."""
    others = shared_memory()
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
    yield process, "".join(lines), others
    process.kill()
    process.wait()


def tritonserver_of(process: subprocess.Popen) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly(running, number):
    process, _, others = running
    server = tritonserver_of(process)
    mine = shared_memory() - others
    assert any(name.startswith("segmentation_") for name in mine)
    process.send_signal(number)
    assert process.wait(40) == 0
    assert not processes(server)
    assert not mine & shared_memory()
    assert not find_leftovers(server)


def find_leftovers(pid: int) -> list[str]:
    from serving.cache import cache_dir

    return [path.name for path in (cache_dir() / "servers").glob(f"{pid}.json")]


def test_a_killed_parent_takes_the_server_with_it(running):
    process, _, _ = running
    server = tritonserver_of(process)
    process.kill()
    process.wait()
    assert gone(server), processes(server)


def test_it_says_how_to_call_it_and_that_works(running, reference, tmp_path):
    _, text, _ = running
    script = text[text.index("  f=PHOTO.jpg") : text.index("Ctrl-C stops")]
    script = script.replace("PHOTO.jpg", str(reference.photographs[0]))
    for shell in ("sh", "bash"):
        result = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True)
        outputs = {output["name"]: output for output in json.loads(result.stdout)["outputs"]}
        assert outputs["num_detections"]["data"] == [1]
        assert outputs["image_size"]["data"] == [909, 909]
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


def test_the_model_control_api_needs_the_secret(server, repository):
    assert restricted_http(server, "/v2/repository/index") == http.client.FORBIDDEN
    assert restricted_http(server, "/v2/repository/index", "wrong") == http.client.FORBIDDEN
    assert restricted_http(server, "/v2/repository/index", server.admin_secret) == http.client.OK
    assert find_server(repository).admin_secret == server.admin_secret
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.get_model_repository_index()
        assert "UNAVAILABLE" in caught.value.status() or "PERMISSION" in caught.value.status()
        headers = {f"triton-grpc-protocol-{ADMIN_HEADER}": server.admin_secret}
        assert client.get_model_repository_index(headers=headers).models


def test_only_loopback_listens(server):
    hexadecimal = {f"{int(url.split(':')[1]):04X}" for url in (server.http_url, server.grpc_url, server.metrics_url)}
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


def test_a_port_in_use_is_named(repository):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port}.*--grpc-port"):
            TritonServer(ServerOptions(repository, http_port=0, grpc_port=port, metrics_port=0)).start()


def test_a_server_that_cannot_load_its_models_says_why(repository, tmp_path):
    import shutil

    broken = tmp_path / "repository"
    shutil.copytree(repository, broken)
    (broken / "preprocess" / "1" / "model.py").write_text("import a_module_that_is_not_there\n")
    server = TritonServer(ServerOptions(broken, **FREE))
    with pytest.raises(ServingError, match="a_module_that_is_not_there"), server:
        pytest.fail("it became ready")
    assert server.pid is None


def test_nothing_is_left_after_stop(repository):
    before = shared_memory()
    with TritonServer(ServerOptions(repository, precisions=("fp32",), **FREE)) as server:
        group = server.pid
        assert os.getpgid(group) == group
        assert any("triton_python_backend_stub" in line for line in processes(group))
    assert not processes(group)
    assert shared_memory() <= before
