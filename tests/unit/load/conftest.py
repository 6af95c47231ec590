"""Steps of a comparison with known numbers."""

from collections import Counter

import numpy as np
import pytest

from load.results import Load, StepResult
from load.triton_statistics import ModelCounters, steps_of
from load.versions import MeasuredVersion
from pipeline import contract


def counters(requests, queue_ms, infer_ms):
    total = {"queue": queue_ms, "compute_input": 1, "compute_infer": infer_ms, "compute_output": 2}
    counts = Counter(success=requests, images=requests, executions=requests)
    for phase, spent_ms in total.items():
        counts.update({phase: requests, f"{phase}_ns": int(spent_ms * requests * 1e6)})
    counts["success_ns"] = int(sum(total.values()) * requests * 1e6)
    return ModelCounters("1", counts, Counter({1: requests}))


@pytest.fixture
def step():
    def make(precision, users, number, throughput, latency_ms, protocol="grpc", rate=0.0, failures=0):
        requests = 100
        ensemble = counters(requests, 0, latency_ms)
        server = {contract.ensemble_model(precision): ensemble}
        server.update({model: counters(requests, 5, 10) for model in steps_of(precision)})
        return StepResult(
            precision,
            protocol,
            Load(users, rate),
            number,
            window_s=10.0,
            throughput=throughput,
            latencies_ms=np.full(requests, float(latency_ms)),
            kinds=Counter({"ok": requests - failures, "wrong": failures}),
            server=server,
            metrics={"cpu_utilization": {"mean": 0.9, "peak": 1.0}},
        )

    return make


@pytest.fixture
def steps(step):
    """Two precisions, three loads, three rounds: int8 is 1.5 times as fast, and both bend at 2 users."""
    speed = {1: (10.0, 100), 2: (18.0, 111), 8: (19.0, 420)}
    return [
        step(precision, users, number, throughput * factor * (1 + number / 100), latency / factor)
        for number in range(3)
        for users, (throughput, latency) in speed.items()
        for precision, factor in (("fp32", 1.0), ("int8", 1.5))
    ]


@pytest.fixture
def versions():
    return {
        "fp32": MeasuredVersion("fp32", "1", "m-fp32", 13_000_000, True, 1.0, 1.0, None, "gate passed on 5 images"),
        "int8": MeasuredVersion("int8", "1", "m-int8", 4_000_000, True, 0.97, 0.99, None, "gate passed on 5 images"),
    }
