"""What a server does during a run: processor time by process, the network session's, and the batches it forms."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from bench.measure import ProcessTree
from load.metrics import samples, scrape
from load.triton_statistics import ModelCounters, TritonStatistics, difference
from steps.publisher import PUBLISH_EVERY_S

SESSION_CPU_METRIC: Final = "segmentation_session_cpu_seconds_total"
SESSION_IMAGES_METRIC: Final = "segmentation_session_images_total"
"""Written by ``steps.metrics``, which only imports inside the server."""

_HANDED_OVER_S: Final = 2 * PUBLISH_EVERY_S


@dataclass(frozen=True)
class Reading:
    """Counters of a server at one moment."""

    cpu_s: dict[str, float]  # processor time of ``tritonserver``, and of each model that a stub runs
    session_cpu_s: float  # of the network's sessions only
    images: float  # that went through the network
    models: dict[str, ModelCounters] = field(default_factory=dict)  # Triton's counters by model


@dataclass(frozen=True)
class Usage:
    """The difference of two readings, per image."""

    images: int  # that went through the network
    session_ms: float  # processor time of the network's session
    other_ms: float  # processor time of everything else that the server does: the non-model CPU time
    by_process_ms: dict[str, float]  # processor time by process; the session's is part of its stub's
    batches: dict[int, int]  # executions of the network by batch size
    # By model, how long a request waits for an instance (``queue``) and is in one (``compute``)
    steps_ms: dict[str, dict[str, float]]

    @classmethod
    def between(cls, before: Reading, after: Reading, network: str) -> Usage:
        """Take the difference of two readings, both made while no request was in flight.

        Raises:
            ValueError: no image went through the model ``network`` between them.
        """
        images = after.images - before.images
        if images <= 0:
            raise ValueError("no image went through the network between the two readings")
        session_s = after.session_cpu_s - before.session_cpu_s
        used_s = {name: seconds - before.cpu_s.get(name, 0.0) for name, seconds in after.cpu_s.items()}
        models = difference(before.models, after.models)
        return cls(
            images=round(images),
            session_ms=session_s / images * 1e3,
            other_ms=(sum(used_s.values()) - session_s) / images * 1e3,
            by_process_ms={name: seconds / images * 1e3 for name, seconds in used_s.items()},
            batches=dict(sorted(models[network].batches.items())),
            steps_ms={name: counted.step_ms for name, counted in models.items() if counted.step_ms["compute"] > 0},
        )


class ServerMeter:
    """Reads the counters of one server; ``network`` is the model that runs the network."""

    def __init__(self, pid: int, grpc_url: str, metrics_url: str, network: str) -> None:
        self.network = network
        self._tree = ProcessTree(pid)
        self._statistics = TritonStatistics("grpc", grpc_url)
        self._metrics_url = metrics_url

    def read(self) -> Reading:
        """Read everything, once the network's process has published its counts (:mod:`steps.publisher`).

        Raises:
            OSError, LoadError, psutil.Error: the server does not answer, or has ended.
        """
        models = self._statistics.read_all()
        done = models[self.network].counts["images"]
        deadline = time.monotonic() + _HANDED_OVER_S
        while (metrics := self._metrics()).get(SESSION_IMAGES_METRIC, done) < done and time.monotonic() < deadline:
            time.sleep(0.05)
        return Reading(
            self._tree.cpu_seconds_by_name(),
            metrics.get(SESSION_CPU_METRIC, 0.0),
            metrics.get(SESSION_IMAGES_METRIC, 0.0),
            models,
        )

    def _metrics(self) -> dict[str, float]:
        return sums_of(scrape(self._metrics_url, timeout_s=10), self.network)


def sums_of(text: str, model: str) -> dict[str, float]:
    """A model's metrics by name, added up over its versions, out of Prometheus' text format."""
    sums: dict[str, float] = {}
    for name, labels, value in samples(text):
        if f'model="{model}"' in labels.split(","):
            sums[name] = sums.get(name, 0.0) + value
    return sums
