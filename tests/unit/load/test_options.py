import argparse

import pytest

from load.compare import Schedule, loads_of
from load.options import UserOptions, add_user_arguments
from load.results import Load


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_user_arguments(parser)
    return UserOptions.of(parser.parse_args(arguments))


def test_defaults():
    assert parsed() == UserOptions(parameters={})


def test_everything():
    line = "--megapixels 0.3,2 --batch-sizes 1,4 --think-time-s 0.5,2 --request-timeout-s 5 --tolerance 0.5 "
    line += "--confidence 0.4 --iou 0.5 --max-detections 7 --mask-format polygon --classes 0,2"
    options = parsed(*line.split())
    assert options.megapixels == (0.3, 2.0)
    assert options.batch_sizes == (1, 4)
    assert options.think_time_s == (0.5, 2.0)
    assert (options.timeout_s, options.tolerance) == (5.0, 0.5)
    expected = {"confidence": 0.4, "iou": 0.5, "max_detections": 7, "mask_format": "polygon", "classes": "0,2"}
    assert options.parameters == expected


@pytest.mark.parametrize(
    "arguments",
    [
        "--batch-sizes 0",
        "--batch-sizes 9",
        "--batch-sizes x",
        "--think-time-s 2,1",
        "--think-time-s 1,2,3",
        "--request-timeout-s 0",
        "--tolerance -1",
        "--megapixels 0",
        "--confidence 1.5",
        "--confidence 0.1,0.2",
        "--max-detections 0",
    ],
)
def test_what_is_out_of_range_is_refused(arguments):
    with pytest.raises(ValueError, match="allowed"):
        parsed(*arguments.split())


def test_loads():
    assert loads_of((1, 2, 1), (5.0,)) == (Load(1), Load(2), Load(1, 5.0))
    for users, rates in (((0,), ()), ((), (0.0,)), ((), (float("inf"),)), ((), ())):
        with pytest.raises(ValueError, match=r"--users|--rate"):
            loads_of(users, rates)


def test_precisions_are_interleaved_and_none_is_always_first():
    schedule = Schedule(("fp32", "fp16", "int8"), ("grpc", "http"), (Load(1), Load(2)), 3, 1.0, 0.0, UserOptions())
    steps = list(schedule.steps())
    assert len(steps) == len(set(steps)) == 3 * 2 * 2 * 3
    for start in range(0, len(steps), 3):
        group = steps[start : start + 3]
        assert len({step[:3] for step in group}) == 1
        assert {step[3] for step in group} == set(schedule.precisions)
    first = [steps[start][3] for start in (0, 12, 24)]
    assert first == ["fp32", "fp16", "int8"]
