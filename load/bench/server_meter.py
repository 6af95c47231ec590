"""What a server did during a run: processor time by process, the session's own, and the batches that formed."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass
from typing import Final

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from load.bench.measure import ProcessTree

SESSION_CPU_METRIC: Final = "segmentation_session_cpu_seconds_total"
SESSION_IMAGES_METRIC: Final = "segmentation_session_images_total"
"""Written by ``serving.session_time``, which only imports inside the server."""

_SAMPLE: Final = re.compile(r"^(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """Counters of a server at one moment.

    Attributes:
        cpu_s: processor time by what a process runs (``tritonserver``, or a stub's model).
        session_cpu_s: of the network's sessions alone.
        images: that went through the network.
        batches: executions of the network by batch size.
    """

    cpu_s: dict[str, float]
    session_cpu_s: float
    images: float
    batches: dict[int, int]


@dataclass(frozen=True)
class Usage:
    """What lies between two readings, per image.

    Attributes:
        images: that went through the network.
        session_ms: processor time of the network's session, per image.
        other_ms: processor time of everything else that the server does, per image: the non-model CPU time.
        by_process_ms: processor time per image by process, the session's included in its own stub.
        batches: executions of the network by batch size.
    """

    images: int
    session_ms: float
    other_ms: float
    by_process_ms: dict[str, float]
    batches: dict[int, int]

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
        """Read everything at once.

        Raises:
            OSError: the metrics endpoint does not answer.
            grpc.RpcError: the server does not answer.
        """
        with urllib.request.urlopen(f"http://{self._metrics_url}/metrics", timeout=10) as answer:
            metrics = parse_metrics(answer.read().decode(), self._model)
        return Reading(
            self._tree.cpu_seconds_by_name(),
            metrics.get(SESSION_CPU_METRIC, 0.0),
            metrics.get(SESSION_IMAGES_METRIC, 0.0),
            self._batches(),
        )

    def _batches(self) -> dict[int, int]:
        with grpc.insecure_channel(self._grpc_url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            answer = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=self._model), timeout=10)
        batches: dict[int, int] = {}
        for version in answer.model_stats:
            for entry in version.batch_stats:
                batches[entry.batch_size] = batches.get(entry.batch_size, 0) + entry.compute_infer.count
        return batches


def parse_metrics(text: str, model: str) -> dict[str, float]:
    """Sums of a model's metrics by name, out of the Prometheus text format."""
    sums: dict[str, float] = {}
    for match in _SAMPLE.finditer(text):
        if f'model="{model}"' in match["labels"].split(","):
            sums[match["name"]] = sums.get(match["name"], 0.0) + float(match["value"])
    return sums
