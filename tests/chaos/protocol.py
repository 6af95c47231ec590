"""Requests that break the protocol, over raw HTTP and raw gRPC, and what sends them.

Triton's parsers are not the subject. The cases are those that reach this project's code (parameters, contents, shapes),
that meet a bound or a closed method that it promises, and bodies that are known to end servers.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tritonclient.grpc import service_pb2

MODEL = "segment_int8"  # who tries another one sets it first
_SERVICE: Final = "/inference.GRPCInferenceService"
INFER: Final = f"{_SERVICE}/ModelInfer"
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

HOSTILE_BODIES: Final[dict[str, bytes]] = {
    "empty": b"",
    "brackets ten thousand deep": b"[" * 10_000,
    "objects ten thousand deep": b'{"inputs":' * 10_000,
    "invalid UTF-8": b'{"inputs":[{"name":"\xff\xfe"}]}',
    "a NUL": b'{"inputs":\0}',
    "a number of a million digits": b"9" * 1_000_000,
    "an array": b"[1,2,3]",
    "one megabyte of spaces": b" " * 1_000_000,
}
"""Bodies in place of the JSON of a request; one that ends a server, or did, belongs here."""


@dataclass(frozen=True)
class Malformed:
    """One request that is at fault."""

    kind: str  # row of the table
    name: str  # what is wrong with it
    http: bytes | None = None  # bytes for a socket; None if it goes over gRPC
    message: bytes = b""  # bytes of the gRPC message, which may be none
    method: str = INFER  # gRPC method
    to_grpc_port: bool = False  # whether the bytes for a socket go to the gRPC port
    half_close: bool = False  # whether the sender closes its side of the connection after the bytes
    may_close: bool = False  # whether the server may close the connection without an answer: what came was not HTTP
    valid: bool = False  # whether an answer is right after all
    may_be_busy: bool = False  # whether it may be refused for overload
    mask_format: str = "rle"  # that it asks for


def http_request(body: bytes, header_length: int | None = None, path: str | None = None, **headers: str) -> bytes:
    """A POST as bytes; headers are added or replaced, with hyphens for underscores.

    ``header_length`` is that of the JSON in front of binary data; None leaves the header out.
    """
    lines = {"Host": "127.0.0.1", "Content-Length": str(len(body)), "Connection": "close"}
    if header_length is not None:
        lines["Inference-Header-Content-Length"] = str(header_length)
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path or f'/v2/models/{MODEL}/infer'} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def infer_body(image: bytes, change: Callable[[dict[str, Any]], Any] | None = None) -> tuple[bytes, int]:
    """Body of a valid HTTP request, changed, and the length of its JSON."""
    data = _sized(image)
    request: dict[str, Any] = {
        "inputs": [
            {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
        ]
    }
    if change is not None:
        request = change(request) or request
    text = json.dumps(request).encode()
    return text + data, len(text)


def infer_request(images: Sequence[bytes]) -> service_pb2.ModelInferRequest:
    """A valid gRPC request of encoded images."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="image", datatype="BYTES", shape=[len(images), 1])
    request.raw_input_contents.append(b"".join(_sized(image) for image in images))
    return request


def _sized(image: bytes) -> bytes:
    """An element of a BYTES tensor."""
    return struct.pack("<I", len(image)) + image


def malformed(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    """Each malformed request once, over both protocols; numbers and noise in them are drawn."""
    yield from _over_http(image, chance)
    yield from _http_framing(image, chance)
    yield from _over_grpc(image, chance)
    yield from _grpc_messages(image, chance)
    yield from _grpc_methods()
    yield from _connections(image)


def _over_http(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    def made(name: str, change: Callable[[dict[str, Any]], Any]) -> Malformed:
        return Malformed("KServe over HTTP", name, http_request(*infer_body(image, change)))

    def made_input(key: str, value: Any) -> Malformed:
        return made(f"{key} {value!r:.40}", lambda request: request["inputs"][0].update({key: value}))

    def made_parameter(name: str, value: Any) -> Malformed:
        return made(f"parameter {name} {value!r:.20}", lambda request: request | {"parameters": {name: value}})

    for shape in ([-1, 1], [], [1] * 5, ["a", "b"], None, [9, 1]):
        yield made_input("shape", shape)
    for datatype in ("FP32", "", 7):
        yield made_input("datatype", datatype)
    for size in (0, 3, 10**9, -5, "x", None):
        yield made_input("parameters", {"binary_data_size": size})
    yield made("no inputs", lambda request: {"inputs": []})
    yield made("inputs twice", lambda request: {"inputs": request["inputs"] * 2})
    yield made("an unknown output", lambda request: request | {"outputs": [{"name": "secrets"}]})
    for name in ("confidence", "iou", "max_detections", "mask_format", "classes"):
        value: Any
        for value in (-1, 1e308, 2**62, "", "x" * 100_000, "\0", True, chance.uniform(1.01, 99), "NaN", [1], None):
            yield made_parameter(name, value)
    yield made_parameter("color", "red")
    yield made_parameter("confidence", float("nan"))
    yield made(
        "ten thousand unknown parameters",
        lambda request: request | {"parameters": {f"p{number}": number for number in range(10_000)}},
    )


def _http_framing(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    """What is wrong around the JSON, JSON that is none, and paths that are closed or lead nowhere."""
    body, length = infer_body(image)
    right = http_request(body, length)
    for value in ("0", "-1", str(length + 1), str(2**64), "x"):
        yield Malformed(
            "HTTP framing", f"header length {value}", http_request(body, Inference_Header_Content_Length=value)
        )
    for name, data in {
        "a header of 2 MB": http_request(body, length, X_Long="a" * 2_000_000),
        "10,000 headers": right.replace(b"\r\n\r\n", b"\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", 1),
    }.items():
        yield Malformed("HTTP framing", name, data, may_close=True, valid=True)
    for name, data in {
        "a negative content length": right.replace(b"Content-Length: ", b"Content-Length: -"),
        "noise": chance.randbytes(3000),
        "TLS": bytes.fromhex("160301020001000001fc0303") + bytes(200),
        "gzip that is none": http_request(body, length, Content_Encoding="gzip"),
    }.items():
        yield Malformed("HTTP framing", name, data, may_close=True)
    for name, text in {**HOSTILE_BODIES, "noise": chance.randbytes(5000)}.items():
        yield Malformed("JSON", name, http_request(text, len(text)))
        yield Malformed("JSON", f"{name}, without binary data", http_request(text))
    for path in (
        "/v2/models/nothing/infer",
        f"/v2/models/{MODEL}/versions/99/infer",
        "/v2/models/../../etc/passwd/infer",
        f"/v2/models/{'a' * 4000}/infer",
        f"/v2/repository/models/{MODEL}/unload",
        "/v2/systemsharedmemory/status",
        "/v2/trace/setting",
    ):
        yield Malformed("HTTP path", path[:60], http_request(body, length, path=path))


def _over_grpc(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    right = infer_request([image])
    raw = right.raw_input_contents[0]

    def made(name: str, change: Callable[[Any], object], valid: bool = False) -> Malformed:
        request = service_pb2.ModelInferRequest.FromString(right.SerializeToString())
        change(request)
        return Malformed("KServe over gRPC", name, message=request.SerializeToString(), valid=valid)

    def made_shape(shape: Sequence[int]) -> Malformed:
        return made(f"shape {shape}", lambda request: request.inputs[0].shape.__setitem__(slice(None), shape))

    def made_content(name: str, data: bytes) -> Malformed:
        return made(f"content: {name}", lambda request: request.raw_input_contents.__setitem__(0, data))

    def made_parameter(name: str, **value: Any) -> Malformed:
        parameter = service_pb2.InferParameter(**value)
        text = f"parameter {name} {next(iter(value.values()), 'without a value')!r:.15}"
        return made(text, lambda request: request.parameters[name].CopyFrom(parameter))

    def made_region(region: str) -> Malformed:
        def change(request: Any) -> None:
            request.ClearField("raw_input_contents")
            request.inputs[0].parameters["shared_memory_region"].string_param = region
            request.inputs[0].parameters["shared_memory_byte_size"].int64_param = 100

        return made(f"shared memory {region!r}", change)

    for shape in ((), (1,), (-1, 1), (9, 1), (1, 1, 1, 1), (2, 1)):
        yield made_shape(shape)
    for name, data in {
        "nothing": b"",
        "three bytes": b"abc",
        "a length only": raw[:4],
        "a length that is too long": struct.pack("<I", 2**32 - 1) + image,
        "a length that is too short": struct.pack("<I", 5) + image,
        "cut off": raw[: len(raw) // 2],
        "two images for one": raw * 2,
        "noise": chance.randbytes(2000),
    }.items():
        yield made_content(name, data)
    yield made("no inputs", lambda request: request.ClearField("inputs"))
    yield made("no content", lambda request: request.ClearField("raw_input_contents"))
    yield made("an unknown output", lambda request: request.outputs.add(name="secrets"))
    yield made("an identifier of 1 MB", lambda request: setattr(request, "id", "i" * 1_000_000), valid=True)
    for region in ("", "../../etc/passwd"):
        yield made_region(region)
    for name in ("confidence", "iou", "max_detections", "classes", "mask_format"):
        yield made_parameter(name, double_param=float("nan"))
        yield made_parameter(name, int64_param=-(2**63))
        yield made_parameter(name, string_param="\0" * 100)
        yield made_parameter(name, bool_param=True)
    yield made_parameter("color", string_param="red")
    yield made_parameter("confidence")


def _grpc_messages(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    """Bytes where a ``ModelInferRequest`` should be, and a valid one with a few bytes changed in front of the image."""
    kind = "gRPC messages"
    right = infer_request([image]).SerializeToString()
    for name, message in {
        "cut in half": right[: len(right) // 2],
        "noise": chance.randbytes(3000),
        "a field of 2 GB": b"\x3a\xff\xff\xff\xff\x07",
        "a group that does not end": b"\x0b" * 5000,
        "nested ten thousand deep": b"\x0a\x80\x80\x01" * 10_000,
    }.items():
        yield Malformed(kind, name, message=message)
    for number in range(20):
        changed = bytearray(right)
        for _ in range(chance.choice((1, 1, 2, 5))):
            changed[chance.randrange(min(60, len(changed)))] = chance.randrange(256)
        yield Malformed(kind, f"mutation {number}", message=bytes(changed), valid=True)


def _grpc_methods() -> Iterator[Malformed]:
    """Methods that do not exist, or need the secret (``--grpc-restricted-protocol``)."""
    region = service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/../../etc/passwd", byte_size=2**63)
    for method, request in {
        "Nothing": service_pb2.ServerLiveRequest(),
        "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="../../../tmp"),
        "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name=MODEL),
        "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
        "SystemSharedMemoryRegister": region,
        "SystemSharedMemoryUnregister": service_pb2.SystemSharedMemoryUnregisterRequest(),
        "TraceSetting": service_pb2.TraceSettingRequest(),
        "LogSettings": service_pb2.LogSettingsRequest(),
    }.items():
        yield Malformed("gRPC methods", method, message=request.SerializeToString(), method=f"{_SERVICE}/{method}")


def _connections(image: bytes) -> Iterator[Malformed]:
    """Connections that end early, lie about lengths, or speak another protocol."""
    kind = "connections"
    body, length = infer_body(image)
    right = http_request(body, length)
    head = right.index(b"\r\n\r\n") + 4
    for name, data in {
        "the header": right[:head],
        "half of the body": right[: head + len(body) // 2],
        "a part of what the length says": http_request(body, length, Content_Length=str(len(body) + 1000)),
    }.items():
        yield Malformed(kind, f"half closed after {name}", data, half_close=True, may_close=True)
    for value in (str(len(body) - 100), "0x10", str(2**63), str(200 * 2**20)):
        yield Malformed(kind, f"length {value}", http_request(body, length, Content_Length=value), may_close=True)
    chunked = http_request(b"", length, Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
    chunks = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    yield Malformed(kind, "chunks", chunked + chunks, may_close=True, valid=True)
    yield Malformed(kind, "a chunk of 2**64", chunked + b"ffffffffffffffff\r\n" + body, may_close=True)
    yield Malformed(kind, "HTTP/2 to the HTTP port", _PREFACE + bytes(100), may_close=True)
    for name, data in {
        "HTTP/1": right,
        "a frame of 16 MB": _PREFACE + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(500),
        "10,000 resets": _PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\4\3\0\0\0\0\1\0\0\0\0" * 10_000,
    }.items():
        yield Malformed(kind, f"{name} to the gRPC port", data, to_grpc_port=True, half_close=True, may_close=True)


def send_http(url: str, request: bytes, timeout_s: float, half_close: bool = False) -> tuple[int | None, bytes]:
    """Send bytes and read the answer: its status (None if the connection was closed without one) and its body."""
    host, port = url.split(":")
    with socket.create_connection((host, int(port)), timeout_s) as connection:
        # It may answer, or close, before it has read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
            return response.status, response.read()
        except (http.client.HTTPException, ConnectionError):
            return None, b""


def dribble(url: str, seconds: float) -> None:
    """Send a request a byte at a time, and give up.

    Raises:
        OSError: the server closed the connection.
    """
    host, port = url.split(":")
    ends = time.monotonic() + seconds
    with socket.create_connection((host, int(port)), 10) as connection:
        for byte in http_request(b"x" * 1000, 10):
            if time.monotonic() > ends:
                return
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
