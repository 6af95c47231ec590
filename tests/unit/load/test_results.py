import dataclasses
from collections import Counter

import pytest

from load.metrics import gauges
from load.options import UserOptions
from load.results import Load, StepResult, StepSpec
from load.triton_statistics import ModelCounters

VALUES = {
    "window_s": 2.0,
    "client_cores": 0.1,
    "begun_s": [-0.5, 0.0, 0.5, 1.9, 1.0],
    "ended_s": [0.1, 0.4, 0.7, 2.5, 1.5],
    "images": [1, 2, 1, 1, 4],
    "kinds": ["ok", "ok", "ok", "ok", "wrong"],
    "first_errors": {"wrong": "no detections"},
    "server_gone": False,
}


def test_window_throughput_counts_answers_and_latency_counts_requests_of_the_window():
    result = StepResult.of(StepSpec("int8", "grpc", "", Load(2), 0, 0.0, 2.0, (), UserOptions()), VALUES)
    assert result.throughput == pytest.approx((1 + 2 + 1) / 2.0)
    assert sorted(result.latencies_ms) == pytest.approx([200, 400, 600])
    assert (result.requests, result.failures) == (5, 1)


@pytest.mark.parametrize(
    ("kinds", "success", "failed", "agrees"),
    [
        ({"ok": 5}, 5, 0, True),
        ({"ok": 5}, 6, 0, False),
        ({"ok": 5}, 4, 0, False),
        ({"ok": 4, "wrong": 1}, 5, 0, True),
        ({"ok": 4, "refused": 1}, 4, 1, True),
        ({"ok": 4, "refused": 1}, 5, 0, False),
        ({"ok": 4, "unavailable": 7, "not_sent": 2}, 4, 0, True),
        ({"ok": 4, "timeout": 2}, 5, 0, True),
        ({"ok": 4, "timeout": 2}, 5, 1, True),
        ({"ok": 4, "timeout": 2}, 7, 0, False),
    ],
)
def test_counts_are_compared_with_the_servers(kinds, success, failed, agrees):
    result = StepResult("int8", "grpc", Load(1), 0, kinds=Counter(kinds))
    assert result.disagreement() == "the server's counters are not known"
    result = dataclasses.replace(
        result, server={"segment_int8": ModelCounters("1", Counter(success=success, fail=failed))}
    )
    assert (result.disagreement() is None) is agrees


def test_counters_are_read_alike_over_both_protocols_and_subtracted():
    entry = {
        "version": "2",
        "inference_count": 7,
        "execution_count": 4,
        "inference_stats": {"success": {"count": 5, "ns": 50_000_000}, "queue": {"count": 5, "ns": 10_000_000}},
        "batch_stats": [{"batch_size": 2, "compute_infer": {"count": 3, "ns": 9}}],
    }
    as_grpc = {
        **entry,
        "inference_count": "7",
        "execution_count": "4",
        "inference_stats": {"success": {"count": "5", "ns": "50000000"}, "queue": {"count": "5", "ns": "10000000"}},
        "batch_stats": [{"batch_size": "2", "compute_infer": {"count": "3", "ns": "9"}}],
    }
    assert ModelCounters.of([entry]) == ModelCounters.of([as_grpc])
    after = ModelCounters.of([entry])
    assert after.mean_ms("queue") == pytest.approx(2.0)
    assert after.mean_ms("compute_infer") == 0.0
    added = after - ModelCounters("2", Counter(success=2, images=3, queue=2, queue_ns=4_000_000))
    assert (added.counts["success"], added.counts["images"], added.batches) == (3, 4, {2: 3})
    assert added.mean_ms("queue") == pytest.approx(2.0)
    assert (after - after).batches == {}


def test_gauges_of_several_gpus():
    text = """# HELP nv_gpu_utilization GPU utilization rate
nv_gpu_utilization{gpu_uuid="a"} 0.5
nv_gpu_utilization{gpu_uuid="b"} 1.0
nv_gpu_memory_used_bytes{gpu_uuid="a"} 100.0
nv_gpu_memory_used_bytes{gpu_uuid="b"} 50.0
nv_cpu_utilization 0.25
nv_inference_count{model="x",version="1"} 5
"""
    expected = {"gpu_utilization": 0.75, "gpu_memory_used_bytes": 150.0, "cpu_utilization": 0.25}
    assert gauges(text) == expected
