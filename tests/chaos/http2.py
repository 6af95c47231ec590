"""Attacks on the gRPC port: raw HTTP/2 frames (RFC 9113), endless metadata, thousands of calls, bombs of protobuf.

What counts is what is left: the server's process, and its answer to the next request.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.chaos.protocol import INFER, infer_request

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(10)
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8
_STREAM_INFER: Final = INFER.replace("ModelInfer", "ModelStreamInfer")
_CHUNK_BYTES: Final = 1 << 20
_LISTEN_S: Final = 0.3  # after the last byte was sent
_FRAME_BYTES: Final = 1 << 14  # the largest that every receiver takes


@dataclass(frozen=True)
class Attack:
    """What one connection sends."""

    name: str  # what is wrong with it
    data: bytes  # bytes
    connections: int = 1  # how many send it at the same time


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """One frame; its length may be a lie."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """A header as HPACK writes it without tables or Huffman's code (RFC 7541, 6.2.2)."""
    return b"\0" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    """A length of seven bits, or more of them (RFC 7541, 5.1)."""
    if len(text) < 127:
        return bytes([len(text)])
    rest, written = len(text) - 127, bytearray([127])
    while rest > 127:
        written.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*written, rest])


def call(stream: int, method: str = INFER, more: bytes = b"", flags: int = _END_HEADERS) -> bytes:
    """The frame that begins a gRPC call."""
    head = {b":method": b"POST", b":scheme": b"http", b":path": method.encode(), b":authority": b"h"}
    head |= {b"te": b"trailers", b"content-type": b"application/grpc"}
    return frame(_HEADERS, flags, stream, b"".join(header(*one) for one in head.items()) + more)


def message(
    stream: int, data: bytes, length: int | None = None, compressed: int = 0, flags: int = _END_STREAM
) -> bytes:
    """The frames of one gRPC message; its length may be a lie."""
    whole = struct.pack(">BI", compressed, len(data) if length is None else length) + data
    parts = [whole[start : start + _FRAME_BYTES] for start in range(0, len(whole), _FRAME_BYTES)]
    frames = [frame(_DATA, 0, stream, part) for part in parts[:-1]]
    return b"".join([*frames, frame(_DATA, flags, stream, parts[-1])])


def attacks(image: bytes) -> Iterator[Attack]:
    """Each attack once, the preface of the connection in front."""
    start = _PREFACE + frame(_SETTINGS, 0, 0)
    for name, data in {**_frames(), **_streams(), **_metadata(), **_messages(image)}.items():
        yield Attack(name, start + data)
    yield Attack("200 connections that say nothing", b"", 200)
    yield Attack("200 connections that stop within a call", start + call(1), 200)


def _frames() -> dict[str, bytes]:
    """Frames that are wrong in themselves, or too many."""
    setting = struct.Struct(">HI").pack
    return {
        "a length beyond the bytes": frame(_DATA, 0, 1, b"x", length=2**24 - 1),
        "data on stream 0": frame(_DATA, 0, 0, b"x" * 100),
        "data on a stream that is not open": frame(_DATA, 0, 77, b"x" * 100),
        "headers on an even stream": call(2),
        "streams in falling order": call(9) + call(7),
        "padding beyond the frame": frame(_HEADERS, _PADDED | _END_HEADERS, 1, b"\xff" + b"x" * 10),
        "settings of five bytes": frame(_SETTINGS, 0, 0, b"x" * 5),
        "an initial window of 2^31": frame(_SETTINGS, 0, 0, setting(4, 2**31)),
        "a frame size of 0": frame(_SETTINGS, 0, 0, setting(5, 0)),
        "100,000 settings": frame(_SETTINGS, 0, 0, setting(3, 1)) * 100_000,
        "10,000 pings": frame(_PING, 0, 0, b"x" * 8) * 10_000,
        "a window that overflows": frame(_WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 3,
        "a window update of 0": call(1) + frame(_WINDOW, 0, 1, bytes(4)),
        "a push": frame(_PUSH, _END_HEADERS, 1, struct.pack(">I", 2) + header(b"a", b"b")),
        "goaway, then a call": frame(_GOAWAY, 0, 0, bytes(8)) + call(1),
        "100,000 priorities": frame(_PRIORITY, 0, 1, b"\0\0\0\3x") * 100_000,
        "frames of unknown kinds": b"".join(frame(kind, 255, 2**31 - 1, b"x" * 50) for kind in range(10, 256)),
        "100,000 empty data frames": call(1) + frame(_DATA, 0, 1) * 100_000,
    }


def _streams() -> dict[str, bytes]:
    numbers = range(1, 20_001, 2)
    return {
        "10,000 calls that never end": b"".join(call(number) for number in numbers),
        "10,000 calls of another method that never end": b"".join(call(number, _STREAM_INFER) for number in numbers),
        # CVE-2023-44487
        "10,000 calls reset at once": b"".join(call(one) + frame(_RST, 0, one, b"\0\0\0\x08") for one in numbers),
        "10,000 whole calls reset at once": b"".join(
            call(one) + message(one, b"") + frame(_RST, 0, one, b"\0\0\0\x08") for one in numbers
        ),
        "10,000 methods that do not exist": b"".join(call(one, f"/{one}", flags=5) for one in numbers),
    }


def _metadata() -> dict[str, bytes]:
    """Headers: many, large, never ending, and small ones that stand for large ones (CVE-2023-33953)."""
    many = b"".join(header(b"k%d" % number, b"v" * 50) for number in range(200))
    endless = frame(_CONTINUATION, 0, 1, header(b"k", b"v" * 16_000)) * 2000
    table = b"\x40\x01k" + _length(b"v" * 4000) + b"v" * 4000  # kept in the table, then named 16,000 times a frame
    bomb = call(1, more=table, flags=0) + frame(_CONTINUATION, 0, 1, b"\xbe" * 16_000) * 100
    return {
        "200 headers": call(1, more=many) + message(1, b""),
        "headers that never end": call(1, flags=0) + endless,
        "100,000 continuations of nothing": call(1, flags=0) + frame(_CONTINUATION, 0, 1) * 100_000,
        "headers that stand for 6 GB": bomb,
        "a table of 4 GB": frame(_HEADERS, _END_HEADERS, 1, b"\x3f\xe1\xff\xff\xff\x0f"),
        "a number without an end": frame(_HEADERS, _END_HEADERS, 1, b"\x7f" + b"\xff" * 1000),
        "an index that is not in the table": frame(_HEADERS, _END_HEADERS, 1, b"\xff\xff\xff\x7f"),
        "Huffman's code that is none": frame(_HEADERS, _END_HEADERS, 1, b"\0\x81k\x8a" + b"\xff" * 10),
        "letters that no header may have": call(1, more=header(b"A\0\r\n", b"\0\r\n\xff")) + message(1, b""),
        "a timeout that is none": call(1, more=header(b"grpc-timeout", b"9" * 5000 + b"H")) + message(1, b""),
        "another content type": call(1, more=header(b"content-type", b"text/html")) + message(1, b""),
    }


def _messages(image: bytes) -> dict[str, bytes]:
    """Lengths and flags that lie. What is larger than a stream's first window is in :func:`bombs`."""
    right = infer_request([image]).SerializeToString()
    zipped = call(1, more=header(b"grpc-encoding", b"gzip"))
    return {
        "a message of 4 GB": call(1) + message(1, right, length=2**32 - 1),
        "a message shorter than it says": call(1) + message(1, right, length=len(right) + 1000),
        "a message longer than it says": call(1) + message(1, right, length=10),
        "two messages": call(1) + message(1, right, flags=0) + message(1, right),
        "a flag of 255": call(1) + message(1, right, compressed=255),
        "gzip that is none": zipped + message(1, right, compressed=1),
        "an unknown compression": call(1, more=header(b"grpc-encoding", b"x")) + message(1, right, compressed=1),
        "more than the window": call(1) + message(1, bytes(1 << 20)),
    }


def bombs(image: bytes) -> Iterator[tuple[str, bytes]]:
    """Messages of which a few bytes become many, for a gRPC client with or without compression."""
    right = infer_request([image]).SerializeToString()
    numbers = b"\x1a" + _length_delimited(bytes(1 << 20))  # InferTensorContents.int64_contents, packed
    yield "groups 50,000 deep", b"\xfb\x01" * 50_000
    yield "half a million empty inputs", b"\x2a\0" * 500_000
    yield "half a million outputs", b"\x32\0" * 500_000
    yield "half a million contents", right + b"\x3a\0" * 500_000
    parameter = (_length_delimited(b"\x0a" + _length_delimited(b"%d" % number)) for number in range(500_000))
    yield "half a million parameters", b"\x22" + b"\x22".join(parameter)
    yield (
        "a million numbers for one text",
        b"\x2a" + _length_delimited(b"\x0a\x05image\x2a" + _length_delimited(numbers)),
    )
    yield (
        "a shape of a million sides",
        b"\x0a\x0csegment_int8\x2a" + _length_delimited(b"\x0a\x05image\x1a" + _length_delimited(b"\1" * (1 << 20))),
    )
    yield "16 MB of zeros", b"\x3a" + _length_delimited(bytes(16 << 20))


def _length_delimited(data: bytes) -> bytes:
    size, written = len(data), bytearray()
    while size > 127:
        written.append(size & 127 | 128)
        size >>= 7
    return bytes([*written, size]) + data


def send(url: str, attack: Attack, patience_s: float) -> None:
    """Send it, and read what comes back until the other side closes, or for as long as the patience lasts."""
    host, port = url.split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(attack.connections - 1):
            stack.enter_context(socket.create_connection((host, int(port)), patience_s)).sendall(attack.data)
        last = stack.enter_context(socket.create_connection((host, int(port)), patience_s))
        _send_and_drain(last, attack.data, time.monotonic() + patience_s)


def _send_and_drain(connection: socket.socket, data: bytes, ends: float) -> None:
    """Read while writing: a server that answers every frame stops reading when nobody reads its answers."""
    connection.setblocking(False)
    view = memoryview(data)
    while time.monotonic() < ends:
        with contextlib.suppress(BlockingIOError):
            try:
                view = view[connection.send(view[:_CHUNK_BYTES]) :] if view else view
            except (BrokenPipeError, ConnectionResetError):
                return
        try:
            if not connection.recv(_CHUNK_BYTES):
                return
        except BlockingIOError:
            time.sleep(0.002)
        except ConnectionResetError:
            return
        if not view:
            ends = min(ends, time.monotonic() + _LISTEN_S)
