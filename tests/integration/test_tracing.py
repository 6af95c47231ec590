"""Traces: a request's spans of the gateway and of the real tritonserver reach a collector as one trace."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import secrets
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serving.server import ServerOptions, TritonServer
from tests.chaos import protocol
from tests.chaos.faults_service import wait_for
from tests.unit.serving.repositories import tiny_repository

pytestmark = pytest.mark.server

CALLER = "b7ad6b7169203331"
NAMES = "POST /v2/models/{model}/infer", "ModelInfer", "InferRequest"


class Collector(ThreadingHTTPServer):
    """What a collector is sent: spans by trace and name, as (service, span, parent, attributes)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans, self.url = {}, f"http://127.0.0.1:{self.server_port}"

    def take(self, kind, body):
        if kind.startswith("application/json"):  # tritonserver's
            found = json.loads(body)["resourceSpans"]
            for resource in found:
                service = {one["key"]: one["value"] for one in resource["resource"]["attributes"]}["service.name"]
                for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
                    ids = span["spanId"], span.get("parentSpanId", "")
                    self.spans[span["traceId"], span["name"]] = service["stringValue"], *ids, {}
            return
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = {one.key: one.value for one in resource.resource.attributes}["service.name"].string_value
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                ids = span.span_id.hex(), span.parent_span_id.hex()
                attributes = {one.key: one.value.string_value or one.value.int_value for one in span.attributes}
                self.spans[span.trace_id.hex(), span.name] = service, *ids, attributes


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            self.server.take(self.headers["Content-Type"], body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    with Collector() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def infer(url, **headers):
    body, length = protocol.infer_body(b"four")
    connection = http.client.HTTPConnection(url, timeout=30)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(
        "POST", "/v2/models/segment_int8/infer", body, {"Inference-Header-Content-Length": str(length), **headers}
    )
    status = connection.getresponse().status
    connection.close()
    return status


def whole_trace(collector, url):
    """The trace of a request that is sent with it, or nothing if spans of it are missing after some seconds."""
    trace = secrets.token_hex(16)
    assert infer(url, traceparent=f"00-{trace}-{CALLER}-01", X_Request_Id="mine") == 200
    with contextlib.suppress(RuntimeError):
        wait_for(lambda: {(trace, name) for name in NAMES} <= collector.spans.keys(), 5, "the spans")
        return trace
    return None


def test_one_trace_from_the_caller_to_the_model(collector, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    settings = ("mode=opentelemetry", "rate=1", "level=TIMESTAMPS", f"opentelemetry,url={collector.url}/v1/traces")
    options = ServerOptions(
        tiny_repository(tmp_path / "tiny"),
        gateway=True,
        extra_arguments=tuple(f"--trace-config={one}" for one in settings),
    )
    with TritonServer(options) as server:
        # About one of a hundred requests that bring a trace gets a separate one in tritonserver 2.51.
        trace = wait_for(lambda: whole_trace(collector, server.http_url), 30, "a trace with all spans")
    received, sent, inferred = (collector.spans[trace, name] for name in NAMES)
    service, request, parent, attributes = received
    assert (service, parent) == ("segmentation-gateway", CALLER)
    assert attributes["http.response.status_code"] == 200
    assert attributes["segmentation.request_id"] == "mine"
    service, call, parent, _ = sent
    assert (service, parent) == ("segmentation-gateway", request)
    service, _, parent, _ = inferred
    assert (service, parent) == ("triton-inference-server", call)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, ""),
        ({"OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "no traces: the OTLP protocol is 'grpc'; allowed: http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "no traces: OTEL_TRACES_EXPORTER is 'jaeger'; allowed: otlp, none"),
        (
            {"without": "opentelemetry"},
            "no traces: opentelemetry.sdk is missing; install it: pip install opentelemetry-sdk",
        ),
    ],
)
def test_the_gateway_answers_whatever_the_variables_say(collector, variables, said, tmp_path):
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **variables}
    command = [sys.executable, "-m", "gateway"]
    if "without" in variables:
        code = "import sys; sys.modules['opentelemetry'] = None; from gateway.__main__ import main; sys.exit(main())"
        command = [sys.executable, "-c", code]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "run", "--http-port=0", "--grpc-url=127.0.0.1:1"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            url = process.stdout.readline().split()[0].removeprefix("http://").rstrip("/")
            assert infer(url) == 503
        finally:
            process.terminate()
            process.wait()
    assert (tmp_path / "log").read_text().startswith(said)
    assert bool(collector.spans) == (variables == {})  # what is left is sent before it ends
