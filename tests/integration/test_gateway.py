"""The gateway before the real tritonserver: what ends its own HTTP API does not reach it."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from base.names import SHARED_MEMORY, STATE_NAME
from client.segmentation import SegmentationClient
from repository.running import clear_after
from serving.environment import free_ports
from serving.restarts import RestartPolicy
from serving.server import ServerOptions, TritonServer
from serving.tritonserver import find_tritonserver
from serving.watch import watch_over
from tests.chaos import protocol
from tests.chaos.faults_service import settled, wait_for
from tests.unit.serving.repositories import tiny_repository

pytestmark = pytest.mark.server

HOSTILE_INPUTS = int(os.environ.get("HOSTILE_INPUTS", "1000"))
PATHS = [f"/v2/models/{model}/{verb}" for model in ("segment_int8", "none") for verb in ("infer", "generate")]


def send(url, data, timeout_s=30):
    """Send bytes; returns the status of the answer, or None if the connection was closed without one."""
    return protocol.send_http(url, data, timeout_s)[0]


def infers(server):
    """What an image is answered with over HTTP: values by output, or the refusal."""
    body, length = protocol.infer_body(b"four")
    status, answer = protocol.send_http(server.http_url, protocol.http_request(body, length), 30)
    outputs = json.loads(answer).get("outputs")
    return {output["name"]: output["data"] for output in outputs} if status == 200 else (status, answer)


def chunked(path, chunks):
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return head.encode() + b"1\r\n[\r\n" * chunks + b"0\r\n\r\n"


def brackets(path):
    return protocol.http_request(b"[" * 130_000, path=path)


def tiny_chunks(path):
    return chunked(path, 500_000)


@pytest.mark.parametrize("make", [brackets, tiny_chunks])
def test_one_request_ends_tritons_own_http_api(make, tmp_path):
    """Why there is a gateway. Where this fails, the embedded server is another one, which may need none."""
    installation = find_tritonserver()
    (port,) = free_ports("127.0.0.1", 1)
    prefix = f"segmentation_{secrets.token_hex(4)}_"
    command = [str(installation.binary), f"--model-repository={tiny_repository(tmp_path / 'tiny')}"]
    command += ["--model-control-mode=explicit", "--load-model=admission", "--disable-auto-complete-config"]
    command += [f"--backend-directory={installation.backends}", "--allow-grpc=false", "--allow-metrics=false"]
    command += [f"--backend-config=python,shm-region-prefix-name={prefix}"]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(map(str, installation.library_path)),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    url = f"127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return send(url, b"GET /v2/health/ready HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n") == 200
        except OSError:
            return False

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--http-address=127.0.0.1", f"--http-port={port}"], env=environment, stdout=log, stderr=log
        )
    try:
        wait_for(is_ready, 60, "tritonserver")
        assert send(url, make("/v2/models/admission/infer")) is None
        assert process.wait(30) == -signal.SIGSEGV
    finally:
        process.kill()
        process.wait()
        clear_after(prefix)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("make", [brackets, tiny_chunks])
def test_what_ends_tritons_own_http_api_does_not_reach_it(small, make, path):
    pids = small.pid, small.front.pid
    for url in (small.http_url, small.metrics_url):
        for _ in range(3):
            assert send(url, make(path)) in (400, 404, 405, None)
    assert (small.pid, small.front.pid) == pids
    assert infers(small) == {"num_detections": [4]}


def listening(pid):
    """Addresses and ports that a process listens on."""
    found = psutil.Process(pid).net_connections("tcp")
    return {(one.laddr.ip.removeprefix("::ffff:"), one.laddr.port) for one in found if one.status == "LISTEN"}


def test_only_the_gateway_answers_http(small):
    """tritonserver itself listens for gRPC and metrics."""
    ports = {int(url.rpartition(":")[2]) for url in (small.grpc_url, small.metrics_url)}
    assert {port for _, port in listening(small.pid)} == ports


def test_grpc_hands_nothing_from_thread_to_thread(small):
    """Its newer event loop wakes a thread of its pool six times a request; timers alone wake it less than once."""

    def wake_ups():
        found = 0
        for task in Path(f"/proc/{small.front.pid}/task").iterdir():
            status = (task / "status").read_text()
            if status.startswith("Name:\tevent_engine\n"):
                found += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)[1])
        return found

    body, length = protocol.infer_body(bytes(150_000))
    request = protocol.http_request(body, length)
    assert send(small.http_url, request) == 200
    before = wake_ups()
    for _ in range(20):
        send(small.http_url, request)
    assert (wake_ups() - before) / 20 < 3


def test_http_alone_can_be_open(tmp_path):
    """As docs/security.md says it."""
    arguments = ("--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1")
    options = ServerOptions(tiny_repository(tmp_path / "tiny"), host="0.0.0.0", extra_arguments=arguments)  # noqa: S104
    with TritonServer(options) as server:
        assert {address for address, _ in listening(server.pid)} == {"127.0.0.1"}
        assert {address for address, _ in listening(server.front.pid)} == {"0.0.0.0"}  # noqa: S104
        assert infers(server) == {"num_detections": [4]}


def test_hostile_requests_leave_both_processes_alone(small):
    """Set HOSTILE_INPUTS=10000 for the long run."""
    chance = random.Random(16)  # noqa: S311 - no secret
    pids = small.pid, small.front.pid
    bad = [one for one in protocol.malformed(b"image", chance) if one.http is not None and not one.to_grpc_port]
    body, length = protocol.infer_body(bytes(chance.randbytes(2000)))
    right = protocol.http_request(body, length)
    statuses: dict[int | None, int] = {}
    lock = threading.Lock()

    def attack(count: int, seed: int) -> None:
        mine = random.Random(seed)  # noqa: S311 - no secret
        for number in range(count):
            if number % 4 == 0:
                data = mine.choice(bad).http
            else:
                changed = bytearray(right)
                for _ in range(mine.choice((1, 1, 2, 8, 64))):
                    place = mine.randrange(len(changed))
                    changed[place : place + mine.choice((0, 1, 1, 4))] = mine.randbytes(mine.choice((0, 1, 1, 5)))
                data = bytes(changed[: mine.choice((len(changed), len(changed), mine.randrange(1, len(changed))))])
            try:
                status = protocol.send_http(small.http_url, data, 30, half_close=True)[0]
            except OSError as error:
                status = None if not isinstance(error, TimeoutError) else -1
            with lock:
                statuses[status] = statuses.get(status, 0) + 1

    threads = [threading.Thread(target=attack, args=(HOSTILE_INPUTS // 4, seed)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(statuses.values()) == HOSTILE_INPUTS // 4 * 4
    assert not set(statuses) & {-1, 500}, statuses
    assert (small.pid, small.front.pid) == pids
    assert infers(small) == {"num_detections": [4]}


def test_answers_are_those_of_grpc(server, reference):
    """Metadata, configuration and statistics as Triton's clients read them over both protocols."""
    import tritonclient.grpc
    import tritonclient.http

    with (
        tritonclient.http.InferenceServerClient(server.http_url) as http,
        tritonclient.grpc.InferenceServerClient(server.grpc_url) as grpc,
    ):
        for name in ("segment_int8", "network_int8"):
            assert http.get_model_metadata(name)["versions"] == list(grpc.get_model_metadata(name).versions)
            config = http.get_model_config(name)
            assert config["max_batch_size"] == grpc.get_model_config(name).config.max_batch_size
            assert all(isinstance(side, int) for tensor in config["input"] for side in tensor["dims"])

        def counted():
            return http.get_inference_statistics("segment_int8")["model_stats"][0]["inference_count"]

        before = settled(counted)
        with SegmentationClient(server.http_url, "http", "int8") as client:
            client.segment(reference.photographs[0])
        assert settled(counted) == before + 1
        assert {entry["name"] for entry in http.get_inference_statistics()["model_stats"]} >= {"segment_int8"}


def test_curl_sends_more_than_a_megabyte(small, tmp_path):
    body, length = protocol.infer_body(bytes(3 << 20))
    (tmp_path / "body").write_bytes(body)
    url = f"http://{small.http_url}/v2/models/segment_int8/infer"
    command = ["curl", "-sv", "--noproxy", "*", "--data-binary", f"@{tmp_path}/body", url]
    done = subprocess.run(
        [*command, "-H", f"Inference-Header-Content-Length: {length}"], capture_output=True, text=True, check=True
    )
    assert [output["data"] for output in json.loads(done.stdout).get("outputs", [])] == [[3 << 20]], done.stdout


def test_what_the_server_writes_is_readable_by_its_user_alone(server):
    """Regions of shared memory hold callers' images; none may be read by others of the machine."""
    prefix = server.state_folder.name.removesuffix(STATE_NAME)
    regions = [*SHARED_MEMORY.glob(f"{prefix}*"), *server.state_folder.iterdir()]
    assert any("admission" in region.name for region in regions)
    modes = {region.name: stat.S_IMODE(region.stat().st_mode) for region in regions}
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
    for pid in (server.pid, server.front.pid):
        (umask,) = re.findall(r"^Umask:\s+(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        assert int(umask, 8) == 0o077


def test_a_gateway_that_dies_is_replaced_and_no_connection_is_refused(tmp_path):
    said = []
    with TritonServer(ServerOptions(tiny_repository(tmp_path / "tiny"))) as server:
        answers = []

        def kill_both() -> None:
            first = server.front.pid
            os.kill(first, signal.SIGKILL)
            answers.append(infers(server))  # while there is no gateway
            wait_for(lambda: server.front.pid not in (None, first), 20, "another gateway")
            os.kill(server.pid, signal.SIGKILL)

        killing = threading.Thread(target=kill_both)
        killing.start()
        assert watch_over(server, RestartPolicy(), said.append) == "tritonserver ended by signal SIGKILL"
        killing.join()
        assert answers == [{"num_detections": [4]}]
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"http://{server.http_url}/v2/health/ready", timeout=20
            )
        server.restart()
        server.wait_ready()
        assert infers(server) == {"num_detections": [4]}


def test_slow_callers_do_not_hinder_others(small):
    slow = [socket.create_connection(tuple(small.http_url.split(":")), 10) for _ in range(300)]
    try:
        for connection in slow:
            connection.sendall(
                b"POST /v2/models/segment_int8/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 9999\r\n\r\n["
            )
        started = time.monotonic()
        assert infers(small) == {"num_detections": [4]}
        assert time.monotonic() - started < 10
    finally:
        for connection in slow:
            connection.close()
