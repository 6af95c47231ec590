"""From the steps of a comparison to its answer: curves, the knee, and ratios with their spread."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from load.results import PERCENTILES, Load, StepResult
from load.spread import Spread, ratios
from load.triton_statistics import ModelCounters, steps_of
from load.versions import MeasuredVersion
from pipeline import contract

MIN_ROUNDS: Final = 3
"""With fewer rounds the spread of a ratio is unknown, and no difference is claimed."""


@dataclass(frozen=True)
class Share:
    """A part of the mean request's time."""

    step: str  # ``admission``, ``preprocess``, ``network``, ``postprocess`` or ``rest`` (transport, scheduling)
    phase: str  # ``queue``, ``compute``, or empty for the rest
    milliseconds: float  # per request


@dataclass(frozen=True)
class Point:
    """One load on one precision over one protocol, over all rounds."""

    load: Load  # on the server
    steps: tuple[StepResult, ...]  # the rounds' steps
    throughput: Spread  # images per second
    latency_ms: dict[int, Spread]  # percentile to milliseconds

    @classmethod
    def of(cls, load: Load, steps: Sequence[StepResult]) -> Point:
        """Sum up the rounds of a load; those without a right answer count as no throughput and no latency."""
        whole = [step for step in steps if not step.is_broken]
        return cls(
            load,
            tuple(steps),
            Spread.of([step.throughput for step in steps if step.error is None]),
            {percent: Spread.of([step.percentile_ms(percent) for step in whole]) for percent in PERCENTILES},
        )

    @property
    def mean_ms(self) -> float:
        """Median over the rounds of the mean latency."""
        return Spread.of([step.mean_ms for step in self.steps if not step.is_broken]).median

    @property
    def is_usable(self) -> bool:
        """Whether it can be compared: some round gave right answers."""
        return self.throughput.rounds > 0 and not math.isnan(self.mean_ms)

    def shares(self) -> list[Share]:
        """The parts of the mean request's time over all rounds, by the server's counters."""
        known = [step for step in self.steps if step.server and not step.is_broken]
        if not known:
            return []
        shares = []
        for model in steps_of(known[0].precision):
            step = "network" if model == contract.network_model(known[0].precision) else model
            for phase in ("queue", "compute"):
                spent_ms = statistics.fmean(one.server[model].step_ms[phase] for one in known)
                shares.append(Share(step, phase, spent_ms))
        whole_ms = statistics.fmean(one.mean_ms for one in known)
        return [*shares, Share("rest", "", max(0.0, whole_ms - sum(share.milliseconds for share in shares)))]

    def batches(self) -> dict[int, int]:
        """Batch sizes that the server formed for the network, to how often."""
        total: Counter[int] = Counter()
        for step in self.steps:
            total.update(step.server.get(contract.network_model(step.precision), ModelCounters()).batches)
        return dict(sorted(total.items()))

    @property
    def requests(self) -> int:
        """All requests of all rounds."""
        return sum(step.requests for step in self.steps)

    @property
    def failures(self) -> int:
        """Requests without a right answer."""
        return sum(step.failures for step in self.steps)

    def gauge(self, name: str) -> float | None:
        """Mean of a gauge over the rounds; None where it was not measured."""
        values = [step.metrics[name]["mean"] for step in self.steps if name in step.metrics]
        return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class Series:
    """One precision over one protocol, load by load."""

    precision: str  # which ensemble
    protocol: str  # ``grpc`` or ``http``
    points: tuple[Point, ...]  # by load, closed loop first
    budget_ms: float | None = None  # bound on p95; None for none

    @property
    def closed(self) -> tuple[Point, ...]:
        """Points of the closed loop that can be compared."""
        return tuple(point for point in self.points if not point.load.is_open and point.is_usable)

    @property
    def open(self) -> tuple[Point, ...]:
        """Points with given arrivals that can be compared."""
        return tuple(point for point in self.points if point.load.is_open and point.is_usable)

    @property
    def knee(self) -> Point | None:
        """The load of most throughput per latency, beyond which waiting grows faster than work done.

        Source: "power", L. Kleinrock, Power and deterministic rules of thumb for probabilistic problems in computer
        communications, ICC 1979.
        """
        points = self.closed or self.open
        return max(points, key=lambda point: point.throughput.median / point.mean_ms, default=None)

    @property
    def best(self) -> Point | None:
        """The point of most throughput whose p95 (median over the rounds) is within the budget; None if none is."""
        bound_ms = math.inf if self.budget_ms is None else self.budget_ms
        able = [point for point in (*self.closed, *self.open) if point.latency_ms[95].median <= bound_ms]
        return max(able, key=lambda point: point.throughput.median, default=None)

    @property
    def is_limited_by_loads(self) -> bool:
        """Whether the best load is the highest that was tried, so that more might have been possible."""
        best = self.best
        return best is not None and best is (self.open if best.load.is_open else self.closed)[-1]

    @property
    def requests(self) -> int:
        """All requests of all steps."""
        return sum(point.requests for point in self.points)

    @property
    def failures(self) -> int:
        """Requests without a right answer."""
        return sum(point.failures for point in self.points)

    @property
    def error_rate(self) -> float | None:
        """Share of the requests without a right answer; None without requests."""
        return self.failures / self.requests if self.requests else None


@dataclass(frozen=True)
class Ratio:
    """How two precisions compare, each at its best load."""

    precision: str  # above the line
    base: str  # below it
    protocol: str  # ``grpc`` or ``http``
    throughput: Spread  # ratio of images per second, taken within each round

    @property
    def has_too_few_rounds(self) -> bool:
        """Whether there are too few rounds to separate a difference from noise."""
        return self.throughput.rounds < MIN_ROUNDS

    @property
    def doubt(self) -> str:
        """Why no difference is claimed, in words; empty if one is."""
        rounds = self.throughput.rounds
        if self.has_too_few_rounds:
            return f"{rounds} round{'s' * (rounds != 1)}: too few to judge"
        on_both_sides_of_1 = self.throughput.low <= 1.0 <= self.throughput.high
        return "inside the noise" if on_both_sides_of_1 else ""


@dataclass(frozen=True)
class Analysis:
    """The answer."""

    series: tuple[Series, ...]  # per precision and protocol
    versions: Mapping[str, MeasuredVersion]  # per precision
    budget_ms: float | None  # bound on p95; None for none

    @property
    def protocols(self) -> tuple[str, ...]:
        """In the order in which they were asked for."""
        return tuple(dict.fromkeys(one.protocol for one in self.series))

    @property
    def has_gpu(self) -> bool:
        """Whether a GPU was seen."""
        return any(point.gauge("gpu_utilization") is not None for one in self.series for point in one.points)

    def of(self, precision: str, protocol: str) -> Series | None:
        """One series; None if it was not measured."""
        found = (one for one in self.series if (one.precision, one.protocol) == (precision, protocol))
        return next(found, None)

    def ratio(self, precision: str, base: str, protocol: str) -> Ratio | None:
        """Compare two precisions at their best loads, round by round; None where one has none."""
        upper, lower = self.of(precision, protocol), self.of(base, protocol)
        above, below = (one.best if one is not None else None for one in (upper, lower))
        if above is None or below is None:
            return None
        rounds = {step.round: step.throughput for step in below.steps if step.error is None}
        shared = [step for step in above.steps if step.error is None and step.round in rounds]
        values = ratios([step.throughput for step in shared], [rounds[step.round] for step in shared])
        return Ratio(precision, base, protocol, Spread.of(values)) if values else None

    def ratios(self) -> list[Ratio]:
        """int8 to fp16, int8 to fp32 and fp16 to fp32, per protocol, as far as they were measured."""
        pairs = (("int8", "fp32"), ("int8", "fp16"), ("fp16", "fp32"))
        found = [self.ratio(*pair, protocol) for protocol in self.protocols for pair in pairs]
        return [one for one in found if one is not None]

    def lookup(self, precision: str, protocol: str, value: str) -> float | None:
        """A value for ``--fail-if``: speeds and latencies are those at the best load, counts those of all steps."""
        series, version = self.of(precision, protocol), self.versions.get(precision)
        if series is None or version is None:
            return None
        known: dict[str, float | None] = {
            "mask_iou": version.mask_iou,
            "f1": version.f1,
            "map50_95": version.map50_95,
            "requests": series.requests,
            "failures": series.failures,
            "error_rate": series.error_rate,
        }
        if series.best is not None:
            known["throughput"] = series.best.throughput.median
            known["mean_ms"] = series.best.mean_ms
            known.update({f"p{one}_ms": spread.median for one, spread in series.best.latency_ms.items()})
        return known.get(value)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "budget_ms": self.budget_ms,
            "series": [_series_json(one) for one in self.series],
            "ratios": [
                {**asdict(one), "throughput": one.throughput.to_json(), "doubt": one.doubt or None}
                for one in self.ratios()
            ],
            "versions": [asdict(version) for version in self.versions.values()],
        }


def analyze(
    results: Sequence[StepResult], versions: Mapping[str, MeasuredVersion], budget_ms: float | None
) -> Analysis:
    """Group steps to points and points to series."""
    grouped: dict[tuple[str, str], dict[Load, list[StepResult]]] = {}
    for step in results:
        grouped.setdefault((step.precision, step.protocol), {}).setdefault(step.load, []).append(step)
    series = tuple(
        Series(
            precision,
            protocol,
            tuple(
                Point.of(load, loads[load])
                for load in sorted(loads, key=lambda load: (load.is_open, load.rate, load.users))
            ),
            budget_ms,
        )
        for (precision, protocol), loads in sorted(
            grouped.items(), key=lambda item: (item[0][1], contract.PRECISIONS.index(item[0][0]))
        )
    )
    return Analysis(series, versions, budget_ms)


def _series_json(series: Series) -> dict[str, Any]:
    best, knee = series.best, series.knee
    return {
        "precision": series.precision,
        "protocol": series.protocol,
        "requests": series.requests,
        "failures": series.failures,
        "knee": knee.load.label if knee else None,
        "best": best.load.label if best else None,
        "best_is_highest_tried": series.is_limited_by_loads,
        "points": [
            {
                "load": point.load.label,
                "users": None if point.load.is_open else point.load.users,
                "rate": point.load.rate or None,
                "throughput": point.throughput.to_json(),
                **{f"p{percentile}_ms": spread.to_json() for percentile, spread in point.latency_ms.items()},
                "where_time_goes_ms": [asdict(share) for share in point.shares()],
                "batches": {str(size): count for size, count in point.batches().items()},
            }
            for point in series.points
        ],
    }
