"""Traces of requests, sent by OpenTelemetry where ``OTEL_*`` variables ask for them; without them, nothing is imported.

The SDK reads its other variables itself (opentelemetry.io, "Environment Variable Specification"), such as
``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER`` and ``OTEL_EXPORTER_OTLP_HEADERS``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pipeline.optional import optional

_PLACES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"
_PACKAGES: Final = "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
_SERVER_ERROR: Final = 500


class TracingError(ValueError):
    """Traces are asked for that cannot be sent; says what came, what is allowed and what to do."""


def asked_for(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``OTEL_*`` variables ask for traces: an endpoint or ``OTEL_TRACES_EXPORTER=otlp``, unless another is off.

    Raises:
        TracingError: they ask for another exporter or protocol.

    Example:
        >>> asked_for({}), asked_for({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
        (False, True)
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if not exporter and not any(environment.get(name, "").strip() for name in _PLACES):
        return False
    if exporter not in ("", "otlp"):
        raise TracingError(f"OTEL_TRACES_EXPORTER is {exporter[:40]!r}; allowed: otlp, none")
    protocol = next((environment[name].strip() for name in _PROTOCOLS if environment.get(name, "").strip()), _PROTOCOL)
    if protocol != _PROTOCOL:
        raise TracingError(f"the OTLP protocol is {protocol[:40]!r}; allowed: {_PROTOCOL}, on a collector's port 4318")
    return True


class Tracing:
    """Spans of requests, and of the calls to tritonserver within them.

    Raises:
        ImportError: OpenTelemetry's packages are missing; says what to install.
    """

    def __init__(self) -> None:
        resources = optional("opentelemetry.sdk.resources", _PACKAGES)
        sdk = optional("opentelemetry.sdk.trace", _PACKAGES)
        export = optional("opentelemetry.sdk.trace.export", _PACKAGES)
        exporter = optional("opentelemetry.exporter.otlp.proto.http.trace_exporter", _PACKAGES)
        self._trace = optional("opentelemetry.trace", _PACKAGES)
        # The trace's context alone: a caller's baggage goes no further.
        self._context = optional(
            "opentelemetry.trace.propagation.tracecontext", _PACKAGES
        ).TraceContextTextMapPropagator()
        named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = resources.Resource.create({} if named else {"service.name": "segmentation-gateway"})
        self._provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter.OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("gateway")

    @contextmanager
    def request(self, method: str, route: str, headers: Mapping[str, str], request_id: str) -> Iterator[Any]:
        """The span of a request, within the caller's trace where its headers name one. Yields the span.

        Args:
            method: of HTTP.
            route: not the path, which strangers choose.
            headers: of the request.
            request_id: its identifier, here and in tritonserver.
        """
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        attributes = {"http.request.method": method, "http.route": route, "segmentation.request_id": request_id}
        with self._tracer.start_as_current_span(
            f"{method} {route}",
            self._context.extract(carrier),
            self._trace.SpanKind.SERVER,
            attributes,
            record_exception=False,  # a caller who leaves is none
        ) as span:
            yield span

    def answered(self, span: Any, status: int) -> None:
        """Note the status of a request's answer in its span."""
        span.set_attribute("http.response.status_code", status)
        if status >= _SERVER_ERROR:
            span.set_status(self._trace.StatusCode.ERROR)

    @contextmanager
    def call(self, method: str) -> Iterator[tuple[tuple[str, str], ...]]:
        """The span of a call to tritonserver. Yields the metadata that joins tritonserver's own trace to this one.

        Args:
            method: of the gRPC service.
        """
        attributes = {"rpc.system": "grpc", "rpc.service": "inference.GRPCInferenceService", "rpc.method": method}
        with self._tracer.start_as_current_span(method, None, self._trace.SpanKind.CLIENT, attributes):
            carrier: dict[str, str] = {}
            self._context.inject(carrier)
            yield tuple(carrier.items())

    def close(self) -> None:
        """Send what is left; blocks for some seconds where nobody takes it."""
        self._provider.shutdown()
