import json
import os
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.measure import ProcessTree, interleave
from bench.report import PartReport
from bench.server_meter import Reading, Usage, sums_of
from load.triton_statistics import ModelCounters


def test_every_way_runs_once_in_every_round_in_changing_order():
    calls = []
    ways = {name: (lambda name=name: calls.append(name) or len(calls)) for name in "abc"}
    *_, results = interleave(ways, rounds=6)
    assert {name: len(values) for name, values in results.items()} == {"a": 6, "b": 6, "c": 6}
    rounds = [tuple(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert len(rounds) == 7
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 1
    assert min(value for values in results.values() for value in values) > 3  # the warm-up's are dropped


def test_processor_time_of_a_process():
    tree = ProcessTree(os.getpid())
    before = sum(tree.cpu_seconds_by_name().values())
    deadline = time.process_time() + 0.3
    while time.process_time() < deadline:
        pass
    assert 0.2 <= sum(tree.cpu_seconds_by_name().values()) - before <= 1.0


def test_processes_that_end_while_the_tree_is_walked_are_left_out():
    with ThreadPoolExecutor(1) as pool:
        children = pool.submit(lambda: [subprocess.run(["true"], check=True) for _ in range(300)])
        while not children.done():
            ProcessTree(os.getpid())
        children.result()


def test_metrics_of_one_model():
    text = (
        "# HELP cpu_total Processor time\n"
        'cpu_total{model="network_int8",version="1"} 1.5\n'
        'cpu_total{version="2",model="network_int8"} 2\n'
        'cpu_total{model="network_int8_other",version="1"} 100\n'
        'other{model="network_int8"} 7e-1\n'
    )
    assert sums_of(text, "network_int8") == {"cpu_total": 3.5, "other": 0.7}


def counters(requests, queue_ms, compute_ms, **batches):
    counts = {
        "queue": requests,
        "queue_ns": queue_ms * 1e6,
        "compute_infer": requests,
        "compute_infer_ns": compute_ms * 1e6,
    }
    return ModelCounters("1", Counter(counts), Counter({int(size[1:]): count for size, count in batches.items()}))


def test_usage_is_per_image_and_leaves_the_session_out():
    models = {
        "preprocess": counters(100, 1000, 2000),
        "network_fp32": counters(9, 9, 9, n1=3),
        "idle": counters(7, 1, 1),
    }
    later = {**models, "preprocess": counters(120, 1100, 2500), "network_fp32": counters(12, 9, 18, n1=3, n4=5)}
    before = Reading({"tritonserver": 1.0, "network_fp32": 10.0}, 9.0, 100, models)
    after = Reading({"tritonserver": 1.2, "network_fp32": 11.1}, 10.0, 120, later)
    usage = Usage.between(before, after, "network_fp32")
    assert usage.images == 20
    assert usage.session_ms == pytest.approx(50)
    assert usage.other_ms == pytest.approx((0.2 + 1.1 - 1.0) / 20 * 1e3)
    assert usage.by_process_ms == pytest.approx({"tritonserver": 10, "network_fp32": 55})
    assert usage.batches == {4: 5}
    assert usage.steps_ms.keys() == {"preprocess", "network_fp32"}
    assert usage.steps_ms["preprocess"] == pytest.approx({"queue": 5, "compute": 25})
    assert usage.steps_ms["network_fp32"] == pytest.approx({"queue": 0, "compute": 3})
    with pytest.raises(ValueError, match="no image"):
        Usage.between(before, before, "network_fp32")


def test_a_failure_loses_no_round_that_was_measured():
    calls = iter([1, 2, 3, 4, OSError("the server is gone")])  # a warm-up, then rounds of one way

    def way():
        call = next(calls)
        if isinstance(call, OSError):
            raise call
        return call

    kept = []
    with pytest.raises(OSError, match="the server is gone"):
        kept.extend(list(results["a"]) for results in interleave({"a": way}, rounds=6))
    assert kept == [[2], [2, 3], [2, 3, 4]]


def test_a_report_holds_the_latest_figures_and_ratios(tmp_path, capsys):
    report = PartReport("part", "what", tmp_path / "out")
    calls = {"ours": iter([9.0, 1.0, 2.0, 3.0]), "theirs": iter([9.0, 2.0, 4.0, 6.0])}  # a warm-up, then three rounds

    def add(results):
        report.add("case, one", "ours", "ms", results["ours"], worst_mask_iou=0.99)
        report.add("case, one", "theirs", "ms", results["theirs"])
        report.add_ratio("case, one", "theirs / ours", results["theirs"], results["ours"])

    report.measure("case, one", {way: lambda left=left: next(left) for way, left in calls.items()}, 3, add)
    written = json.loads((tmp_path / "out" / "part.json").read_text())
    assert [(figure["rounds"], figure["median"]) for figure in written["figures"]] == [(3, 2), (3, 4)]
    assert [ratio["median"] for ratio in written["ratios"]] == [2.0]
    assert written["machine"]["cores"] >= 1
    assert "theirs / ours" in capsys.readouterr().out
    report.draw()
    assert (tmp_path / "out" / "part.png").read_bytes()[:4] == b"\x89PNG"
