"""Every way a request can fail, and whose fault it is."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from tritonclient.utils import InferenceServerException

from client import AsyncSegmentationClient, SegmentationClient
from client.errors import (
    RequestError,
    RequestTimeoutError,
    SegmentationError,
    ServerError,
    ServerUnavailableError,
    translated_errors,
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("StatusCode.INVALID_ARGUMENT", RequestError),
        ("400", RequestError),
        ("StatusCode.UNAVAILABLE", ServerUnavailableError),
        ("503", ServerUnavailableError),
        ("StatusCode.NOT_FOUND", ServerUnavailableError),
        ("404", ServerUnavailableError),
        ("StatusCode.DEADLINE_EXCEEDED", RequestTimeoutError),
        ("StatusCode.INTERNAL", ServerError),
        ("500", ServerError),
        (None, ServerError),
    ],
)
def test_status_decides(status, kind):
    with pytest.raises(SegmentationError) as raised, translated_errors("host:1", 2.0):
        raise InferenceServerException("StatusCode.INVALID_ARGUMENT 400 words that mean nothing", status=status)
    assert type(raised.value) is kind
    assert raised.value.status == status


def test_the_servers_words_are_kept():
    with pytest.raises(RequestError) as raised, translated_errors("host:1", 2.0):
        raise InferenceServerException("parameter 'iou' is 2.0; allowed: a number from 0 to 1", status="400")
    assert str(raised.value) == "parameter 'iou' is 2.0; allowed: a number from 0 to 1"


@pytest.mark.parametrize("error", [TimeoutError(), asyncio.TimeoutError()])
def test_timeouts(error):
    with pytest.raises(RequestTimeoutError, match=r"host:1 within 2 s"), translated_errors("host:1", 2.0):
        raise error


def test_lost_connections():
    with (
        pytest.raises(ServerUnavailableError, match="closed the connection"),
        translated_errors("host:1", 2.0, KeyError),
    ):
        raise KeyError("gone")
    with pytest.raises(KeyError), translated_errors("host:1", 2.0):
        raise KeyError("not the connection's")


@contextmanager
def listener(answer):
    """A port where connections are answered with these bytes, or left waiting (None)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if answer is not None:
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()
    thread.join(5)


@contextmanager
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"127.0.0.1:{port}"


def segment(url, protocol, asynchronous, timeout_s=10.0):
    if not asynchronous:
        with SegmentationClient(url, protocol, timeout_s=timeout_s) as client:
            return client.segment(b"image")

    async def run():
        async with AsyncSegmentationClient(url, protocol, timeout_s=timeout_s) as client:
            return await client.segment(b"image")

    return asyncio.run(run())


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "async"])
protocols = pytest.mark.parametrize("protocol", ["grpc", "http"])


@both
@protocols
def test_no_server(protocol, asynchronous):
    with closed_port() as url, pytest.raises(ServerUnavailableError, match="python -m serving run") as raised:
        segment(url, protocol, asynchronous)
    assert url in str(raised.value)


@both
@protocols
def test_a_server_that_never_answers(protocol, asynchronous):
    started = time.monotonic()
    with listener(None) as url, pytest.raises((RequestTimeoutError, ServerUnavailableError)) as raised:
        segment(url, protocol, asynchronous, timeout_s=0.5)
    assert time.monotonic() - started < 5
    if protocol == "http":
        assert isinstance(raised.value, RequestTimeoutError)


@both
def test_http_connection_closed_in_the_middle(asynchronous):
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"
    with listener(cut) as url, pytest.raises(ServerUnavailableError, match="closed the connection"):
        segment(url, "http", asynchronous)


@both
def test_http_refusal(asynchronous):
    body = b'{"error":"the image is empty"}'
    answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with listener(answer) as url, pytest.raises(RequestError) as raised:
        segment(url, "http", asynchronous)
    assert str(raised.value) == "image of 5 bytes: the image is empty"
    assert raised.value.status == "400"


@protocols
def test_wait_ready_has_a_bound(protocol):
    with closed_port() as url, SegmentationClient(url, protocol) as client:
        assert client.is_ready() is False
        started = time.monotonic()
        with pytest.raises(ServerUnavailableError, match="python -m serving run"):
            client.wait_ready(0.5)
        assert 0.2 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "soap"}, "allowed: grpc, http"),
        ({"precision": "int4"}, "allowed: fp32, fp16, int8"),
        ({"timeout_s": 0}, "above 0"),
        ({"url": "http://host:8000"}, "without a scheme"),
        ({"url": "host"}, "HOST:PORT"),
    ],
)
@pytest.mark.parametrize("kind", [SegmentationClient, AsyncSegmentationClient])
def test_wrong_settings(kind, arguments, message):
    with pytest.raises(RequestError, match=message):
        kind(**arguments)


def test_default_urls():
    assert AsyncSegmentationClient().url == "127.0.0.1:8001"
    assert AsyncSegmentationClient(protocol="http").url == "127.0.0.1:8000"
