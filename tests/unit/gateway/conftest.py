"""The gateway on a free port, in front of a tritonserver of a few lines."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import socket
from dataclasses import replace

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.limits import Limits
from tests.gateways import running_gateway

SMALL = replace(
    Limits(),
    body_bytes=1 << 20,
    all_bodies_bytes=3 << 20,
    json_bytes=64 << 10,
    first_chunks=64,
    slow_grace_s=0.5,
    idle_s=2.0,
    look_s=2.0,
    connections=16,
)


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers inferences with the lengths of the inputs' data; raises what is put into ``fault``, calls ``work``."""

    def __init__(self):
        self.requests, self.fault, self.answer = [], None, None
        self.version, self.work = "2.51.0", lambda context: None

    def ModelInfer(self, request, context):
        self.requests.append(request)
        self.work(context)
        if self.fault is not None:
            context.abort(*self.fault)
        if self.answer is not None:
            return self.answer
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="3", id=request.id)
        answer.outputs.add(name="sizes", datatype="INT64", shape=[len(request.raw_input_contents)])
        answer.raw_output_contents.append(
            b"".join(len(raw).to_bytes(8, "little") for raw in request.raw_input_contents)
        )
        return answer

    def ServerLive(self, request, context):
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request, context):
        return service_pb2.ServerReadyResponse(ready=self.fault is None)

    def ServerMetadata(self, request, context):
        extensions = [
            "binary_tensor_data",
            "model_repository",
            "model_repository(unload_dependents)",
            "statistics",
            "trace",
        ]
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version, extensions=extensions)

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=request.name == "m")

    def ModelMetadata(self, request, context):
        if request.name != "m":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        answer = service_pb2.ModelMetadataResponse(name="m", versions=["1"], platform="ensemble")
        answer.inputs.add(name="image", datatype="BYTES", shape=[-1, 1])
        return answer


class Reply:
    def __init__(self, answer):
        self.status, self.body, self.headers = answer.status, answer.read(), answer.headers

    @property
    def json(self):
        return json.loads(self.body)


class Running:
    """A gateway and what it stands before."""

    def __init__(self, triton, url):
        host, port = url.split(":")
        self.triton, self.address, self.url = triton, (host, int(port)), url

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def post(self, body, path="/v2/models/m/infer", **headers):
        return self.ask("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def raw(self, data, timeout_s=20):
        """Bytes for a socket; returns what comes back until the connection is closed, or one answer has come."""
        with socket.create_connection(self.address, timeout_s) as connection:
            connection.sendall(data)
            received = b""
            while b"\r\n\r\n" not in received and (part := connection.recv(1 << 16)):
                received += part
            return received


@pytest.fixture
def triton():
    return FakeTriton()


@pytest.fixture
def gateway(triton):
    backend = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, backend)
    grpc_port = backend.add_insecure_port("127.0.0.1:0")
    backend.start()
    with running_gateway(f"127.0.0.1:{grpc_port}", SMALL) as url:
        running = Running(triton, url)
        running.backend = backend
        yield running
    backend.stop(None)
