"""Small KServe v2 servers on real sockets: they record what the clients send and answer what a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor

from pipeline import contract
from pipeline.mask_formats import encode_masks
from pipeline.masks import MaskRuns

Tensors = Mapping[str, np.ndarray]


class Refusal(Exception):
    """An answer that is an error: a gRPC code, the HTTP status that Triton sends for it, and a message."""

    def __init__(self, code: grpc.StatusCode, status: int, message: str) -> None:
        super().__init__(message)
        self.code, self.status, self.message = code, status, message


@dataclass(frozen=True)
class Received:
    """One inference request as it came over the wire."""

    model: str
    shape: tuple[int, ...]
    datatype: str
    images: tuple[bytes, ...]
    parameters: dict[str, Any]


@dataclass
class Stub:
    """A running server."""

    answer: Callable[[Received], Tensors]  # makes the response tensors of a request, or raises :class:`Refusal`
    url: str = ""  # ``host:port``
    ready: bool = True  # what it answers when asked whether a model is ready
    received: list[Received] = field(default_factory=list)  # the requests so far

    def infer(self, request: Received) -> Tensors:
        self.received.append(request)
        return self.answer(request)


def padded_answer(request: Received) -> Tensors:
    """As the real server: image k of the request, 0 first, has k detections, padded to the fullest image.

    Its size is 10 x 20.
    """
    batch, depth = len(request.images), max(1, len(request.images) - 1)
    (mask,) = encode_masks([MaskRuns.from_image(np.eye(10, 20))], str(request.parameters.get("mask_format", "rle")))
    boxes = np.zeros((batch, depth, 4), np.float32)
    scores = np.zeros((batch, depth), np.float32)
    class_ids = np.zeros((batch, depth), np.int32)
    masks = np.full((batch, depth), b"", dtype=np.object_)
    sizes = np.tile(np.array([10, 20], np.int32), (batch, 1))
    for index in range(batch):
        for detection in range(index):
            boxes[index, detection] = [index, detection, index + 4, detection + 4]
            scores[index, detection] = 0.9 - 0.1 * detection
            class_ids[index, detection] = detection + 1
            masks[index, detection] = mask
    counts = np.arange(batch, dtype=np.int32)[:, None]
    arrays = (counts, boxes, scores, class_ids, masks, sizes)
    return {spec.name: array for spec, array in zip(contract.RESPONSE_TENSORS, arrays, strict=True)}


@contextmanager
def http_server(answer: Callable[[Received], Tensors] = padded_answer) -> Iterator[Stub]:
    """Run a stub over HTTP."""
    stub = Stub(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            model = self.path.removeprefix("/v2/models/")
            asks_ready = model.endswith("/ready")
            self._send(200 if stub.ready else 400, b"" if asks_ready else json.dumps({"name": model}).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            split = int(self.headers["Inference-Header-Content-Length"])
            header = json.loads(body[:split])
            (tensor,) = header["inputs"]
            parameters = header.get("parameters", {})
            parameters.pop("binary_data_output", None)  # set by tritonclient
            images = deserialize_bytes_tensor(body[split:])
            model = self.path.removeprefix("/v2/models/").removesuffix("/infer")
            request = Received(model, tuple(tensor["shape"]), tensor["datatype"], tuple(images), parameters)
            try:
                tensors = stub.infer(request)
            except Refusal as refusal:
                self._send(refusal.status, json.dumps({"error": refusal.message}).encode())
                return
            raw = {name: _raw(array) for name, array in tensors.items()}
            outputs = [
                {
                    "name": name,
                    "datatype": np_to_triton_dtype(array.dtype),
                    "shape": list(array.shape),
                    "parameters": {"binary_data_size": len(raw[name])},
                }
                for name, array in tensors.items()
            ]
            answer_header = json.dumps({"model_name": model, "outputs": outputs}).encode()
            self._send(200, answer_header + b"".join(raw.values()), len(answer_header))

        def _send(self, status: int, body: bytes, header_length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if header_length is not None:
                self.send_header("Inference-Header-Content-Length", str(header_length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    stub.url = f"127.0.0.1:{server.server_port}"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def grpc_server(answer: Callable[[Received], Tensors] = padded_answer) -> Iterator[Stub]:
    """Run a stub over gRPC."""
    stub = Stub(answer)

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
        def ModelReady(self, request: Any, context: Any) -> Any:
            return service_pb2.ModelReadyResponse(ready=stub.ready)

        def ModelInfer(self, request: Any, context: Any) -> Any:
            (tensor,) = request.inputs
            parameters = {
                name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()
            }
            images = deserialize_bytes_tensor(request.raw_input_contents[0])
            received = Received(request.model_name, tuple(tensor.shape), tensor.datatype, tuple(images), parameters)
            try:
                tensors = stub.infer(received)
            except Refusal as refusal:
                context.abort(refusal.code, refusal.message)
            response = service_pb2.ModelInferResponse(model_name=request.model_name)
            for name, array in tensors.items():
                response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
                response.raw_output_contents.append(_raw(array))
            return response

    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    stub.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield stub
    finally:
        server.stop(None).wait()


SERVERS = {"grpc": grpc_server, "http": http_server}


def _raw(array: np.ndarray) -> bytes:
    if array.dtype == np.object_:
        serialized = serialize_byte_tensor(array)
        return serialized.item() if serialized.size else b""
    return array.tobytes()
