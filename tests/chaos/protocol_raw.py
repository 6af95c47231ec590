"""Below the level of requests: bytes that are no gRPC message, methods that are closed, connections that end early."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any, Final

from tritonclient.grpc import service_pb2

from tests.chaos.protocol import INFER, MODEL, Malformed, http_request, infer_body

_SERVICE: Final = INFER.rpartition("/")[0]


def raw_requests(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    """One of each; what is drawn is drawn anew."""
    yield from _messages(image, chance)
    yield from _mutated_messages(image, chance)
    yield from _methods()
    yield from _streams(image, chance)


def _right_message(image: bytes) -> Any:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(image)) + image)
    return request


def _messages(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    """Bytes where a ``ModelInferRequest`` should be."""
    kind = "gRPC messages"
    right = _right_message(image).SerializeToString()
    for name, message in {
        "cut in half": right[: len(right) // 2],
        "cut by a byte": right[:-1],
        "noise": chance.randbytes(3000),
        "text": b"hello",
        "a field of 2 GB": b"\x3a\xff\xff\xff\xff\x07",
        "a group that does not end": b"\x0b" * 5000,
        "nested ten thousand deep": b"\x0a\x80\x80\x01" * 10_000,
        "a number where text should be": b"\x08\x01" * 100,
        "a name that is not UTF-8": b"\x0a\x02\xff\xfe",
        "field number zero": b"\x02\x00",
        "a number that does not end": b"\xff" * 400,
    }.items():
        yield Malformed(kind, name, message=message)
    yield Malformed(kind, "unknown fields", message=right + b"\xfa\x7f\x04abcd" * 1000, valid=True)
    yield Malformed(
        kind, "a megabyte of an unknown field", message=right + b"\xfa\x7f\x80\x80\x40" + bytes(1 << 20), valid=True
    )
    yield Malformed(kind, "twice in a row", message=right * 2, valid=True)


def _mutated_messages(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    """Right messages with a few bytes changed, in front of the image: whatever they mean now."""
    right = _right_message(image).SerializeToString()
    for number in range(60):
        changed = bytearray(right)
        for _ in range(chance.choice((1, 1, 2, 5))):
            changed[chance.randrange(min(60, len(changed)))] = chance.randrange(256)
        yield Malformed("gRPC messages", f"mutation {number}", message=bytes(changed), valid=True)


def _methods() -> Iterator[Malformed]:
    """Methods that are not there, or not for everyone (``--grpc-restricted-protocol``)."""
    kind = "gRPC methods"
    for method in (f"{_SERVICE}/Nothing", "/no.Service/ModelInfer", "/", f"{_SERVICE}/{'x' * 3000}"):
        yield Malformed(kind, f"unknown: {method[:40]}", message=b"", method=method)
    region = service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/../../etc/passwd", byte_size=2**63)
    load = service_pb2.RepositoryModelLoadRequest(model_name="../../../tmp")
    for method, request in {
        "RepositoryModelLoad": load,
        "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name=MODEL),
        "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
        "SystemSharedMemoryRegister": region,
        "SystemSharedMemoryUnregister": service_pb2.SystemSharedMemoryUnregisterRequest(),
        "TraceSetting": service_pb2.TraceSettingRequest(),
        "LogSettings": service_pb2.LogSettingsRequest(),
    }.items():
        yield Malformed(kind, f"closed: {method}", grpc=request, method=f"{_SERVICE}/{method}")
    for version in ("99", "x"):
        metadata = service_pb2.ModelMetadataRequest(name=MODEL, version=version)
        yield Malformed(kind, f"metadata of version {version}", grpc=metadata, method=f"{_SERVICE}/ModelMetadata")
    config = service_pb2.ModelConfigRequest(name="n" * 100_000)
    yield Malformed(kind, "configuration of a model unknown", grpc=config, method=f"{_SERVICE}/ModelConfig")


def _streams(image: bytes, chance: random.Random) -> Iterator[Malformed]:
    """Connections that end early, lie about lengths, or speak another protocol."""
    kind = "connections"
    body, length = infer_body(image)
    right = http_request(body, length)
    head = right.index(b"\r\n\r\n") + 4
    yield Malformed(kind, "half closed after the request", right, half_close=True, valid=True, may_close=True)
    for name, part in {
        "nothing": b"",
        "half of the header": right[: head // 2],
        "the header": right[:head],
        "half of the body": right[: head + len(body) // 2],
    }.items():
        yield Malformed(kind, f"half closed after {name}", part, half_close=True, may_close=True)
    longer = right.replace(f"Content-Length: {len(body)}".encode(), f"Content-Length: {len(body) + 1000}".encode(), 1)
    shorter = right.replace(f"Content-Length: {len(body)}".encode(), f"Content-Length: {len(body) - 100}".encode(), 1)
    yield Malformed(kind, "a length that is too long", longer, half_close=True, may_close=True)
    yield Malformed(kind, "a length that is too short", shorter, may_close=True)
    for value in ("99999999999999999999", "0x10", "1 1", "", str(2**63), str(200 * 2**20)):
        yield Malformed(kind, f"length {value!r}", http_request(body, length, Content_Length=value), may_close=True)
    chunked = http_request(b"", length, Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
    for name, pieces in {
        "chunks": f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n",
        "a chunk of 2**64": b"ffffffffffffffff\r\n" + body,
        "a chunk of no number": b"zz\r\n" + body + b"\r\n0\r\n\r\n",
    }.items():
        yield Malformed(kind, name, chunked + pieces, may_close=True, valid=name == "chunks")
    both = http_request(body, length, Transfer_Encoding="chunked")
    yield Malformed(kind, "a length and chunks", both, may_close=True)
    yield Malformed(
        kind, "10,000 headers", right[: head - 2] + b"A: b\r\n" * 10_000 + right[head - 2 :], may_close=True, valid=True
    )
    yield Malformed(
        kind,
        "a header of many lines",
        right[: head - 2] + b"A: b\r\n c\r\n" * 500 + right[head - 2 :],
        may_close=True,
        valid=True,
    )
    yield Malformed(
        kind,
        "bytes above 127 in a header",
        right[: head - 2] + b"\xff\xfe: \xff\r\n" + right[head - 2 :],
        may_close=True,
        valid=True,
    )
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield Malformed(kind, "HTTP/2 where HTTP/1 is spoken", preface + bytes(100), may_close=True)
    for name, data in {
        "HTTP/1 where gRPC is spoken": right,
        "noise where gRPC is spoken": chance.randbytes(500),
        "a frame of 16 MB where gRPC is spoken": preface + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(500),
        "10,000 settings where gRPC is spoken": preface + b"\0\0\0\4\0\0\0\0\0" * 10_000,
        "10,000 resets where gRPC is spoken": preface + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\4\3\0\0\0\0\1\0\0\0\0" * 10_000,
    }.items():
        yield Malformed(kind, name, data, to_grpc_port=True, half_close=True, may_close=True)
