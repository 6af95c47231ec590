import re
from pathlib import Path

import pytest

from pipeline.contract import MASK_FORMATS
from pipeline.errors import ParameterError
from pipeline.parameters import HELP, RequestLimits, RequestParameters


def test_the_document_has_the_parameters_their_defaults_and_the_mask_formats():
    text = (Path(__file__).parents[3] / "docs" / "contract.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", text.partition("## Request parameters")[2], re.MULTILINE))
    defaults = {name: "all" if value is None else str(value) for name, value in vars(RequestParameters()).items()}
    assert {name: rows.get(name) for name in defaults} == defaults
    assert defaults.keys() == HELP.keys()
    assert set(re.findall(r"`(\w+)`", text.partition("| `mask_format` | `rle` |")[2].partition("(")[0])) == {
        *MASK_FORMATS
    }


def test_all_set():
    values = {"confidence": 1, "iou": 0.0, "max_detections": 1000, "mask_format": "png", "classes": " 2, 0"}
    assert RequestParameters.parse(values) == RequestParameters(1.0, 0.0, 1000, "png", frozenset({0, 2}))
    assert RequestParameters.parse({"classes": 7}).classes == frozenset({7})


def test_numbers_as_text():
    values = {"confidence": "0.5", "iou": "1e-1", "max_detections": "100"}
    assert RequestParameters.parse(values) == RequestParameters(0.5, 0.1, 100)
    assert RequestParameters.parse({"confidence": "1", "iou": "0"}) == RequestParameters(1.0, 0.0)


def test_what_triton_adds_is_ignored():
    assert RequestParameters.parse({"triton_enable_empty_final_response": False, "timeout": 3}) == RequestParameters()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("confidence", 2, "0 to 1"),
        ("confidence", "high", "0 to 1"),
        ("confidence", True, "0 to 1"),
        ("confidence", float("nan"), "0 to 1"),
        ("confidence", "nan", "0 to 1"),
        ("confidence", "inf", "0 to 1"),
        ("confidence", "true", "0 to 1"),
        ("confidence", "1.5", "0 to 1"),
        ("confidence", "", "0 to 1"),
        ("confidence", " 0.5", "0 to 1"),
        ("confidence", "1_0", "0 to 1"),
        ("confidence", "\u0661", "0 to 1"),
        ("confidence", "1e999", "0 to 1"),
        ("confidence", "9" * 100, "0 to 1"),
        ("iou", -0.1, "0 to 1"),
        ("max_detections", "0", "1 to 1000"),
        ("max_detections", "2.5", "1 to 1000"),
        ("max_detections", "-3", "1 to 1000"),
        ("max_detections", "9" * 5000, "1 to 1000"),
        ("max_detections", 0, "1 to 1000"),
        ("max_detections", 1001, "1 to 1000"),
        ("max_detections", 2.5, "1 to 1000"),
        ("mask_format", "bitmap", "rle, polygon, png, none"),
        ("mask_format", 3, "rle, polygon, png, none"),
        ("classes", "a,b", "such as '0,2'"),
        ("classes", "", "such as '0,2'"),
        ("classes", "-1", "such as '0,2'"),
        ("classes", "9" * 400, "such as '0,2'"),
        ("classes", 1.5, "such as '0,2'"),
    ],
)
def test_bad_values_are_named(name, value, allowed):
    with pytest.raises(ParameterError) as caught:
        RequestParameters.parse({name: value})
    assert repr(name) in str(caught.value)
    assert repr(value) in str(caught.value)
    assert allowed in str(caught.value)


def test_unknown_names_are_refused():
    with pytest.raises(ParameterError, match=r"'confidense'.*allowed: classes, confidence, iou"):
        RequestParameters.parse({"confidense": 0.5})


def test_limits_of_the_network_bound_what_was_asked():
    limits = RequestLimits.read({"least_confidence": "0.3", "most_iou": "0.5", "most_detections": "40", "other": "x"})
    asked = RequestParameters(confidence=0.1, iou=0.9, max_detections=100)
    assert limits.applied(asked) == RequestParameters(confidence=0.3, iou=0.5, max_detections=40)
    within = RequestParameters(confidence=0.4, iou=0.2, max_detections=30)
    assert limits.applied(within) == within
    assert RequestLimits.read({"least_iou": "1", "most_iou": "1"}).applied(asked).iou == 1
    assert RequestLimits.read({}).applied(asked) is asked


@pytest.mark.parametrize("text", ["x", "", "nan", "-1", "1.5"])
def test_limits_that_are_no_limits_are_refused(text):
    with pytest.raises(ValueError, match="'least_iou'"):
        RequestLimits.read({"least_iou": text})
