import pytest

from load.__main__ import main
from load.conditions import Condition

MEASURED = {
    ("fp32", "grpc", "throughput"): 10.0,
    ("int8", "grpc", "throughput"): 13.0,
    ("fp32", "http", "throughput"): 10.0,
    ("int8", "http", "throughput"): 11.0,
    ("int8", "grpc", "error_rate"): 0.0,
    ("fp32", "grpc", "error_rate"): float("nan"),
}


def decide(text, protocols=("grpc", "http")):
    return Condition.parse(text).decide(lambda *name: MEASURED.get(name), protocols)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("int8.grpc.throughput < 1.2 * fp32.grpc.throughput", False),
        ("int8.http.throughput < 1.2 * fp32.http.throughput", True),
        ("int8.grpc.throughput / fp32.grpc.throughput >= 1.3", True),
        ("not int8.grpc.throughput > 10 or int8.grpc.error_rate > 0.01", False),
        ("int8.grpc.throughput > 12 and -int8.grpc.throughput + 1 < 0", True),
        ("10 < int8.grpc.throughput < 13", False),
        ("10 < int8.grpc.throughput <= 13 != 12", True),
    ],
)
def test_decides(text, holds):
    assert decide(text).holds is holds


def test_a_condition_without_protocol_holds_if_it_holds_for_one():
    verdict = decide("int8.throughput < 1.2 * fp32.throughput")
    assert verdict.holds
    assert "int8.http.throughput = 11" in verdict.detail
    assert not decide("int8.throughput < 1.2 * fp32.throughput", ("grpc",)).holds


@pytest.mark.parametrize("text", ["fp16.throughput < 1", "fp32.error_rate > 0", "int8.mask_iou < 0.9"])
def test_what_was_not_measured_fails(text):
    verdict = decide(text, ("grpc",))
    assert verdict.holds
    assert "was not measured" in verdict.detail


def test_division_by_zero_fails():
    assert "division by zero" in decide("1 / int8.error_rate > 2", ("grpc",)).detail


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 < 2",
        "int8.throughput",
        "int8 < 2",
        "int8.speed < 2",
        "int4.throughput < 2",
        "int8.ftp.throughput < 2",
        "int8.grpc.x.throughput < 2",
        "int8.throughput.real < 2",
        "int8.__class__ < 2",
        "__import__('os').system('true') < int8.throughput",
        "int8.throughput ** 2 < 2",
        "'a' < int8.throughput",
        "int8.throughput < [1][0]",
        "int8.throughput < True",
        "int8.throughput in fp32.throughput",
        "int8.throughput if 1 else 2",
        "(x := int8.throughput) < 2",
        "int8.throughput <",
        "(" * 300,
        "1+" * 300 + "int8.throughput < 2",
        f"int8.throughput < {'9' * 400}",
        "int8.throughput < 1e400",
        "int8.throughput / 0 < 2",
    ],
)
def test_refuses_everything_else(text):
    with pytest.raises(ValueError, match="allowed: numbers such as"):
        Condition.parse(text)


def test_the_command_refuses_a_wrong_condition_before_anything_starts(capsys):
    assert main(["compare", "--fail-if", "int8.speed < 2"]) == 2
    assert "'int8.speed' is unknown; allowed: numbers such as 0.5" in capsys.readouterr().err
