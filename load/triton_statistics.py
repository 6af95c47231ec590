"""Triton's own counters, before and after: what each step of the ensemble did, and how long it took.

Field meanings: triton-inference-server/server, ``docs/protocol/extension_statistics.md``. Times of ``success`` are
whole requests; ``queue`` is waiting for an instance, ``compute_input`` and ``compute_output`` are copying tensors, and
``compute_infer`` is the model's own work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tritonclient.utils import InferenceServerException

from client.errors import RequestError, SegmentationError
from client.request import Request
from client.transport import Transport
from load.errors import LoadError
from pipeline import contract
from pipeline.loopback import grpc_channel_args

PHASES: Final = ("queue", "compute_input", "compute_infer", "compute_output")
_NANOSECONDS_PER_MS: Final = 1e6
_SETTLE_S: Final = 0.5
"""The second count of a failure comes after the answer."""


@dataclass(frozen=True)
class ModelCounters:
    """Counters of one model since the server's start.

    Attributes:
        version: the version that is served.
        success: requests answered.
        failed: requests that ended in an error.
        images: inferences, which is images.
        executions: batches run.
        success_ns: nanoseconds of all answered requests, from arrival to answer.
        phase_ns: phase to nanoseconds, over all requests.
        phase_count: phase to how many requests it was measured for.
        batches: batch size to how often it was run.
    """

    version: str = ""
    success: int = 0
    failed: int = 0
    images: int = 0
    executions: int = 0
    success_ns: int = 0
    phase_ns: dict[str, int] = field(default_factory=dict)
    phase_count: dict[str, int] = field(default_factory=dict)
    batches: dict[int, int] = field(default_factory=dict)

    def since(self, before: ModelCounters) -> ModelCounters:
        """What was added after ``before``."""
        return ModelCounters(
            self.version,
            self.success - before.success,
            self.failed - before.failed,
            self.images - before.images,
            self.executions - before.executions,
            self.success_ns - before.success_ns,
            {phase: self.phase_ns[phase] - before.phase_ns.get(phase, 0) for phase in self.phase_ns},
            {phase: self.phase_count[phase] - before.phase_count.get(phase, 0) for phase in self.phase_count},
            {
                size: added
                for size, count in sorted(self.batches.items())
                if (added := count - before.batches.get(size, 0))
            },
        )

    def phase_ms(self, phase: str) -> float:
        """Mean milliseconds of a phase per request; 0 where none was measured."""
        count = self.phase_count.get(phase, 0)
        return self.phase_ns.get(phase, 0) / count / _NANOSECONDS_PER_MS if count else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, times as milliseconds per request."""
        return {
            "version": self.version,
            "success": self.success,
            "failed": self.failed,
            "images": self.images,
            "executions": self.executions,
            "request_ms": self.success_ns / self.success / _NANOSECONDS_PER_MS if self.success else 0.0,
            **{f"{phase}_ms": self.phase_ms(phase) for phase in PHASES},
            "batches": {str(size): count for size, count in self.batches.items()},
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
        self._protocol, self._url, self._timeout_s = protocol, url, timeout_s
        self.fails_per_request = 1
        self._client: Any
        if protocol == "grpc":
            import tritonclient.grpc

            self._client = tritonclient.grpc.InferenceServerClient(url, channel_args=grpc_channel_args(url))
        else:
            import tritonclient.http

            self._client = tritonclient.http.InferenceServerClient(
                url, connection_timeout=timeout_s, network_timeout=timeout_s
            )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def read(self, precision: str) -> dict[str, ModelCounters]:
        """Counters of the ensemble and of its steps, by model.

        Raises:
            LoadError: no answer.
        """
        models = (contract.ensemble_model(precision), *steps_of(precision))
        found = {model: _counters(self._ask(model)) for model in models}
        ensemble = found[models[0]]
        found[models[0]] = replace(ensemble, failed=ensemble.failed // self.fails_per_request)
        return found

    def calibrate(self, precision: str) -> None:
        """Find out how often the server counts a failed request of an ensemble, by sending one that must be refused.

        tritonserver 2.51 counts it twice (seen), so that its counter alone would not say how many failed.

        Raises:
            LoadError: no answer.
        """
        model = contract.ensemble_model(precision)
        refused = Request((b"not an image",), ("probe",), {})
        before = self.read(precision)[model].failed
        sender = Transport(self._protocol, self._url, self._timeout_s)
        try:
            sender.infer(model, refused.tensor(), {})
        except RequestError:
            pass
        except SegmentationError as error:
            raise LoadError(str(error)) from error
        finally:
            sender.close()
        time.sleep(_SETTLE_S)
        self.fails_per_request = max(1, self.read(precision)[model].failed - before)

    def _ask(self, model: str) -> list[dict[str, Any]]:
        try:
            if self._protocol == "grpc":
                answer = self._client.get_inference_statistics(model, as_json=True, client_timeout=self._timeout_s)
            else:
                answer = self._client.get_inference_statistics(model)
        except (InferenceServerException, OSError) as error:
            raise LoadError(f"the server at {self._url} does not give the statistics of {model}: {error}") from error
        return list(answer.get("model_stats", []))


def difference(before: dict[str, ModelCounters], after: dict[str, ModelCounters]) -> dict[str, ModelCounters]:
    """Per model, what was added."""
    return {model: counters.since(before.get(model, ModelCounters())) for model, counters in after.items()}


def _counters(versions: list[dict[str, Any]]) -> ModelCounters:
    """Add up the versions of a model; over gRPC 64-bit numbers come as text, and zeros not at all."""
    phase_ns = dict.fromkeys(PHASES, 0)
    phase_count = dict.fromkeys(PHASES, 0)
    batches: dict[int, int] = {}
    success = failed = images = executions = success_ns = 0
    for entry in versions:
        statistics = entry.get("inference_stats", {})
        success += _whole(statistics, "success", "count")
        success_ns += _whole(statistics, "success", "ns")
        failed += _whole(statistics, "fail", "count")
        images += _whole(entry, "inference_count")
        executions += _whole(entry, "execution_count")
        for phase in PHASES:
            phase_ns[phase] += _whole(statistics, phase, "ns")
            phase_count[phase] += _whole(statistics, phase, "count")
        for batch in entry.get("batch_stats", []):
            size = _whole(batch, "batch_size")
            batches[size] = batches.get(size, 0) + _whole(batch, "compute_infer", "count")
    version = ",".join(str(entry.get("version", "")) for entry in versions)
    return ModelCounters(version, success, failed, images, executions, success_ns, phase_ns, phase_count, batches)


def _whole(values: dict[str, Any], *keys: str) -> int:
    found: Any = values
    for key in keys:
        found = found.get(key, {}) if isinstance(found, dict) else {}
    return int(found) if found else 0
