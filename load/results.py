"""Results of one step of a comparison: measured by its users, and counted by the server."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from load.options import UserOptions
from load.payloads import Payload
from load.spread import number, percentile
from load.triton_statistics import ModelCounters
from pipeline import contract

PERCENTILES: Final = (50, 95, 99)
_SUCCEEDED_ON_SERVER: Final = ("ok", "wrong")
_UNKNOWN_TO_SERVER: Final = ("unavailable", "not_sent")


@dataclass(frozen=True)
class Load:
    """A load on the server."""

    users: int  # closed loop: requests kept in flight; open loop: sources of arrivals
    rate: float = 0.0  # open loop: arrivals per second; 0 in a closed loop

    @property
    def is_open(self) -> bool:
        """Whether requests are sent at given times, answered or not."""
        return self.rate > 0

    @property
    def label(self) -> str:
        """For the report."""
        return f"{self.rate:g}/s arriving" if self.is_open else f"{self.users} user{'s' * (self.users != 1)}"


@dataclass(frozen=True)
class StepSpec:
    """One load on one precision over one protocol."""

    precision: str  # which ensemble
    protocol: str  # ``grpc`` or ``http``
    url: str  # ``host:port``
    load: Load  # of the users
    round: int  # number of the round, from 0; also the seed of the order of images and of arrivals
    warm_up_s: float  # load before the window that is measured, in seconds
    duration_s: float  # the window, in seconds
    payloads: tuple[Payload, ...]  # what is sent
    options: UserOptions  # how users behave


@dataclass
class StepResult:
    """The result of one step."""

    precision: str  # which ensemble
    protocol: str  # ``grpc`` or ``http``
    load: Load  # on the server
    round: int  # number of the round, from 0
    window_s: float = 0.0  # length of the window that was measured, in seconds
    throughput: float = 0.0  # right answers within the window, in images per second
    # Of the right answers to requests sent (open loop: due) within the window
    latencies_ms: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    # Outcome of all requests, those outside of the window too: ``ok``, ``wrong``, ``refused``, ``timeout``,
    # ``unavailable``, ``not_sent`` to their number
    kinds: Counter[str] = field(default_factory=Counter)
    first_errors: dict[str, str] = field(default_factory=dict)  # text of the first failure of each kind
    client_cores: float = 0.0  # processor cores that the generator used; near 1, the generator limits the load
    # Triton's counters of the step by model; empty where the server did not answer
    server: dict[str, ModelCounters] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # gauge to mean and peak
    error: str | None = None  # why the step ended early or has no results; None if it is complete

    @classmethod
    def of(cls, spec: StepSpec, values: dict[str, Any]) -> StepResult:
        """Sum up a run of :func:`load.step.run`, whose values these are."""
        window_s = float(values["window_s"])
        begun, ended = np.array(values["begun_s"], float), np.array(values["ended_s"], float)
        right = np.array([kind == "ok" for kind in values["kinds"]], bool)
        images = np.array(values["images"], float)
        within = right & (ended >= 0) & (ended < window_s)
        sent_within = right & (begun >= 0) & (begun < window_s)
        return cls(
            spec.precision,
            spec.protocol,
            spec.load,
            spec.round,
            window_s=window_s,
            throughput=float(images[within].sum() / window_s) if window_s > 0 else 0.0,
            latencies_ms=np.sort(ended[sent_within] - begun[sent_within]) * 1e3,
            kinds=Counter(values["kinds"]),
            first_errors=dict(values["first_errors"]),
            client_cores=float(values["client_cores"]),
            error="connections were refused and nothing answered for 5 s" if values["server_gone"] else None,
        )

    @property
    def requests(self) -> int:
        """All requests."""
        return sum(self.kinds.values())

    @property
    def failures(self) -> int:
        """Requests without a right answer."""
        return self.requests - self.kinds["ok"]

    @property
    def is_broken(self) -> bool:
        """Whether it has no usable result."""
        return self.error is not None or not len(self.latencies_ms)

    def percentile_ms(self, percent: float) -> float:
        """Percentile of the latencies; NaN if there is none."""
        return percentile(self.latencies_ms, percent)

    @property
    def mean_ms(self) -> float:
        """Mean latency; NaN if there is none."""
        return float(self.latencies_ms.mean()) if len(self.latencies_ms) else math.nan

    def disagreement(self) -> str | None:
        """The difference between the users' count and the server's; None if they agree.

        The server may have answered a request that timed out, so timeouts widen the range that agrees.
        """
        ensemble = self.server.get(contract.ensemble_model(self.precision))
        if ensemble is None:
            return "the server's counters are not known"
        succeeded = sum(self.kinds[kind] for kind in _SUCCEEDED_ON_SERVER)
        unknown = sum(self.kinds[kind] for kind in _UNKNOWN_TO_SERVER)
        failed = self.requests - succeeded - unknown - self.kinds["timeout"]
        counted = ensemble.counts["success"], ensemble.counts["fail"]
        extra = counted[0] - succeeded, counted[1] - failed
        if min(extra) >= 0 and sum(extra) <= self.kinds["timeout"]:
            return None
        return (
            f"the users count {succeeded} successes and {failed} failures, the server {counted[0]} and {counted[1]}; "
            "others may be using it"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "precision": self.precision,
            "protocol": self.protocol,
            "users": self.load.users if not self.load.is_open else None,
            "rate": self.load.rate or None,
            "round": self.round,
            "window_s": round(self.window_s, 3),
            "throughput": self.throughput,
            "mean_ms": number(self.mean_ms),
            **{f"p{percent}_ms": number(self.percentile_ms(percent)) for percent in PERCENTILES},
            "requests": self.requests,
            "failures": self.failures,
            "kinds": dict(self.kinds),
            "first_errors": self.first_errors,
            "client_cores": round(self.client_cores, 3),
            "server": {model: counters.to_json() for model, counters in self.server.items()},
            "counters_agree": self.disagreement() is None,
            "metrics": self.metrics,
            "error": self.error,
        }
