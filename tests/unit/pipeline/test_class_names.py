"""Class names through a configuration and back, whatever is in them."""

import ast
import json

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pipeline.class_names import class_ids, from_parameters, to_parameters
from pipeline.errors import ParameterError

NAMES = ["card", "it's", 'a "b"', "Größe", "カード", "a,b", "7", "", "back\\slash", "</script>"]


def test_names_come_through_a_configuration_and_back():
    config = model_config_pb2.ModelConfig(name="m")
    for name, text in to_parameters(NAMES).items():
        config.parameters[name].string_value = text
    read = text_format.Parse(text_format.MessageToString(config), model_config_pb2.ModelConfig())
    parameters = {name: value.string_value for name, value in read.parameters.items()}
    assert list(from_parameters(parameters)) == NAMES
    # As ultralytics' Triton client does: ast.literal_eval of the parameter, then AutoBackend takes its entries.
    metadata = ast.literal_eval(parameters["metadata"])
    assert metadata == {"task": "segment", "names": dict(enumerate(NAMES))}


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 100_000, '"card"', json.dumps(["x"] * 70_000)])
def test_anything_else_is_no_names(text):
    assert from_parameters({"class_names": text}) == ()
    assert from_parameters({}) == ()


def test_names_cannot_command_a_terminal():
    assert from_parameters({"class_names": '["\\u001b[2J"]'}) == ("\ufffd[2J",)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(["card"], [0]), (["a,b"], [5]), (["card,カード"], [0, 4]), ([4, "3"], [3, 4]), (["7"], [6]), (["card", 0], [0])],
)
def test_classes_by_name_or_number(wanted, expected):
    assert class_ids(wanted, NAMES) == expected


@pytest.mark.parametrize("wanted", ["dog", "10", "-1", 10, -1, True, "card,dog", "9" * 5000])
def test_unknown_classes_are_refused_with_those_that_are_there(wanted):
    with pytest.raises(ParameterError, match="allowed: card, it's") as caught:
        class_ids([wanted], NAMES)
    assert len(str(caught.value)) < 500
    with pytest.raises(ParameterError, match="the server says no names"):
        class_ids(["dog"], [])
