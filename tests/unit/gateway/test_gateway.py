"""The gateway over real sockets: routes, statuses, and its bounds of size, chunks, time and connections."""

from __future__ import annotations

import json
import select
import socket
import struct
import time

import grpc
import numpy as np
import pytest
import tritonclient.http
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.chaos.faults_service import wait_for
from tests.unit.gateway.conftest import SMALL

BODY = json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]}]}).encode()


def chunked(chunks, path="/v2/models/m/infer"):
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def status(received):
    return int(received.split()[1])


def test_an_inference(gateway):
    answer = gateway.post(BODY)
    assert (answer.status, answer.headers["Content-Type"], answer.headers["Server"]) == (200, "application/json", None)
    assert answer.json["outputs"] == [{"name": "sizes", "datatype": "INT64", "shape": [1], "data": [5]}]
    assert gateway.post(BODY, path="/v2/models/m/versions/3/infer").status == 200
    assert [request.model_version for request in gateway.triton.requests] == ["", "3"]


def test_tritons_own_client(gateway):
    image = np.array([[b"\xff" * 500_000]], object)
    tensor = tritonclient.http.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(image)
    with tritonclient.http.InferenceServerClient(gateway.url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "statistics"]
        assert client.get_model_metadata("m")["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]
        answer = client.infer("m", [tensor], request_id="7", parameters={"confidence": 0.5})
        assert answer.as_numpy("sizes").tolist() == [500_004]
        assert answer.get_response()["id"] == "7"
        gateway.triton.fault = (
            grpc.StatusCode.INVALID_ARGUMENT,
            "its own text " * 5000,
        )  # more than gRPC takes by default
        with pytest.raises(InferenceServerException, match=r"^\[400\] its own text its") as caught:
            client.infer("m", [tensor])
        assert caught.value.message() == "its own text " * 5000
        assert not client.is_server_ready()
    assert gateway.ask("GET", "/v2/health/ready").status == 400


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.NOT_FOUND, 404),
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.UNIMPLEMENTED, 501),
        (grpc.StatusCode.INTERNAL, 500),
        (grpc.StatusCode.UNKNOWN, 400),
    ],
)
def test_errors_have_tritons_status_and_text(gateway, code, expected):
    gateway.triton.fault = (code, "the server is busy: ä")
    answer = gateway.post(BODY)
    assert (answer.status, answer.json) == (expected, {"error": "the server is busy: ä"})


def test_a_server_that_is_away_is_said_to_be(gateway):
    gateway.backend.stop(None).wait()
    for method, path in (("GET", "/v2/health/live"), ("GET", "/v2/models/m"), ("POST", "/v2/models/m/infer")):
        answer = gateway.ask(method, path, BODY)
        assert answer.status == 503
        assert answer.json["error"].startswith("tritonserver does not answer")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v2/repository/index", 403),
        ("POST", "/v2/repository/models/m/load", 403),
        ("POST", "/v2/systemsharedmemory/region/r/register", 403),
        ("GET", "/v2/systemsharedmemory/status", 403),
        ("GET", "/v2/cudasharedmemory/status", 403),
        ("GET", "/v2/trace/setting", 403),
        ("POST", "/v2/models/m/trace/setting", 403),
        ("POST", "/v2/logging", 403),
        ("POST", "/v2/models/m/generate", 404),
        ("POST", "/v2/models/m/generate_stream", 404),
        ("GET", "/v2/models/m/infer", 405),
        ("POST", "/v2/models/m", 405),
        ("GET", "/v2/metrics", 404),
        ("GET", "/v2/models/%00%ff/ready", 400),
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models//infer", 404),
    ],
)
def test_what_is_not_offered(gateway, method, path, expected):
    answer = gateway.ask(method, path)
    assert (answer.status, list(answer.json)) == (expected, ["error"])
    assert not gateway.triton.requests


def test_deep_json_is_refused(gateway):
    for path in ("infer", "generate"):
        assert gateway.post(b"[" * 60_000, path=f"/v2/models/m/{path}").status in (400, 404)
    assert not gateway.triton.requests


def test_a_body_in_few_chunks(gateway):
    half = len(BODY) // 2
    assert status(gateway.raw(chunked([BODY[:half], BODY[half:]]))) == 200


def test_a_body_in_too_many_chunks_is_refused_soon(gateway):
    received = gateway.raw(chunked([b" "] * 100_000))
    assert status(received) == 400
    assert b"chunks of 1 bytes on average" in received
    assert gateway.post(BODY).status == 200


def test_a_body_that_is_too_large_is_refused(gateway):
    assert gateway.post(b" " * (SMALL.body_bytes + 1)).status == 413
    assert status(gateway.raw(chunked([b" " * 100_000] * 20))) == 413
    head = "POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n"
    assert status(gateway.raw(head.encode())) == 413


def test_a_body_after_100_continue(gateway):
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(BODY)}\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(gateway.address, 20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert status(connection.recv(1000)) == 200


def test_what_is_refused_in_place_of_100_continue_has_its_identifier_and_is_counted(gateway):
    """curl asks so in front of a megabyte."""
    head = b"POST /v1/segment HTTP/1.1\r\nHost: h\r\nX-Request-Id: mine\r\n"
    received = gateway.raw(head + b"Expect: 100-continue\r\nContent-Length: 9000000\r\n\r\n")
    assert status(received) == 413
    assert b"X-Request-Id: mine" in received
    counted = gateway.ask("GET", "/metrics").body.decode()
    assert 'segmentation_gateway_requests_total{route="/v1/segment",status="413"} 1.0' in counted


def test_a_body_that_comes_too_slowly_is_given_up(gateway):
    with socket.create_connection(gateway.address, 20) as connection:
        connection.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n{")
        started = time.monotonic()
        received = connection.recv(1000)
    assert status(received) == 408
    assert b"1 bytes of the body came in" in received
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "start", [b"", b"POST /v2/models/m/in", b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nA: b"]
)
def test_a_connection_without_a_whole_request_is_closed(gateway, start):
    assert gateway.raw(start) == b""


@pytest.mark.parametrize(
    "head",
    [
        "A: " + "x" * 20_000,
        "\r\n".join(f"A{number}: b" for number in range(1000)),
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: -5",
        "Content-Length: 5\r\nContent-Length: 6",
        "A\0: b",
    ],
    ids=["long", "many", "smuggled", "negative", "two lengths", "NUL"],
)
def test_bad_headers_are_refused_without_a_line_in_the_log(gateway, head, capfd):
    received = gateway.raw(f"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n".encode())
    assert status(received) in (400, 431)
    assert not gateway.triton.requests
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("linger", [None, struct.pack("ii", 1, 0)], ids=["closed", "reset"])
def test_a_caller_who_hangs_up_leaves_no_line_in_the_log(gateway, linger, capfd):
    for start in (b"Content-Length: 900\r\n\r\n[", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"):
        connection = socket.create_connection(gateway.address, 20)
        connection.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\n" + start)
        assert gateway.ask("GET", "/v2/health/live").status == 200  # the body is waited for now
        if linger is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()
    for _ in range(3):
        assert gateway.ask("GET", "/v2/health/live").status == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("version", "cancels"), [("2.51.0", False), ("2.56.1", False), ("2.57.0", True), ("?", False)])
def test_who_leaves_cancels_the_work_where_tritonserver_survives_that(gateway, version, cancels):
    gateway.triton.version, under_way = version, []

    def work(context):
        under_way.append(True)
        end = time.monotonic() + (10 if cancels else 1)
        while context.is_active() and time.monotonic() < end:
            time.sleep(0.01)
        under_way.append(context.is_active())

    gateway.triton.work = work
    with socket.create_connection(gateway.address) as caller:
        caller.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        wait_for(lambda: under_way, 10, "the call")
    wait_for(lambda: len(under_way) == 2, 20, "its end")
    assert under_way == [True, not cancels]
    gateway.triton.work = lambda context: None
    assert gateway.post(BODY).status == 200


def test_a_long_path_is_refused(gateway):
    assert status(gateway.raw(b"GET /v2/" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n")) in (400, 414)


def test_compressed_bodies_are_refused(gateway):
    answer = gateway.post(b"\x1f\x8b" + bytes(1000), Content_Encoding="gzip")
    assert answer.status == 415
    assert "Content-Encoding is 'gzip'; allowed: none" in answer.json["error"]


def test_idle_connections_make_room_for_new_ones(gateway):
    idle = [socket.create_connection(gateway.address, 20) for _ in range(SMALL.connections)]
    try:
        assert gateway.post(BODY).status == 200
        idle[1].settimeout(0.1)
        assert idle[0].recv(1) == b""  # the one that was idle for longest
        with pytest.raises(TimeoutError):
            idle[1].recv(1)
    finally:
        for connection in idle:
            connection.close()


def test_too_many_bytes_at_once_are_refused_as_busy(gateway):
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"
    connections = [socket.create_connection(gateway.address, 20) for _ in range(4)]
    try:
        for connection in connections:
            connection.sendall(head + b" " * 999_000)
        # Whichever is read last is one too many.
        refused, _, _ = select.select(connections, [], [], 20)
        answer = refused[0].recv(1 << 16)
        assert status(answer) == 503
        assert b"the server is busy" in answer
    finally:
        for connection in connections:
            connection.close()
    assert gateway.post(BODY).status == 200


def test_a_failure_of_the_gateway_tells_the_caller_nothing(gateway):
    answer = service_pb2.ModelInferResponse()
    answer.outputs.add(name="n", datatype="FP32", shape=[1])
    answer.raw_output_contents.append(struct.pack("<I", 1)[:3])
    gateway.triton.answer = answer
    reply = gateway.post(BODY)
    assert (reply.status, reply.json) == (500, {"error": "the HTTP front failed; its log says why"})
