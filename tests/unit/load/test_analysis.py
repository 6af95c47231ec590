import dataclasses
import json

import numpy as np
import pytest

from load.analysis import analyze
from load.recommendation import recommend


def test_curves_knee_and_best(steps, versions):
    analysis = analyze(steps, versions, None)
    fp32 = analysis.of("fp32", "grpc")
    assert [point.load.users for point in fp32.points] == [1, 2, 8]
    assert fp32.points[1].throughput.median == pytest.approx(18.18)
    assert (fp32.points[1].throughput.low, fp32.points[1].throughput.high) == (18.0, pytest.approx(18.36))
    assert fp32.knee.load.users == 2
    assert fp32.best.load.users == 8
    assert fp32.is_limited_by_loads


def test_a_budget_chooses_the_highest_load_within_it(steps, versions):
    analysis = analyze(steps, versions, 300.0)
    assert analysis.of("fp32", "grpc").best.load.users == 2
    assert not analysis.of("fp32", "grpc").is_limited_by_loads
    assert analysis.of("int8", "grpc").best.load.users == 8
    assert analyze(steps, versions, 50.0).of("int8", "grpc").best is None


def test_ratios_are_taken_round_by_round(steps, versions):
    (ratio,) = analyze(steps, versions, None).ratios()
    assert (ratio.precision, ratio.base) == ("int8", "fp32")
    assert ratio.throughput.low == pytest.approx(1.5)
    assert ratio.throughput.high == pytest.approx(1.5)
    assert ratio.doubt == ""


def test_where_the_time_goes_adds_up_to_the_mean_request(steps, versions):
    point = analyze(steps, versions, None).of("fp32", "grpc").points[0]
    shares = point.shares()
    assert sum(share.milliseconds for share in shares) == pytest.approx(point.mean_ms)
    found = {(share.step, share.phase): share.milliseconds for share in shares}
    assert found["network", "queue"] == pytest.approx(5)
    assert found["network", "compute"] == pytest.approx(13)
    assert point.batches() == {1: 300}


def test_values_for_conditions(steps, versions):
    lookup = analyze(steps, versions, 300.0).lookup
    assert lookup("fp32", "grpc", "throughput") == pytest.approx(18.18)
    assert lookup("fp32", "grpc", "p95_ms") == pytest.approx(111)
    assert lookup("int8", "grpc", "mask_iou") == 0.97
    assert lookup("int8", "grpc", "error_rate") == 0.0
    assert lookup("int8", "grpc", "requests") == 900
    assert lookup("int8", "http", "throughput") is None
    assert lookup("fp16", "grpc", "mask_iou") is None


def test_recommends_with_reason(steps, versions):
    recommendation = recommend(analyze(steps, versions, 300.0))
    assert recommendation.precision == "int8"
    assert "1.58x" in recommendation.sentence
    assert "p95 <= 300 ms" in recommendation.sentence
    assert "mask IoU 0.97" in recommendation.sentence


def test_says_that_accuracy_is_not_verified(steps, versions):
    versions["int8"] = dataclasses.replace(versions["int8"], passed=None, mask_iou=None, note="not verified")
    assert "its accuracy is not verified" in recommend(analyze(steps, versions, None)).sentence


def test_a_version_that_failed_its_gate_is_not_recommended(steps, versions):
    versions["int8"] = dataclasses.replace(versions["int8"], passed=False)
    assert recommend(analyze(steps, versions, None)).precision == "fp32"


def test_a_difference_inside_the_noise_is_reported(step, versions):
    factors = (0.9, 1.1, 1.05)
    noisy = [step("int8", 1, number, 10.0 * factor, 100) for number, factor in enumerate(factors)]
    noisy += [step("fp32", 1, number, 10.0, 100) for number in range(3)]
    recommendation = recommend(analyze(noisy, versions, None))
    assert recommendation.precision == "fp32"
    assert "inside the noise" in recommendation.sentence


def test_one_round_recommends_nothing(steps, versions):
    recommendation = recommend(analyze([one for one in steps if one.round == 0], versions, None))
    assert recommendation.precision is None
    assert "1 round: too few to judge; run --rounds 3" in recommendation.sentence


def test_no_load_within_the_budget(steps, versions):
    recommendation = recommend(analyze(steps, versions, 50.0))
    assert recommendation.precision is None
    assert "keeps p95 within 50 ms; the least was 67 ms (int8, 1 user)" in recommendation.sentence


def test_broken_steps_do_not_count_as_slow(steps, versions):
    broken = dataclasses.replace(steps[0], throughput=0.0, latencies_ms=np.zeros(0), error="the server went away")
    point = analyze([broken, *steps[6:]], versions, None).of("fp32", "grpc").points[0]
    assert point.throughput.rounds == 2
    nothing = analyze([broken], versions, None)
    assert nothing.of("fp32", "grpc").best is None
    assert recommend(nothing).precision is None


def test_a_precision_that_answered_only_after_its_window_is_not_compared(step, versions):
    late = [step("fp32", 1, number, 0.0, 9000) for number in range(3)]
    fast = [step("int8", 1, number, 10.0, 100) for number in range(3)]
    recommendation = recommend(analyze([*late, *fast], versions, None))
    assert recommendation.sentence.startswith("int8: nothing else could be compared")


def test_json_has_no_nan(steps, versions):
    broken = dataclasses.replace(steps[0], throughput=0.0, latencies_ms=np.zeros(0), error="the server went away")
    text = json.dumps([analyze([broken], versions, None).to_json(), broken.to_json()], allow_nan=False)
    assert "the server went away" in text
