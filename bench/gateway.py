"""What the HTTP front costs: its processor time for a request, beside that of a bare gRPC call with the same image."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import struct
from collections.abc import Callable
from typing import Final

import grpc
import psutil
from tritonclient.grpc import service_pb2

from bench.measure import interleave
from bench.report import PartReport
from load.errors import LoadError
from load.photographs import at_megapixels, encode
from pipeline import contract
from pipeline.loopback import grpc_channel_args
from scenes.reference import fetch_reference
from serving.server import NO_LATENCY_BOUND_MS, ServerOptions, TritonServer

GATEWAY: Final = "the gateway's process"
CLIENT: Final = "a bare gRPC call, in Python's client"
SIZES: Final = (200_000, 1_000_000)
_REQUESTS: Final = 100  # processor time is counted in hundredths of a second
_MEGAPIXELS: Final = 0.3
_COMMENT_BYTES: Final = 65_000
_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"


def run(options: argparse.Namespace) -> None:
    """Send a JPEG of each size over both protocols, one request after the other.

    Args:
        options: ``repository``, ``out``, ``precision`` and ``rounds``.

    Raises:
        OperatorError: the server does not start.
    """
    report = PartReport(
        "gateway",
        "Processor time of one request with one JPEG (0.3 megapixels, with comments up to the size), in milliseconds; "
        "one request at a time, so that the network takes the cores and their caches in between.",
        options.out,
    )
    picture = encode(at_megapixels(fetch_reference().photographs[0], _MEGAPIXELS), ".jpg")
    server_options = ServerOptions(
        options.repository,
        precisions=(options.precision,),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        max_latency_ms=NO_LATENCY_BOUND_MS,
        gateway=True,
    )
    with TritonServer(server_options) as server, contextlib.ExitStack() as stack:
        front = server.front
        if front is None or front.pid is None:
            raise LoadError("the gateway does not run; its log says why")
        connection = http.client.HTTPConnection(server.http_url)
        stack.callback(connection.close)
        channel = stack.enter_context(grpc.insecure_channel(server.grpc_url, grpc_channel_args(server.grpc_url)))
        model = contract.ensemble_model(options.precision)
        for size in SIZES:
            image = _padded(picture, size)
            ways = {
                GATEWAY: _cost(psutil.Process(front.pid), _over_http(connection, model, image)),
                CLIENT: _cost(psutil.Process(), _over_grpc(channel, model, image)),
            }
            *_, found = interleave(ways, options.rounds)
            case = f"JPEG of {size // 1000} KB"
            for way, values in found.items():
                report.add(case, way, "ms", values)
            report.add_ratio(case, f"{GATEWAY} / {CLIENT}", found[GATEWAY], found[CLIENT])
            report.show(case)
    report.draw()


def _cost(process: psutil.Process, call: Callable[[], None]) -> Callable[[], float]:
    """A call that returns what each of many requests costs a process, in milliseconds of processor time."""

    def once() -> float:
        before = process.cpu_times()
        for _ in range(_REQUESTS):
            call()
        after = process.cpu_times()
        return float(after.user + after.system - before.user - before.system) / _REQUESTS * 1e3

    return once


def _over_http(connection: http.client.HTTPConnection, model: str, image: bytes) -> Callable[[], None]:
    data = struct.pack("<I", len(image)) + image
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}

    def call() -> None:
        connection.request("POST", f"/v2/models/{model}/infer", text + data, headers)
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise LoadError(f"the gateway answered {response.status}: {response.read(200)!r}")
        response.read()

    return call


def _over_grpc(channel: grpc.Channel, model: str, image: bytes) -> Callable[[], None]:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(image)) + image)
    message = request.SerializeToString()
    infer = channel.unary_unary(_INFER)

    def call() -> None:
        infer(message)

    return call


def _padded(jpeg: bytes, size: int) -> bytes:
    """A JPEG with comments behind its first marker, up to a size in bytes."""
    comments = bytearray()
    while (missing := size - len(jpeg) - len(comments)) > 4:
        length = min(missing, _COMMENT_BYTES)
        comments += b"\xff\xfe" + struct.pack(">H", length - 2) + bytes(length - 4)
    return jpeg[:2] + bytes(comments) + jpeg[2:]
