"""What a server did during a run: processor time by process, the session's own, and the batches that formed."""

from __future__ import annotations

import contextlib
import http.client
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.measure import ProcessTree
from pipeline.loopback import grpc_channel_args
from steps.publisher import PUBLISH_EVERY_S

SESSION_CPU_METRIC: Final = "segmentation_session_cpu_seconds_total"
SESSION_IMAGES_METRIC: Final = "segmentation_session_images_total"
"""Written by ``steps.metrics``, which only imports inside the server."""

_HANDED_OVER_S: Final = 2 * PUBLISH_EVERY_S

_SAMPLE: Final = re.compile(r"^(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class StepTimes:
    """What the server counted of one model.

    Attributes:
        requests: answered.
        queue_s: that all of them together waited for an instance.
        compute_s: that all of them together spent in one: tensors in, work, tensors out.
    """

    requests: int
    queue_s: float
    compute_s: float

    def since(self, before: StepTimes) -> StepTimes:
        """The difference to an earlier reading."""
        return StepTimes(
            self.requests - before.requests, self.queue_s - before.queue_s, self.compute_s - before.compute_s
        )


_NOTHING: Final = StepTimes(0, 0.0, 0.0)


@dataclass(frozen=True)
class Reading:
    """Counters of a server at one moment.

    Attributes:
        cpu_s: processor time by what a process runs (``tritonserver``, or a stub's model).
        session_cpu_s: of the network's sessions alone.
        images: that went through the network.
        batches: executions of the network by batch size.
        steps: times of every model that answers requests, by its name.
    """

    cpu_s: dict[str, float]
    session_cpu_s: float
    images: float
    batches: dict[int, int]
    steps: dict[str, StepTimes] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """What lies between two readings, per image.

    Attributes:
        images: that went through the network.
        session_ms: processor time of the network's session, per image.
        other_ms: processor time of everything else that the server does, per image: the non-model CPU time.
        by_process_ms: processor time per image by process, the session's included in its own stub.
        batches: executions of the network by batch size.
        steps_ms: by model, what a request waits for an instance (``queue``) and spends in one (``compute``).
    """

    images: int
    session_ms: float
    other_ms: float
    by_process_ms: dict[str, float]
    batches: dict[int, int]
    steps_ms: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def between(cls, before: Reading, after: Reading) -> Usage:
        """Take the difference of two readings, both made while no request was in flight.

        Raises:
            ValueError: no image was processed between them.
        """
        images = after.images - before.images
        if images <= 0:
            raise ValueError("no image went through the network between the two readings")
        session = after.session_cpu_s - before.session_cpu_s
        total = sum(after.cpu_s.values()) - sum(before.cpu_s.values())
        return cls(
            images=round(images),
            session_ms=session / images * 1e3,
            other_ms=(total - session) / images * 1e3,
            by_process_ms={
                name: (seconds - before.cpu_s.get(name, 0.0)) / images * 1e3 for name, seconds in after.cpu_s.items()
            },
            batches={
                size: count - before.batches.get(size, 0)
                for size, count in sorted(after.batches.items())
                if count > before.batches.get(size, 0)
            },
            steps_ms={
                name: {
                    "queue": times.queue_s / times.requests * 1e3,
                    "compute": times.compute_s / times.requests * 1e3,
                }
                for name, times in _differences(before.steps, after.steps).items()
            },
        )


class ServerMeter:
    """Reads the counters of one model's server.

    Args:
        pid: of tritonserver.
        grpc_url: its gRPC endpoint.
        metrics_url: its metrics endpoint.
        model: the model that runs the network.
    """

    def __init__(self, pid: int, grpc_url: str, metrics_url: str, model: str) -> None:
        self._tree = ProcessTree(pid)
        self._grpc_url = grpc_url
        self._metrics_url = metrics_url
        self._model = model

    def read(self) -> Reading:
        """Read everything, once the network's process has handed over what it counted (:mod:`steps.publisher`).

        Raises:
            OSError: the metrics endpoint does not answer.
            grpc.RpcError: the server does not answer.
        """
        with grpc.insecure_channel(self._grpc_url, options=grpc_channel_args(self._grpc_url)) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            models = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=10).model_stats
        done = sum(version.inference_count for version in models if version.name == self._model)
        deadline = time.monotonic() + _HANDED_OVER_S
        while (metrics := self._metrics()).get(SESSION_IMAGES_METRIC, done) < done and time.monotonic() < deadline:
            time.sleep(0.05)
        return Reading(
            self._tree.cpu_seconds_by_name(),
            metrics.get(SESSION_CPU_METRIC, 0.0),
            metrics.get(SESSION_IMAGES_METRIC, 0.0),
            self._batches(models),
            _step_times(models),
        )

    def _metrics(self) -> dict[str, float]:
        with contextlib.closing(http.client.HTTPConnection(self._metrics_url, timeout=10)) as connection:
            connection.request("GET", "/metrics")
            return parse_metrics(connection.getresponse().read().decode(), self._model)

    def _batches(self, models: Iterable[service_pb2.ModelStatistics]) -> dict[int, int]:
        batches: dict[int, int] = {}
        for version in models:
            for entry in version.batch_stats if version.name == self._model else ():
                batches[entry.batch_size] = batches.get(entry.batch_size, 0) + entry.compute_infer.count
        return batches


def _step_times(models: Iterable[service_pb2.ModelStatistics]) -> dict[str, StepTimes]:
    steps: dict[str, StepTimes] = {}
    for version in models:
        counted = version.inference_stats
        compute = counted.compute_input.ns + counted.compute_infer.ns + counted.compute_output.ns
        before = steps.get(version.name, _NOTHING)
        steps[version.name] = StepTimes(
            before.requests + counted.success.count,
            before.queue_s + counted.queue.ns / 1e9,
            before.compute_s + compute / 1e9,
        )
    return steps


def _differences(before: dict[str, StepTimes], after: dict[str, StepTimes]) -> dict[str, StepTimes]:
    differences = {name: times.since(before.get(name, _NOTHING)) for name, times in after.items()}
    return {name: times for name, times in differences.items() if times.requests > 0 and times.compute_s > 0}


def parse_metrics(text: str, model: str) -> dict[str, float]:
    """Sums of a model's metrics by name, out of the Prometheus text format."""
    sums: dict[str, float] = {}
    for match in _SAMPLE.finditer(text):
        if f'model="{model}"' in match["labels"].split(","):
            sums[match["name"]] = sums.get(match["name"], 0.0) + float(match["value"])
    return sums
