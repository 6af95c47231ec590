"""Triton's own counters: what each step of the ensemble did, and how long it took.

Field meanings: triton-inference-server/server, ``docs/protocol/extension_statistics.md``. Times of ``success`` are
whole requests; ``queue`` is waiting for an instance, ``compute_input`` and ``compute_output`` are copying tensors, and
``compute_infer`` is the model's own work.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from client.errors import RequestError, SegmentationError
from client.request import Request
from client.transport import Transport
from load.errors import LoadError
from pipeline import contract

PHASES: Final = ("queue", "compute_input", "compute_infer", "compute_output")
_NANOSECONDS_PER_MS: Final = 1e6
_SETTLE_S: Final = 0.5
"""The second count of a failure comes after the answer."""


@dataclass(frozen=True)
class ModelCounters:
    """Counters of one model, all versions together."""

    version: str = ""  # the versions that are served, separated by commas
    # ``images`` and ``executions`` (batches run), and for ``success``, ``fail`` and each of :data:`PHASES` the number
    # of requests, and under ``<name>_ns`` their nanoseconds
    counts: Counter[str] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)  # batch size to how often it was run

    @classmethod
    def of(cls, versions: list[dict[str, Any]]) -> ModelCounters:
        """Add up the versions of a model, entries of :meth:`client.transport.Transport.statistics`."""
        counters = cls(",".join(str(entry.get("version", "")) for entry in versions))
        for entry in versions:
            counters.counts["images"] += int(entry.get("inference_count", 0))
            counters.counts["executions"] += int(entry.get("execution_count", 0))
            for name in ("success", "fail", *PHASES):
                counted = entry.get("inference_stats", {}).get(name, {})
                counters.counts[name] += int(counted.get("count", 0))
                counters.counts[f"{name}_ns"] += int(counted.get("ns", 0))
            for batch in entry.get("batch_stats", []):
                count = int(batch.get("compute_infer", {}).get("count", 0))
                counters.batches[int(batch.get("batch_size", 0))] += count
        return counters

    def __sub__(self, before: ModelCounters) -> ModelCounters:
        return ModelCounters(self.version, self.counts - before.counts, self.batches - before.batches)

    def mean_ms(self, name: str) -> float:
        """Mean milliseconds per request of ``success`` or of a phase; 0 where none was counted."""
        count = self.counts[name]
        return self.counts[f"{name}_ns"] / count / _NANOSECONDS_PER_MS if count else 0.0

    @property
    def step_ms(self) -> dict[str, float]:
        """Mean milliseconds per request: ``queue``, waiting for an instance, and ``compute``, spent in one."""
        return {"queue": self.mean_ms("queue"), "compute": sum(map(self.mean_ms, PHASES[1:]))}

    def to_json(self) -> dict[str, Any]:
        """Plain values, times as milliseconds per request."""
        return {
            "version": self.version,
            "success": self.counts["success"],
            "failed": self.counts["fail"],
            "images": self.counts["images"],
            "executions": self.counts["executions"],
            "request_ms": self.mean_ms("success"),
            **{f"{phase}_ms": self.mean_ms(phase) for phase in PHASES},
            "batches": {str(size): count for size, count in sorted(self.batches.items())},
        }


def steps_of(precision: str) -> tuple[str, ...]:
    """Models that an image goes through in one precision, in order."""
    return (
        contract.ADMISSION_MODEL,
        contract.PREPROCESS_MODEL,
        contract.network_model(precision),
        contract.POSTPROCESS_MODEL,
    )


class TritonStatistics:
    """Reads the counters of a server.

    Attributes:
        fails_per_request: by how much an ensemble's failure counter grows for one failed request; see
            :meth:`calibrate`.
    """

    def __init__(self, protocol: str, url: str, timeout_s: float = 10.0) -> None:
        self.fails_per_request = 1
        self._url = url
        self._transport = Transport(protocol, url, timeout_s)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def read_all(self) -> dict[str, ModelCounters]:
        """Counters of every model of the server, by name.

        Raises:
            LoadError: no answer.
        """
        try:
            entries = self._transport.statistics()
        except SegmentationError as error:
            raise LoadError(f"the server does not give its statistics: {error}") from error
        models: dict[str, list[dict[str, Any]]] = {}
        for entry in entries:
            models.setdefault(entry["name"], []).append(entry)
        return {name: ModelCounters.of(versions) for name, versions in models.items()}

    def read(self, precision: str) -> dict[str, ModelCounters]:
        """Counters of the ensemble of a precision and of its steps, by name.

        Raises:
            LoadError: no answer, or a model is not served.
        """
        models = self.read_all()
        ensemble = contract.ensemble_model(precision)
        try:
            found = {model: models[model] for model in (ensemble, *steps_of(precision))}
        except KeyError as missing:
            raise LoadError(f"the server at {self._url} does not give the statistics of {missing}") from None
        found[ensemble].counts["fail"] //= self.fails_per_request
        return found

    def calibrate(self, precision: str) -> None:
        """Measure how often the server counts one failed request of an ensemble, with a request that is rejected.

        tritonserver 2.51 counts it twice (measured), so that its counter does not say how many failed.

        Raises:
            LoadError: no answer.
        """
        model = contract.ensemble_model(precision)
        rejected = Request((b"not an image",), ("probe",), {})
        before = self.read(precision)[model]
        try:
            self._transport.infer(model, rejected.tensor(), {})
        except RequestError:
            time.sleep(_SETTLE_S)
        except SegmentationError as error:
            raise LoadError(str(error)) from error
        self.fails_per_request = max(1, (self.read(precision)[model] - before).counts["fail"])


def difference(before: dict[str, ModelCounters], after: dict[str, ModelCounters]) -> dict[str, ModelCounters]:
    """Per model, what was added."""
    return {model: counters - before.get(model, ModelCounters()) for model, counters in after.items()}
