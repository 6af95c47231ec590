"""Every way a request can fail, and whose fault it is."""

import asyncio
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from contextlib import contextmanager, suppress

import pytest

from client import AsyncSegmentationClient, SegmentationClient
from client.errors import (
    AnswerError,
    RequestError,
    RequestTimeoutError,
    ServerError,
    ServerUnavailableError,
    answer_errors,
    error_of_status,
    translated_errors,
)


@pytest.mark.parametrize("error", [TimeoutError(), asyncio.TimeoutError()])
def test_timeouts(error):
    with pytest.raises(RequestTimeoutError, match=r"host:1 within 2 s"), translated_errors("host:1", 2.0, "grpc"):
        raise error


@pytest.mark.parametrize("error", [KeyError("gone"), ValueError("no JSON"), UnicodeError("label"), OSError(111, "no")])
def test_whatever_a_library_raises_is_an_error_of_the_connection(error):
    with (
        pytest.raises(ServerUnavailableError, match="no http connection to host:1: ") as raised,
        translated_errors("host:1", 2.0, "http"),
    ):
        raise error
    assert isinstance(raised.value, ConnectionError)
    assert raised.value.__cause__ is error


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
                if answer is RESET:
                    connection.recv(1)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.close()
                elif answer is not None:
                    with suppress(OSError):
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


def test_no_server(connect):
    with closed_port() as url, pytest.raises(ServerUnavailableError, match="python -m serving run") as raised:
        connect(url).segment(b"image")
    assert url in str(raised.value)


def test_a_server_that_never_answers(connect):
    started = time.monotonic()
    with listener(None) as url, pytest.raises(RequestTimeoutError, match=r"within 0\.5 s"):
        connect(url, timeout_s=0.5).segment(b"image")
    assert 0.4 < time.monotonic() - started < 5


@pytest.mark.parametrize("protocol", ["http"])
def test_http_connection_closed_in_the_middle(connect):
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"
    with listener(cut) as url, pytest.raises(ServerUnavailableError, match="no http connection to"):
        connect(url).segment(b"image")


@pytest.mark.parametrize("protocol", ["http"])
def test_http_refusal(connect):
    body = b'{"error":"the image is empty"}'
    answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with listener(answer) as url, pytest.raises(RequestError) as raised:
        connect(url).segment(b"image")
    assert str(raised.value) == "image of 5 bytes: the image is empty"
    assert raised.value.status == "400"


RESET = object()
OK = b"HTTP/1.1 200 OK\r\n"


STRANGERS = {
    "http/2": b"\0\0\x12\4\0\0\0\0\0\0\3\0\0\0\x64\0\4\0\0\xff\xff\0\5\0\0\x40\0",
    "ssh": b"SSH-2.0-OpenSSH_9\r\n",
    "tls alert": b"\x15\3\1\0\2\2\x46",
    "closed": b"",
    "reset": RESET,
    "html": OK + b"Content-Length: 6\r\n\r\n<html>",
    "nothing": OK + b"Content-Length: 0\r\n\r\n",
    "list": OK + b"Content-Length: 2\r\n\r\n[]",
    "object": OK + b"Content-Length: 2\r\n\r\n{}",
    "half json": OK + b"Content-Length: 19\r\n\r\n" + b'{"outputs":[{"a":1}',
    "cut": OK + b"Content-Length: 1000\r\n\r\n{",
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "header length": OK + b"Inference-Header-Content-Length: 999\r\nContent-Length: 2\r\n\r\n{}",
    "gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "long header": OK + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
    "gateway": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", STRANGERS.values(), ids=STRANGERS)
def test_a_port_where_something_else_answers(answer, protocol, connect):
    with listener(answer) as url:
        assert connect(url, timeout_s=5).is_ready() is False
    with listener(answer) as url, pytest.raises((ServerUnavailableError, ServerError)) as raised:
        connect(url).segment(b"image")
    if "the answer has no output" not in str(raised.value):
        assert url in str(raised.value)
        assert protocol in str(raised.value)


@pytest.mark.parametrize("protocol", ["http"])
@pytest.mark.parametrize(
    "body", [b"no JSON", b"[" * 200_000, b'{"outputs":[5]}', b'{"outputs":[{"name":"boxes"}]}', b"\xff"]
)
def test_an_answer_that_cannot_be_read_is_a_fault_of_that_answer(body, connect):
    answer = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with listener(answer) as url, pytest.raises(AnswerError, match=f"the answer of {url}"):
        connect(url, timeout_s=5).segment(b"image")


@pytest.mark.parametrize("protocol", ["http"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_answer_that_would_become_huge_is_not_inflated(encoding, connect):
    packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    body = packer.compress(bytes(64 << 20)) + packer.flush()
    answer = OK + f"Content-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with listener(answer) as url:
        client = connect(url, timeout_s=20)
        tracemalloc.start()
        try:
            with pytest.raises(AnswerError, match=f"Content-Encoding is {encoding}; allowed: none"):
                client.segment(b"image")
            assert tracemalloc.get_traced_memory()[1] < 20 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("error", [UnicodeError("label"), OSError(111, "no"), ConnectionResetError()])
def test_faults_of_the_connection_are_not_faults_of_the_answer(error):
    with pytest.raises(type(error)), answer_errors("host:1", "http"):
        raise error


@pytest.mark.parametrize("message", [None, ["x"], 5, "x" * 100_000])
def test_a_servers_message_may_be_anything(message):
    for status in ("400", "500", "503", None):
        assert len(str(error_of_status(status, message, "host:1", 1.0))) < 3000


@pytest.mark.parametrize("url", ["no.such.host.invalid:8000", "[::1]:9"])
def test_names_that_lead_nowhere(url, connect):
    assert connect(url, timeout_s=5).is_ready() is False
    with pytest.raises(ConnectionError) as raised:
        connect(url).segment(b"image")
    assert isinstance(raised.value, ServerUnavailableError)
    assert url in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "soap"}, "allowed: grpc, http"),
        ({"precision": "int4"}, "allowed: fp32, fp16, int8"),
        ({"timeout_s": 0}, "above 0"),
        ({"url": "http://host:8000"}, "without a scheme"),
        ({"url": "host"}, "HOST:PORT"),
        ({"url": "host:0"}, "HOST:PORT"),
        ({"url": "a..b:8000"}, "HOST:PORT"),
        ({"url": "a" * 70 + ".b:8000"}, "HOST:PORT"),
        ({"url": "host:65536"}, "HOST:PORT"),
    ],
)
@pytest.mark.parametrize("kind", [SegmentationClient, AsyncSegmentationClient])
def test_wrong_settings(kind, arguments, message):
    with pytest.raises(RequestError, match=message):
        kind(**arguments)


def test_default_urls():
    assert AsyncSegmentationClient().url == "127.0.0.1:8001"
    assert AsyncSegmentationClient(protocol="http").url == "127.0.0.1:8000"


def test_wait_ready_has_a_bound(connect):
    with closed_port() as url:
        started = time.monotonic()
        with pytest.raises(ServerUnavailableError, match="python -m serving run"):
            connect(url).wait_ready(0.5)
        assert 0.2 < time.monotonic() - started < 5
