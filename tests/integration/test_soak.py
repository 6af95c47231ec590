"""Two minutes of mixed traffic with promotions: every answer right, nothing fails, nothing grows."""

from __future__ import annotations

import pytest

from tests.chaos import soak
from tests.chaos.soak_resources import SERIES, flatness
from tests.chaos.soak_traffic import Outcome

pytestmark = pytest.mark.server


def test_two_minutes_of_mixed_traffic(patient_repository, tmp_path):
    result = soak.run(patient_repository, tmp_path, minutes=2.0, seed=1)
    assert result["faults"] == []
    assert result["wrong_answers"] == 0
    assert result["switches"] >= 4
    assert result["bad_inputs_refused"] > 10
    assert len(result["requests_by_client"]) == 5
    assert (tmp_path / "soak.json").is_file()
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


SWITCHES = [
    {"version": 1, "from": 0.0, "to": 0.0, "at_s": 0.0},
    {"version": 2, "from": 10.0, "to": 12.0, "at_s": 10.0},
]
EXPECTED = {("int8", 1): ["a"], ("fp16", 1): ["b"], ("fp16", 2): ["c"]}


def outcome(precision, started, answer, **more):
    answers = () if answer is None else (answer,)
    cases = () if more.get("bad") else (0,)
    return Outcome("grpc", precision, started, started + 1, cases, answers, **more)


def summary(*outcomes):
    meant = outcome("int8", 1.0, None, bad="no image", error="RequestError", refusal_was_meant=True)
    both = [outcome("fp16", 1.0, "b"), outcome("fp16", 13.0, "c")]
    return soak._summary([meant, *both, *outcomes], EXPECTED, SWITCHES, 20.0)


def test_right_answers_are_no_fault():
    # While versions are being switched, either may answer.
    found = summary(outcome("int8", 1.0, "a"), outcome("fp16", 9.5, "b"), outcome("fp16", 10.5, "c"))
    assert found["faults"] == []
    assert found["wrong_answers"] == 0
    assert found["answers_told_apart_by_version"] == {"fp16/1": 2, "fp16/2": 2, "int8/1": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        outcome("int8", 1.0, "x"),
        outcome("fp16", 13.0, "b"),  # the version before
        outcome("fp16", 1.0, "c"),  # the version after
        outcome("int8", 1.0, None, error="ServerError: failed"),
        outcome("int8", 1.0, None, bad="no image"),  # answered
        outcome("int8", 1.0, None, bad="no image", error="ServerError: failed"),
    ],
)
def test_what_is_wrong_is_noticed(wrong):
    assert len(summary(wrong)["faults"]) == 1


def samples(last, step_s):
    return [{"at_s": number * step_s, **dict.fromkeys(SERIES, 100.0 if number < 30 else last)} for number in range(40)]


@pytest.mark.parametrize(("step_s", "fine", "rising"), [(30.0, 104.0, 106.0), (3.0, 115.0, 170.0)])
def test_what_grows_is_noticed(step_s, fine, rising):
    assert flatness(samples(fine, step_s))["faults"] == []
    assert len(flatness(samples(rising, step_s))["faults"]) == len(SERIES)
    assert len(flatness(samples(100.0, step_s)[:5])["faults"]) == len(SERIES)


def test_two_processes_may_get_their_pools_during_a_short_run():
    faults = flatness(samples(150.0, 3.0))["faults"]
    assert {fault.split()[0] for fault in faults} == {name for name in SERIES if not name.endswith("_mib")}
