"""Prometheus metrics of the gateway itself; tritonserver's are on its own port."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

_BUCKETS_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


def route_of(request: web.BaseRequest) -> str:
    """The route of a request, ``other`` where its path is none: strangers choose paths, and must make no series."""
    if isinstance(request, web.Request) and request.match_info.route.resource is not None:
        return request.match_info.route.resource.canonical
    return "other"


class Metrics:
    """Counts and times of requests.

    Attributes:
        under_way: requests to ``/v1/segment`` that are being read or answered.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "segmentation_gateway_requests_total", "Requests by route and status", ["route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "segmentation_gateway_request_seconds", "From a request's head to its answer", ["route"],
            buckets=_BUCKETS_S, registry=self._registry,
        )  # fmt: skip
        self.under_way = Gauge(
            "segmentation_gateway_requests_under_way", "Segmentations under way", registry=self._registry
        )
        self._images = Counter(
            "segmentation_gateway_images_total", "Images answered", ["precision"], registry=self._registry
        )
        self._server_s = Histogram(
            "segmentation_gateway_server_seconds", "What tritonserver took for a request", ["precision"],
            buckets=_BUCKETS_S, registry=self._registry,
        )  # fmt: skip
        ProcessCollector(registry=self._registry)
        self._series: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._segmented: dict[str, tuple[Counter, Histogram]] = {}

    def segmented(self, precision: str, images: int, server_s: float) -> None:
        """Count an answered request to ``/v1/segment``.

        Args:
            precision: of the model.
            images: of the request.
            server_s: what tritonserver took, in seconds.
        """
        series = self._segmented.get(precision)
        if series is None:  # looking series up by their labels takes longer than counting
            series = self._images.labels(precision), self._server_s.labels(precision)
            self._segmented[precision] = series
        series[0].inc(images)
        series[1].observe(server_s)

    def count(self, request: web.BaseRequest, status: int, seconds: float) -> None:
        """Count an answered request."""
        route = route_of(request)
        series = self._series.get((route, status))
        if series is None:
            series = self._requests.labels(route, str(status)), self._seconds.labels(route)
            self._series[route, status] = series
        series[0].inc()
        series[1].observe(seconds)

    async def get(self, request: web.Request) -> web.Response:
        """Answer with the text that Prometheus reads."""
        del request
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
