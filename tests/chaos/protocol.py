"""Requests that break the protocol: KServe over raw HTTP and raw gRPC, with every part of them wrong in turn."""

from __future__ import annotations

import functools
import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from tritonclient.grpc import service_pb2

MODEL: Final = "segment_int8"
INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
_PATH: Final = f"/v2/models/{MODEL}/infer"


@dataclass(frozen=True)
class Malformed:
    """One request that is at fault.

    Attributes:
        kind: for the table.
        name: what is wrong with it.
        http: bytes for a socket; None if it goes over gRPC.
        grpc: message for ``ModelInfer``; None if it goes over HTTP.
        message: the message's bytes instead, which may be none.
        method: of the gRPC service.
        to_grpc_port: whether the bytes for a socket go where gRPC is spoken.
        half_close: whether the sender says after the bytes that it will send no more.
        may_close: whether the server may end the connection without an answer: what came was not HTTP.
        valid: whether an answer is right after all.
        may_be_busy: whether it may be refused for overload.
        mask_format: that it asks for.
        unbatched: whether the answer has no batch axis: Triton 2.51 makes a batch of one of a batch of none with an
            image in it, and leaves its axis out of the answer.
    """

    kind: str
    name: str
    http: bytes | None = None
    grpc: Any = None
    message: bytes | None = None
    method: str = INFER
    to_grpc_port: bool = False
    half_close: bool = False
    may_close: bool = False
    valid: bool = False
    unbatched: bool = False
    may_be_busy: bool = False
    mask_format: str = "rle"


def http_request(body: bytes, header_length: int | None = None, path: str = _PATH, **headers: str) -> bytes:
    """A POST as bytes.

    Args:
        body: of the request.
        header_length: of the JSON in front of binary data; None leaves the header out.
        path: of the request.
        headers: more of them, or others in place of the right ones; underscores become hyphens.
    """
    lines = {"Host": "127.0.0.1", "Content-Length": str(len(body)), "Connection": "close"}
    if header_length is not None:
        lines["Inference-Header-Content-Length"] = str(header_length)
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def infer_body(image: bytes, change: Callable[[dict[str, Any]], Any] | None = None) -> tuple[bytes, int]:
    """A right request, changed: body and length of its JSON."""
    data = struct.pack("<I", len(image)) + image
    request: dict[str, Any] = {
        "inputs": [
            {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
        ]
    }
    if change is not None:
        request = change(request) or request
    text = json.dumps(request).encode()
    return text + data, len(text)


def over_http(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    """One of each, over HTTP; numbers in them are drawn."""

    def made(
        name: str, change: Callable[[dict[str, Any]], Any], valid: bool = False, unbatched: bool = False
    ) -> Malformed:
        request = http_request(*infer_body(image, change))
        return Malformed("KServe over HTTP", name, request, valid=valid, unbatched=unbatched)

    def set_input(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
        return lambda request: request["inputs"][0].__setitem__(key, value)

    wild = chance.choice([2**31, 2**63, -1, 10**30, 0, 9])
    for name, value in {
        "shape with a negative side": [-1, 1],
        "shape of no axes": [],
        "shape of five axes": [1] * 5,
        "shape far too large": [2**40, 2**40],
        "shape drawn": [wild, 1],
        "shape of text": ["a", "b"],
        "shape null": None,
        "batch of nine": [9, 1],
        "batch of none": [0, 1],
        "batch of 2**32": [2**32, 1],
    }.items():
        yield made(name, set_input("shape", value), unbatched=_is_none(value))
    for value in ("FP32", "INT64", "UINT8", "BOOL", "", "BYTES ", "XX", 7, None):
        yield made(f"datatype {value!r}", set_input("datatype", value))
    for value in ("", "images", "image\0", "ï", "a" * 10_000, 3):
        # Triton reads a name up to its NUL.
        yield made(f"input called {str(value)[:10]!r}", set_input("name", value), valid=value == "image\0")
    for value in (0, 1, 3, 4, 10**9, 2**63, -5, "x", None, 1.5):
        yield made(f"binary_data_size {value!r}", set_input("parameters", {"binary_data_size": value}))
    yield made("no inputs", lambda request: {"inputs": []})
    yield made("no entry for inputs", lambda request: {"outputs": []})
    yield made("inputs twice", lambda request: {"inputs": request["inputs"] * 2})
    yield made("inputs a number", lambda request: {"inputs": 4})
    yield made("an unknown output", lambda request: request | {"outputs": [{"name": "secrets"}]})
    yield made(
        "ten thousand outputs", lambda request: request | {"outputs": [{"name": f"o{i}"} for i in range(10_000)]}
    )
    yield from (made(f"parameter {name}", change) for name, change in _parameters(chance))
    yield from _http_framing(image, chance)


def _set_datatype(request: Any, datatype: str) -> None:
    request.inputs[0].datatype = datatype


def _set_version(request: Any, version: str) -> None:
    request.model_version = version


def _is_none(shape: Any) -> bool:
    """Whether Triton 2.51 takes a shape for a batch of none: it keeps 32 bits of the first side."""
    return bool(shape) and isinstance(shape[0], int) and len(shape) == 2 and shape[0] % 2**32 == 0 and shape[0] < 2**64


def _parameters(chance: random.Random) -> Iterator[tuple[str, Callable[[dict[str, Any]], Any]]]:
    def change(**parameters: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda request: request | {"parameters": parameters}

    value: Any
    for name in ("confidence", "iou", "max_detections", "mask_format", "classes"):
        for value in (-1, 1e308, 2**62, "", "x" * 100_000, "\0", True, chance.uniform(1.01, 99), "NaN", "1e400"):
            yield f"{name} {str(value)[:12]!r}", change(**{name: value})
        for value in ([1], {"a": 1}, None):
            yield f"{name} {value!r}", change(**{name: value})
    yield "an unknown one", change(color="red")
    yield "ten thousand unknown ones", change(**{f"p{i}": i for i in range(10_000)})
    yield "NaN as a number", change(confidence=float("nan"))
    yield "an endless number", change(iou=float("inf"))


def _http_framing(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    """What is wrong around the JSON, and JSON that is none."""
    kind = "HTTP framing"
    body, length = infer_body(image)
    for value in ("0", "1", "-1", str(length - 1), str(length + 1), str(2**40), str(2**64), "x", "", "1e3"):
        request = http_request(body, Inference_Header_Content_Length=value)
        yield Malformed(kind, f"header length {value!r}", request, may_close=not value)
    yield Malformed(kind, "no header length", http_request(body))
    for name, text in {
        "empty": b"",
        "half of it": body[: length // 2],
        "brackets ten thousand deep": b"[" * 10_000,
        "objects ten thousand deep": b'{"inputs":' * 10_000,
        "invalid UTF-8": b'{"inputs":[{"name":"\xff\xfe"}]}',
        "a NUL": b'{"inputs":\0}',
        "a number of a million digits": b"9" * 1_000_000,
        "an array": b"[1,2,3]",
        "null": b"null",
        "one megabyte of spaces": b" " * 1_000_000,
        "noise": chance.randbytes(5000),
    }.items():
        yield Malformed("JSON", name, http_request(text, len(text)))
        yield Malformed("JSON", f"{name}, without binary data", http_request(text))
    for path in (
        "/v2/models/nothing/infer",
        f"/v2/models/{MODEL}/versions/99/infer",
        f"/v2/models/{MODEL}/versions/x/infer",
        "/v2/models/../../etc/passwd/infer",
        "/v2/models/%00/infer",
        "/v2/models//infer",
        f"/v2/models/{'a' * 4000}/infer",
        "/v2/repository/models/segment_int8/unload",
        "/v2/systemsharedmemory/status",
        "/v2/trace/setting",
        "/nothing",
    ):
        yield Malformed("HTTP path", path[:60], http_request(body, length, path=path))
    right = http_request(body, length)
    yield Malformed(
        kind, "a header of 60 KB", http_request(body, length, X_Long="a" * 60_000), may_close=True, valid=True
    )
    yield Malformed(
        kind, "a header of 2 MB", http_request(body, length, X_Long="a" * 2_000_000), may_close=True, valid=True
    )
    yield Malformed(
        kind,
        "a content length that is negative",
        right.replace(b"Content-Length: ", b"Content-Length: -"),
        may_close=True,
    )
    yield Malformed(kind, "no request line", b"\r\n\r\n" + right, may_close=True, valid=True)
    yield Malformed(kind, "noise", chance.randbytes(3000), may_close=True)
    yield Malformed(kind, "TLS", bytes.fromhex("160301020001000001fc0303") + bytes(200), may_close=True)
    yield Malformed(kind, "HTTP/9.9", right.replace(b"HTTP/1.1", b"HTTP/9.9", 1), may_close=True, valid=True)
    yield Malformed(kind, "GET", right.replace(b"POST", b"GET", 1), may_close=True)
    yield Malformed(kind, "gzip that is none", http_request(body, length, Content_Encoding="gzip"), may_close=True)


def over_grpc(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    """One of each, over gRPC."""
    raw = struct.pack("<I", len(image)) + image

    def made(name: str, change: Callable[[Any], object], valid: bool = False, unbatched: bool = False) -> Malformed:
        request = service_pb2.ModelInferRequest(model_name=MODEL)
        request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(raw)
        change(request)
        return Malformed("KServe over gRPC", name, grpc=request, valid=valid, unbatched=unbatched)

    def content(data: bytes) -> Callable[[Any], None]:
        return lambda request: request.raw_input_contents.__setitem__(0, data)

    def shape(*sides: int) -> Callable[[Any], None]:
        return lambda request: request.inputs[0].shape.__setitem__(slice(None), sides)

    def parameter(name: str, **value: Any) -> Callable[[Any], None]:
        return lambda request: request.parameters[name].CopyFrom(service_pb2.InferParameter(**value))

    for sides in ((), (1,), (-1, 1), (2**40, 2**40), (9, 1), (0, 1), (1, 1, 1, 1), (2, 1), (chance.getrandbits(62), 1)):
        yield made(f"shape {sides}", shape(*sides), unbatched=_is_none(sides))
    for name, data in {
        "nothing": b"",
        "three bytes": b"abc",
        "a length alone": raw[:4],
        "a length that is too long": struct.pack("<I", 2**32 - 1) + image,
        "a length that is too short": struct.pack("<I", 5) + image,
        "cut off": raw[: len(raw) // 2],
        "two images for one": raw * 2,
        "noise": chance.randbytes(2000),
    }.items():
        yield made(f"content: {name}", content(data))
    for datatype in ("FP32", "", "STRING", "BYTES\0", "é"):
        yield made(
            f"datatype {datatype!r}",
            functools.partial(_set_datatype, datatype=datatype),
            valid=datatype == "BYTES\0",  # read up to its NUL
        )
    yield made("no model", lambda request: setattr(request, "model_name", ""))
    yield made("an unknown model", lambda request: setattr(request, "model_name", "x" * 5000))
    for version in ("99", "-1", "abc", "9" * 40):
        yield made(f"version {version[:5]}", functools.partial(_set_version, version=version))
    yield made("no inputs", lambda request: request.ClearField("inputs"))
    yield made("the input twice", lambda request: request.inputs.add().CopyFrom(request.inputs[0]))
    yield made("content twice", lambda request: request.raw_input_contents.append(raw), valid=True)
    yield made("no content", lambda request: request.ClearField("raw_input_contents"))
    yield made("content in both places", lambda request: request.inputs[0].contents.bytes_contents.append(image))
    yield made("an unknown output", lambda request: request.outputs.add(name="secrets"))
    yield made("an identifier of 1 MB", lambda request: setattr(request, "id", "i" * 1_000_000), valid=True)
    for region in ("", "nothing", "../../etc/passwd"):
        yield made(f"shared memory {region!r}", _shared_memory(region))
    for name in ("confidence", "iou", "max_detections", "classes", "mask_format"):
        for value in (
            {"double_param": float("nan")},
            {"int64_param": -(2**63)},
            {"string_param": "\0" * 100},
            {"bool_param": True},
        ):
            yield made(f"parameter {name} {next(iter(value.values()))!r:.15}", parameter(name, **value))
    yield made("an unknown parameter", parameter("color", string_param="red"))
    yield made("a parameter without a value", parameter("confidence"))


def _shared_memory(region: str) -> Callable[[Any], None]:
    def change(request: Any) -> None:
        request.ClearField("raw_input_contents")
        request.inputs[0].parameters["shared_memory_region"].string_param = region
        request.inputs[0].parameters["shared_memory_byte_size"].int64_param = 100

    return change


def send_http(url: str, request: bytes, timeout_s: float, half_close: bool = False) -> tuple[int | None, bytes]:
    """Send bytes and read the answer; its status (None if the connection was closed without one) and its body."""
    host, port = url.split(":")
    with socket.create_connection((host, int(port)), timeout_s) as connection:
        connection.settimeout(timeout_s)
        received = b""
        try:
            connection.sendall(request)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(1 << 16):
                received += chunk
                if _is_whole(received):
                    break
        except (BrokenPipeError, ConnectionResetError):
            pass  # it answered, or closed, before it had read everything
    if not received.startswith(b"HTTP/"):
        return None, received
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def _is_whole(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if separator and line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False


def dribble(url: str, seconds: float) -> bool:
    """Send a request a byte at a time, and give up; returns whether the connection held that long."""
    host, port = url.split(":")
    request = http_request(b"x" * 1000, 10)
    ends = time.monotonic() + seconds
    with socket.create_connection((host, int(port)), 10) as connection:
        for byte in request:
            if time.monotonic() > ends:
                return True
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                return False
            time.sleep(0.05)
    return True
