"""One HTTP body to one gRPC request, and back."""

from __future__ import annotations

import json
import struct
import time

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from gateway.errors import Refusal
from gateway.json_text import depth, parse_object
from gateway.kserve import parse_infer, render_infer
from gateway.limits import Limits


def element(data):
    return struct.pack("<I", len(data)) + data


def tensor(**changes):
    entry = {"name": "image", "datatype": "BYTES", "shape": [1, 1], **changes}
    return {name: value for name, value in entry.items() if value is not None}


def binary(size, **changes):
    return tensor(parameters={"binary_data_size": size}, **changes)


def parse(request, data=b""):
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    return parse_infer("m", "", text + data, str(len(text)))


def sent(call):
    return service_pb2.ModelInferRequest.FromString(call.serialized())


def test_binary_data_and_parameters():
    image = element(b"\xff\xd8 jpeg" * 100)
    request = {
        "id": "seven",
        "parameters": {"confidence": 0.5, "max_detections": 3, "mask_format": "png", "keep": True},
        "inputs": [binary(len(image))],
        "outputs": [{"name": "masks", "parameters": {"binary_data": True}}, {"name": "boxes"}],
    }
    call = parse(request, image)
    found = sent(call)
    assert (found.model_name, found.id, list(found.raw_input_contents)) == ("m", "seven", [image])
    assert (found.inputs[0].name, found.inputs[0].datatype, list(found.inputs[0].shape)) == ("image", "BYTES", [1, 1])
    assert found.parameters["confidence"].double_param == 0.5
    assert found.parameters["max_detections"].int64_param == 3
    assert found.parameters["mask_format"].string_param == "png"
    assert found.parameters["keep"].bool_param is True
    assert [output.name for output in found.outputs] == ["masks", "boxes"]
    assert (call.binary, call.binary_by_default) == ({"masks": True}, False)


def test_several_inputs_in_both_forms():
    numbers = np.arange(6, dtype=np.float32)
    inputs = [
        tensor(name="text", data=["ä", ["b"]], shape=[2]),
        binary(24, name="numbers", datatype="FP32", shape=[2, 3]),
        tensor(name="small", datatype="INT8", shape=[2], data=[-128, 127]),
        tensor(name="flags", datatype="BOOL", shape=[2], data=[True, False]),
        tensor(name="parts", datatype="FP64", shape=[1, 2], data=[[1, 0.5]]),
    ]
    found = sent(parse({"inputs": inputs}, numbers.tobytes()))
    assert list(found.raw_input_contents) == [
        element("ä".encode()) + element(b"b"),
        numbers.tobytes(),
        b"\x80\x7f",
        b"\x01\x00",
        np.array([1, 0.5]).tobytes(),
    ]


def test_json_without_the_header():
    body = json.dumps({"inputs": [tensor(data=["x"])]}).encode()
    assert list(sent(parse_infer("m", "2", body)).raw_input_contents) == [element(b"x")]


IMAGE = element(b"image")

FAULTS = {
    "no object": (b"[1]", b"", "JSON list; allowed: an object"),
    "no JSON": (b"{", b"", "not JSON"),
    "no UTF-8": (b'{"inputs": "\xff"}', b"", "not JSON"),
    "UTF-16": ("{}".encode("utf-16"), b"", "not JSON"),
    "half a surrogate pair": (b'{"id": "\\ud800", "inputs": []}', b"", "no Unicode"),
    "one name twice": (b'{"inputs": [], "inputs": []}', b"", "'inputs' twice"),
    "NaN": (b'{"inputs": [], "parameters": {"iou": NaN}}', b"", "NaN, which JSON cannot hold"),
    "infinite": (b'{"inputs": [], "parameters": {"iou": 1e999}}', b"", "'iou' is infinite"),
    "too many digits": (b'{"inputs": [], "id": ' + b"9" * 30_000 + b"}", b"", "30000 digits"),
    "no inputs": ({}, b"", "'inputs' is None"),
    "inputs a number": ({"inputs": 4}, b"", "'inputs' is 4"),
    "too many inputs": ({"inputs": [tensor(data=["x"])] * 33}, b"", "33 entries; allowed: 32"),
    "too many outputs": ({"inputs": [], "outputs": [{"name": "a"}] * 33}, b"", "33 entries"),
    "too many parameters": ({"inputs": [], "parameters": {str(i): 1 for i in range(65)}}, b"", "at most 64"),
    "long parameter": ({"inputs": [], "parameters": {"a": "x" * 70_000}}, b"", "70000 letters"),
    "list as a parameter": ({"inputs": [], "parameters": {"a": [1]}}, b"", r"'a' is \[1\]; allowed: a text, a number"),
    "128 bits": ({"inputs": [], "parameters": {"a": 2**63}}, b"", "64 bits"),
    "the server's parameter": ({"inputs": [], "parameters": {"triton_x": 1}}, b"", "'triton_x'"),
    "binary_data_output": ({"inputs": [], "parameters": {"binary_data_output": 1}}, b"", "allowed: true or false"),
    "id a number": ({"inputs": [], "id": 7}, b"", "id is 7"),
    "no name": ({"inputs": [tensor(name="", data=["x"])]}, b"", "name of an input is ''"),
    "NUL in a name": ({"inputs": [tensor(name="a\0", data=["x"])]}, b"", "without NUL"),
    "long name": ({"inputs": [tensor(name="a" * 2000, data=["x"])]}, b"", "1 to 1024 letters"),
    "datatype": (
        {"inputs": [tensor(datatype="XX", data=["x"])]},
        b"",
        "datatype of input 'image' is 'XX'; allowed: BOOL",
    ),
    "datatype a list": ({"inputs": [tensor(datatype=["BYTES"], data=["x"])]}, b"", "datatype"),
    "negative side": ({"inputs": [tensor(shape=[-1, 1], data=["x"])]}, b"", "shape of input 'image'"),
    "side true": ({"inputs": [tensor(shape=[True], data=["x"])]}, b"", "shape"),
    "17 sides": ({"inputs": [tensor(shape=[1] * 17, data=["x"])]}, b"", "at most 16"),
    "huge shape": ({"inputs": [binary(9, shape=[2**30, 2**30])]}, IMAGE, "elements by its shape; allowed: 4096"),
    "neither": ({"inputs": [tensor()]}, b"", "either 'data' or 'binary_data_size'"),
    "both": ({"inputs": [binary(9, data=["x"])]}, IMAGE, "either 'data' or 'binary_data_size'"),
    "shared memory": ({"inputs": [tensor(parameters={"shared_memory_region": "r"})]}, b"", "not offered over HTTP"),
    "size too large": ({"inputs": [binary(10)]}, IMAGE, "binary_data_size of input 'image' is 10; allowed: 0 to 9"),
    "size too small": ({"inputs": [binary(8)]}, IMAGE, "is no list of 1 elements"),
    "size negative": ({"inputs": [binary(-1)]}, IMAGE, "binary_data_size"),
    "size a text": ({"inputs": [binary("9")]}, IMAGE, "binary_data_size"),
    "data left over": ({"inputs": [binary(9)]}, IMAGE + b"x", "1 bytes of binary data are left over"),
    "length too long": ({"inputs": [binary(9)]}, struct.pack("<I", 2**32 - 1) + b"image", "is no list of 1 elements"),
    "fewer elements": ({"inputs": [binary(9, shape=[2, 1])]}, IMAGE, "has 1 elements; its shape needs 2"),
    "more elements": ({"inputs": [binary(18)]}, IMAGE * 2, "is no list of 1 elements"),
    "wrong bytes": ({"inputs": [binary(9, datatype="FP32")]}, IMAGE, "has 9 bytes; its shape and datatype need 4"),
    "data of another type": ({"inputs": [tensor(data=[1])]}, b"", r"data of input 'image' is \[1\]; allowed: texts"),
    "number out of range": ({"inputs": [tensor(datatype="UINT8", data=[256])]}, b"", "allowed: values of UINT8"),
    "true for a number": ({"inputs": [tensor(datatype="FP32", data=[True])]}, b"", "allowed: values of FP32"),
    "FP16 as JSON": ({"inputs": [tensor(datatype="FP16", data=[1.0])]}, b"", "send it as binary data"),
    "an object as data": ({"inputs": [tensor(data=[{}])]}, b"", "allowed: texts"),
}


@pytest.mark.parametrize(("request_", "data", "message"), FAULTS.values(), ids=FAULTS)
def test_what_is_at_fault_is_named(request_, data, message):
    with pytest.raises(Refusal, match=message) as caught:
        parse(request_, data)
    assert caught.value.status == 400


@pytest.mark.parametrize("length", ["0", "-1", "x", "", "1e1", "99", "²", str(2**64), "9" * 10_000])
def test_the_length_of_the_json_is_checked(length):
    with pytest.raises(Refusal, match=r"Inference-Header-Content-Length is .*; allowed: bytes of the JSON, 1 to 14"):
        parse_infer("m", "", b'{"inputs": []}', length)


@pytest.mark.parametrize("bracket", [b"[", b'{"a":', b"[{", b'["\\"[",'], ids=["arrays", "objects", "both", "strings"])
@pytest.mark.parametrize("count", [10_000, 130_000])
def test_deep_json_is_refused_quickly(bracket, count):
    started = time.process_time()
    with pytest.raises(Refusal, match="levels deep; allowed: 32"):
        parse_object(bracket * count, Limits())
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "text",
    [b"[]" * 500_000, b'"' * 1_000_000, b'\\"' * 500_000, b'"' + b'\\"' * 499_999, b"{}," * 300_000, b"\\" * 10**6],
)
def test_wide_json_costs_little(text):
    started = time.process_time()
    with pytest.raises(Refusal):
        parse_object(text, Limits())
    assert time.process_time() - started < 1


def test_brackets_in_texts_do_not_count():
    assert depth(json.dumps({"a": "[[[" * 50, "b\\": '"[{"', "c": [["\\"]]}).encode()) == 3


def test_json_that_is_too_long_says_what_to_do():
    with pytest.raises(Refusal, match=r"1048577 bytes; allowed: 1048576\. Send tensors as binary data"):
        parse_object(b" " * ((1 << 20) + 1), Limits())


def response(*outputs, **fields):
    answer = service_pb2.ModelInferResponse(model_name="m", model_version="1", **fields)
    for name, datatype, shape, raw in outputs:
        answer.outputs.add(name=name, datatype=datatype, shape=shape)
        answer.raw_output_contents.append(raw)
    return answer


BOXES = ("boxes", "FP32", [1, 2], np.array([0.5, 2], np.float32).tobytes())
MASKS = ("masks", "BYTES", [2], element(b"rle") + element(b""))


def test_an_answer_as_json():
    answer = response(BOXES, MASKS, ("n", "INT32", [1], b"\xff\xff\xff\xff"), id="seven")
    answer.parameters["sequence_id"].int64_param = 0
    body = render_infer(answer, parse({"inputs": []}))
    assert body.json_bytes is None
    assert json.loads(body.body) == {
        "model_name": "m",
        "model_version": "1",
        "id": "seven",
        "parameters": {"sequence_id": 0},
        "outputs": [
            {"name": "boxes", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 2.0]},
            {"name": "masks", "datatype": "BYTES", "shape": [2], "data": ["rle", ""]},
            {"name": "n", "datatype": "INT32", "shape": [1], "data": [-1]},
        ],
    }


def test_an_answer_as_binary_data():
    parameters = {"binary_data_output": True}
    call = parse(
        {"inputs": [], "parameters": parameters, "outputs": [{"name": "n", "parameters": {"binary_data": False}}]}
    )
    answer = render_infer(response(BOXES, ("n", "INT32", [1], bytes(4)), MASKS), call)
    head = json.loads(answer.body[: answer.json_bytes])
    assert [output.get("parameters") for output in head["outputs"]] == [
        {"binary_data_size": 8},
        None,
        {"binary_data_size": 11},
    ]
    assert head["outputs"][1]["data"] == [0]
    assert answer.body[answer.json_bytes :] == BOXES[3] + MASKS[3]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (("masks", "BYTES", [1], element(b"\x89PNG")), "'masks' is no UTF-8.*ask for it as binary data"),
        (("x", "FP16", [1], bytes(2)), "'x' is FP16, which JSON cannot hold"),
        (("x", "UINT8", [2**20], bytes(2**20)), "1048576 elements; allowed as JSON: 262144"),
        (("x", "FP32", [1], np.array([np.nan], np.float32).tobytes()), "NaN or infinite"),
    ],
)
def test_what_json_cannot_hold_is_refused(output, message):
    with pytest.raises(Refusal, match=message):
        render_infer(response(output), parse({"inputs": []}))
