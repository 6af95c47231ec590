"""Triton's metrics endpoint, and the server machine's CPU, memory and GPU while a step runs.

Names: triton-inference-server/server, ``docs/user_guide/metrics.md``. Utilizations are in [0, 1].
"""

from __future__ import annotations

import contextlib
import re
import statistics
import threading
from typing import Final, TypeAlias

from serving.http_call import http_call

GAUGES: Final = {
    "nv_cpu_utilization": "cpu_utilization",
    "nv_cpu_memory_used_bytes": "memory_used_bytes",
    "nv_gpu_utilization": "gpu_utilization",
    "nv_gpu_memory_used_bytes": "gpu_memory_used_bytes",
    "nv_gpu_power_usage": "gpu_power_watts",
}
"""Triton's gauge to the name in the report."""

Sample: TypeAlias = "tuple[str, str, float]"
"""Name, labels as text, and value."""

_SAMPLE: Final = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_TIMEOUT_S: Final = 2.0


class MetricsSampler:
    """Samples the gauges of an endpoint in the background; nothing where it is None or does not answer."""

    def __init__(self, url: str | None, interval_s: float = 1.0) -> None:
        self._url, self._interval_s = url, interval_s
        self._samples: dict[str, list[float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MetricsSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_TIMEOUT_S + 1)

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean and peak of each gauge."""
        return {name: {"mean": statistics.fmean(values), "peak": max(values)} for name, values in self._samples.items()}

    def _sample(self) -> None:
        while self._url is not None and not self._stop.wait(self._interval_s):
            with contextlib.suppress(OSError):
                for name, value in gauges(scrape(self._url)).items():
                    self._samples.setdefault(name, []).append(value)


def scrape(url: str, timeout_s: float = _TIMEOUT_S) -> str:
    """The metrics in Prometheus' text format.

    Raises:
        OSError: the endpoint does not answer.
    """
    return http_call(url, "/metrics", timeout_s=timeout_s)[1].decode(errors="replace")


def samples(text: str) -> list[Sample]:
    """Read Prometheus' text format."""
    return [(name, labels, float(value)) for name, labels, value in _SAMPLE.findall(text)]


def gauges(text: str) -> dict[str, float]:
    """The machine's gauges; of several GPUs, memory and power are added up, utilization is averaged."""
    found: dict[str, list[float]] = {}
    for name, _, value in samples(text):
        if name in GAUGES:
            found.setdefault(GAUGES[name], []).append(value)
    return {
        name: statistics.fmean(values) if name.endswith("utilization") else sum(values)
        for name, values in found.items()
    }
