"""Runs a comparison: the same loads on every precision, interleaved round by round.

A machine that warms up, or is used by others for a while, then slows all precisions alike. Every round goes through all
loads and protocols, and at each of them through all precisions, in an order that turns by one from round to round.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from load.errors import LoadError
from load.generator import run_step
from load.metrics import MetricsSampler
from load.options import UserOptions
from load.payloads import check_ready, load_payloads, reference_precision, save, with_expectations
from load.results import Load, StepResult
from load.step_spec import StepSpec
from load.triton_statistics import ModelCounters, TritonStatistics, difference
from load.versions import MeasuredVersion, describe_version
from pipeline import contract

SETTLE_S: Final = 2.0
"""How long to wait for the server's counters to come up to the users' after a step."""

_POLL_S: Final = 0.1
WARM_UP_PASSES: Final = 2
"""How often every image goes through every precision before anything is measured."""


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Attributes:
        precisions: which ensembles.
        protocols: over which protocols.
        loads: how much load.
        rounds: how often to go through all of it.
        duration_s: window that is measured per step, in seconds.
        warm_up_s: load before it, in seconds.
        options: how users behave.
    """

    precisions: tuple[str, ...]
    protocols: tuple[str, ...]
    loads: tuple[Load, ...]
    rounds: int
    duration_s: float
    warm_up_s: float
    options: UserOptions

    def steps(self) -> Iterator[tuple[int, Load, str, str]]:
        """Round, load, protocol and precision of every step, in order."""
        for number, load, protocol in itertools.product(range(self.rounds), self.loads, self.protocols):
            turn = number % len(self.precisions)
            for precision in (*self.precisions[turn:], *self.precisions[:turn]):
                yield number, load, protocol, precision

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "precisions": list(self.precisions),
            "protocols": list(self.protocols),
            "loads": [load.label for load in self.loads],
            "rounds": self.rounds,
            "duration_s": self.duration_s,
            "warm_up_s": self.warm_up_s,
            "users": self.options.to_json(),
        }


@dataclass(frozen=True)
class Endpoints:
    """Where the server listens.

    Attributes:
        urls: protocol to ``host:port``.
        metrics: ``host:port`` of the metrics endpoint; None where it is not known.
        repository: its model repository; None where it is not available.
    """

    urls: dict[str, str]
    metrics: str | None = None
    repository: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What a comparison produced.

    Attributes:
        results: the steps, in the order in which they ran.
        versions: per precision.
        expected: image name to the detections that are expected in it.
        reference: precision that said so.
        stopped: why the comparison ended before its end; None if it did not.
    """

    results: tuple[StepResult, ...]
    versions: dict[str, MeasuredVersion]
    expected: dict[str, int | None]
    reference: str
    stopped: str | None


def run_comparison(plan: Plan, endpoints: Endpoints, say: Callable[[str], None]) -> Outcome:
    """Run all steps; a server that goes away ends the comparison with what there is.

    Args:
        plan: what to compare.
        endpoints: where the server listens.
        say: gets a line per step.

    Raises:
        LoadError: it cannot start: no server, a precision that is not served, images that cannot be read.
    """
    timeout_s = plan.options.timeout_s
    for protocol, precision in itertools.product(plan.protocols, plan.precisions):
        check_ready(protocol, endpoints.urls[protocol], timeout_s, precision)
    first = plan.protocols[0]
    reference = reference_precision(first, endpoints.urls[first], timeout_s, plan.precisions[0])
    payloads = load_payloads(plan.options)
    for precision in (*plan.precisions * WARM_UP_PASSES, reference):
        payloads = with_expectations(payloads, first, endpoints.urls[first], precision, plan.options)
    statistics = TritonStatistics(first, endpoints.urls[first], timeout_s)
    results: list[StepResult] = []
    stopped: str | None = None
    try:
        statistics.calibrate(plan.precisions[0])
        versions = {
            precision: describe_version(precision, _served_version(statistics, precision), endpoints.repository)
            for precision in plan.precisions
        }
        with tempfile.TemporaryDirectory(prefix="load_") as name:
            save(payloads, Path(name))
            runner = _Runner(plan, endpoints, Path(name), statistics)
            total = sum(1 for _ in plan.steps())
            for count, step in enumerate(plan.steps(), 1):
                result = runner.run(*step)
                results.append(result)
                say(f"[{count}/{total}] {_line(result)}")
                if result.error is not None:
                    stopped = f"step {count} of {total} ({_name(result)}): {result.error}"
                    break
    finally:
        statistics.close()
    return Outcome(
        tuple(results), versions, {payload.name: payload.expected for payload in payloads}, reference, stopped
    )


class _Runner:
    """Runs single steps, and asks the server before and after."""

    def __init__(self, plan: Plan, endpoints: Endpoints, payloads: Path, statistics: TritonStatistics) -> None:
        self._plan, self._endpoints, self._payloads, self._statistics = plan, endpoints, payloads, statistics

    def run(self, number: int, load: Load, protocol: str, precision: str) -> StepResult:
        """Run one step; what goes wrong is in its ``error``."""
        spec = StepSpec(
            precision,
            protocol,
            self._endpoints.urls[protocol],
            load.users,
            load.rate or None,
            self._plan.warm_up_s,
            self._plan.duration_s,
            self._payloads,
            self._plan.options,
            seed=number,
        )
        result = StepResult(precision, protocol, load, number)
        try:
            before = self._statistics.read(precision)
            with MetricsSampler(self._endpoints.metrics) as sampler:
                result = StepResult.of(precision, protocol, load, number, run_step(spec))
            result.metrics = sampler.summary()
            self._count(result, before)
        except LoadError as error:
            result.error = "; ".join(filter(None, (result.error, str(error))))
        return result

    def _count(self, result: StepResult, before: dict[str, ModelCounters]) -> None:
        """Note what the server counted. It does so after it has answered, so the last counts may still be coming."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            result.server = difference(before, self._statistics.read(result.precision))
            if result.disagreement() is None or time.monotonic() > deadline:
                return
            time.sleep(_POLL_S)


def _served_version(statistics: TritonStatistics, precision: str) -> str:
    return statistics.read(precision)[contract.network_model(precision)].version


def _name(result: StepResult) -> str:
    return f"{result.precision} over {result.protocol}, {result.load.label}, round {result.round + 1}"


def _line(result: StepResult) -> str:
    line = f"{_name(result)}: "
    if len(result.latencies_ms):
        line += f"{result.throughput:.1f} images/s, p50 {result.percentile_ms(50):.0f} ms, "
        line += f"p95 {result.percentile_ms(95):.0f} ms, "
    line += f"{result.failures} of {result.requests} requests failed"
    if result.error:
        return f"{line}; {result.error}"
    return f"{line}; counters differ: {fault}" if (fault := result.disagreement()) else line


def loads_of(users: Sequence[int], rates: Sequence[float]) -> tuple[Load, ...]:
    """Closed loops by users, then open loops by rate.

    Raises:
        ValueError: a number out of range, or none at all.
    """
    if any(count < 1 for count in users):
        raise ValueError(f"--users is {','.join(map(str, users))}; allowed: 1 or more each")
    if any(not 0 < rate < float("inf") for rate in rates):
        raise ValueError(f"--rate is {','.join(map(str, rates))}; allowed: more than 0 each")
    loads = [*(Load(count) for count in users), *(Load(1, rate) for rate in rates)]
    if not loads:
        raise ValueError("no load; give --users, --rate, or both")
    return tuple(dict.fromkeys(loads))
