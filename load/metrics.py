"""CPU, memory and GPU of the server's machine while a step runs, as Triton's metrics endpoint tells them.

Names: triton-inference-server/server, ``docs/user_guide/metrics.md``. Utilizations are in [0, 1].
"""

from __future__ import annotations

import http.client
import re
import statistics
import threading
from types import TracebackType
from typing import Final

GAUGES: Final = {
    "nv_cpu_utilization": "cpu_utilization",
    "nv_cpu_memory_used_bytes": "memory_used_bytes",
    "nv_gpu_utilization": "gpu_utilization",
    "nv_gpu_memory_used_bytes": "gpu_memory_used_bytes",
    "nv_gpu_power_usage": "gpu_power_watts",
}
"""Triton's gauge to the name in the report."""

_LINE: Final = re.compile(r"^(nv_\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_TIMEOUT_S: Final = 2.0


class MetricsSampler:
    """Samples the gauges once a second in the background; where the endpoint does not answer, it has no samples.

    Args:
        url: ``host:port`` of the metrics endpoint; None samples nothing.
        interval_s: between two samples, in seconds.
    """

    def __init__(self, url: str | None, interval_s: float = 1.0) -> None:
        self._url, self._interval_s = url, interval_s
        self._samples: dict[str, list[float]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MetricsSampler:
        if self._url is not None:
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_TIMEOUT_S + 1)

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean and peak of each gauge; several GPUs are added up for memory and power, averaged for utilization."""
        return {
            name: {"mean": statistics.fmean(values), "peak": max(values)}
            for name, values in self._samples.items()
            if values
        }

    def _sample(self) -> None:
        while not self._stop.wait(self._interval_s):
            for name, value in read_gauges(self._url or "").items():
                self._samples.setdefault(name, []).append(value)


def read_gauges(url: str) -> dict[str, float]:
    """The gauges now; empty where nothing answers."""
    host, _, port = url.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        return parse_gauges(connection.getresponse().read().decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()


def parse_gauges(text: str) -> dict[str, float]:
    """Read the gauges out of Prometheus' text format."""
    found: dict[str, list[float]] = {}
    for metric, value in _LINE.findall(text):
        if metric in GAUGES:
            found.setdefault(GAUGES[metric], []).append(float(value))
    return {
        name: statistics.fmean(values) if name.endswith("utilization") else sum(values)
        for name, values in found.items()
    }
