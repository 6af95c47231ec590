import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.measure import ProcessTree, Summary, interleave, ratio
from bench.report import Comparison
from bench.server_meter import Reading, StepTimes, Usage, parse_metrics


def test_summary_is_median_and_quartiles():
    summary = Summary.of([5, 1, 2, 4, 3])
    assert (summary.low, summary.median, summary.high, summary.count) == (2, 3, 4, 5)
    assert Summary.of([7]) == Summary(7, 7, 7, 1)
    with pytest.raises(ValueError, match="nothing was measured"):
        Summary.of([])


def test_ratios_are_taken_round_by_round():
    # A machine that was twice as slow in the second round must not show in the ratio.
    assert ratio([10, 20], [5, 10]) == Summary(2, 2, 2, 2)
    with pytest.raises(ValueError, match="zip"):
        ratio([1, 2], [1])


def test_every_way_runs_once_in_every_round_in_changing_order():
    calls = []
    ways = {name: (lambda name=name: calls.append(name) or len(calls)) for name in "abc"}
    results = interleave(ways, rounds=6, warm_up=1)
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
    assert parse_metrics(text, "network_int8") == {"cpu_total": 3.5, "other": 0.7}


def test_usage_is_per_image_and_leaves_the_session_out():
    steps = {"preprocess": StepTimes(100, 1.0, 2.0), "idle": StepTimes(7, 1.0, 1.0)}
    later = {**steps, "preprocess": StepTimes(120, 1.1, 2.5), "postprocess": StepTimes(20, 0.0, 0.02)}
    before = Reading({"tritonserver": 1.0, "network_fp32": 10.0}, 9.0, 100, {1: 3}, steps)
    after = Reading({"tritonserver": 1.2, "network_fp32": 11.1}, 10.0, 120, {1: 3, 4: 5}, later)
    usage = Usage.between(before, after)
    assert usage.images == 20
    assert usage.session_ms == pytest.approx(50)
    assert usage.other_ms == pytest.approx((0.2 + 1.1 - 1.0) / 20 * 1e3)
    assert usage.by_process_ms == pytest.approx({"tritonserver": 10, "network_fp32": 55})
    assert usage.batches == {4: 5}
    assert usage.steps_ms.keys() == {"preprocess", "postprocess"}
    assert usage.steps_ms["preprocess"] == pytest.approx({"queue": 5, "compute": 25})
    assert usage.steps_ms["postprocess"] == pytest.approx({"queue": 0, "compute": 1})
    with pytest.raises(ValueError, match="no image"):
        Usage.between(before, before)


def test_a_failure_loses_no_round_that_was_measured():
    calls = iter([1, 2, 3, 4, OSError("the server is gone")])  # a warm-up, then rounds of one way

    def way():
        call = next(calls)
        if isinstance(call, OSError):
            raise call
        return call

    kept = []
    with pytest.raises(OSError, match="the server is gone"):
        interleave({"a": way}, rounds=6, after_round=lambda results: kept.append(list(results["a"])))
    assert kept == [[2], [2, 3], [2, 3, 4]]


def test_a_case_is_kept_anew_with_more_rounds(tmp_path):
    comparison = Comparison("part", "what")
    for rounds in ([1.0], [1.0, 3.0]):
        comparison.forget("case")
        comparison.add("case", "way", "ms", Summary.of(rounds))
        comparison.add_ratio("case", "a / b", Summary.of(rounds))
        comparison.write_data(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "part.json").read_text())
    assert [figure["rounds"] for figure in written["figures"]] == [2]
    assert [ratio["median"] for ratio in written["ratios"]] == [2.0]
