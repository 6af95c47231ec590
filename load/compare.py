"""Runs a comparison: the same loads on every precision, interleaved round by round.

A machine that warms up, or runs other programs for a while, then slows all precisions alike. Every round goes through
all loads and protocols, and at each of them through all precisions, in an order that turns by one from round to round.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from load.errors import LoadError
from load.generator import run_step
from load.metrics import MetricsSampler
from load.options import UserOptions
from load.payloads import check_ready, is_ready, load_payloads, with_expectations
from load.results import Load, StepResult, StepSpec
from load.triton_statistics import TritonStatistics, difference
from load.versions import MeasuredVersion, describe_version
from pipeline import contract

SETTLE_S: Final = 2.0
"""How long to wait after a step until the server's counters agree with the users'."""

_POLL_S: Final = 0.1
WARM_UP_PASSES: Final = 2
"""How often every image goes through every precision before anything is measured."""


@dataclass(frozen=True)
class Schedule:
    """The steps of a comparison."""

    precisions: tuple[str, ...]  # which ensembles
    protocols: tuple[str, ...]  # over which protocols
    loads: tuple[Load, ...]  # how much load
    rounds: int  # how often to go through all of it
    duration_s: float  # window that is measured per step, in seconds
    warm_up_s: float  # load before it, in seconds
    options: UserOptions  # how users behave

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
    """Where the server listens."""

    urls: dict[str, str]  # protocol to ``host:port``
    metrics: str | None = None  # ``host:port`` of the metrics endpoint; None where it is not known
    repository: Path | None = None  # its model repository; None where it is not available


@dataclass(frozen=True)
class Outcome:
    """The results of a comparison."""

    results: tuple[StepResult, ...]  # the steps, in the order in which they ran
    versions: dict[str, MeasuredVersion]  # per precision
    expected: dict[str, int | None]  # image name to the number of detections that are expected in it
    reference: str  # precision that found them
    stopped: str | None  # why the comparison ended early; None if it is complete


def run_comparison(schedule: Schedule, endpoints: Endpoints, say: Callable[[str], None]) -> Outcome:
    """Run all steps; a server that goes away ends the comparison early, with the results until then.

    Raises:
        LoadError: it cannot start: no server, a precision that is not served, images that cannot be read.
    """
    timeout_s = schedule.options.timeout_s
    for protocol, precision in itertools.product(schedule.protocols, schedule.precisions):
        check_ready(protocol, endpoints.urls[protocol], timeout_s, precision)
    first = schedule.protocols[0]
    fp32_is_served = is_ready(first, endpoints.urls[first], timeout_s, "fp32")
    reference = "fp32" if fp32_is_served else schedule.precisions[0]
    payloads = load_payloads(schedule.options)
    for precision in (*schedule.precisions * WARM_UP_PASSES, reference):
        payloads = with_expectations(payloads, first, endpoints.urls[first], precision, schedule.options)
    results: list[StepResult] = []
    stopped: str | None = None
    with contextlib.closing(TritonStatistics(first, endpoints.urls[first], timeout_s)) as statistics:
        statistics.calibrate(schedule.precisions[0])
        versions = {}
        for precision in schedule.precisions:
            version = statistics.read(precision)[contract.network_model(precision)].version
            versions[precision] = describe_version(precision, version, endpoints.repository)
        steps = list(schedule.steps())
        for count, (number, load, protocol, precision) in enumerate(steps, 1):
            times = schedule.warm_up_s, schedule.duration_s
            url = endpoints.urls[protocol]
            spec = StepSpec(precision, protocol, url, load, number, *times, payloads, schedule.options)
            results.append(result := _run(spec, endpoints.metrics, statistics))
            say(f"[{count}/{len(steps)}] {_line(result)}")
            if result.error is not None:
                stopped = f"step {count} of {len(steps)} ({_name(result)}): {result.error}"
                break
    expected = {payload.name: payload.expected for payload in payloads}
    return Outcome(tuple(results), versions, expected, reference, stopped)


def _run(spec: StepSpec, metrics: str | None, statistics: TritonStatistics) -> StepResult:
    """Run one step, and read the server's counters before and after; a fault is in the result's ``error``."""
    result = StepResult(spec.precision, spec.protocol, spec.load, spec.round)
    try:
        before = statistics.read(spec.precision)
        with MetricsSampler(metrics) as sampler:
            result = StepResult.of(spec, run_step(spec))
        result.metrics = sampler.summary()
        # The server counts a request after its answer, so the last counts may be late.
        deadline = time.monotonic() + SETTLE_S
        while True:
            result.server = difference(before, statistics.read(spec.precision))
            if result.disagreement() is None or time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
    except LoadError as error:
        result.error = "; ".join(filter(None, (result.error, str(error))))
    return result


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
