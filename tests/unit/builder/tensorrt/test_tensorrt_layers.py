"""The inspector's JSON follows NVIDIA's pages on it, for TensorRT 10 and 11.

https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html
"""

from __future__ import annotations

import json

from builder.tensorrt.layers import ENGINE_INSPECTOR, count_engine

NAMES = frozenset({"/a/Conv", "/b/Conv", "/c/Conv"})


def ten(name, source, target, metadata=""):
    return {
        "Name": name,
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Dimensions": [1, 16, 8, 8], "Format/Datatype": source}],
        "Outputs": [{"Name": "y", "Dimensions": [1, 16, 8, 8], "Format/Datatype": target}],
        "Metadata": metadata,
    }


def test_tensorrt_10():
    int8 = "Thirty-two wide channel vectorized row major Int8 format"
    fp16 = "Channel major FP16 format where channel % 8 == 0"
    layers = [
        ten("/a.weight + /a/Conv + PWN(PWN(/a/Sigmoid), /a/Mul)", int8, fp16),
        ten("fused", int8, int8, "[ONNX Layer: /b/Conv]\x1e[ONNX Layer: /b/Relu]"),
        ten("/c/Conv", "Row major linear FP32", "Row major linear FP32"),
    ]
    counts = count_engine(json.dumps({"Layers": layers, "Bindings": ["images"]}), NAMES)
    assert counts is not None
    assert counts.source == ENGINE_INSPECTOR
    assert counts.convolutions == {"int8": 2, "fp32": 1}
    assert counts.layers == {"fp16": 1, "int8": 1, "fp32": 1}


def test_tensorrt_11():
    def layer(name, source, target):
        return {
            "Name": name,
            "LayerType": "gemm",
            "Inputs": [{"Name": "x", "DataType": source, "Format": "NHWC"}],
            "Outputs": [{"Name": "y", "DataType": target, "Format": "NHWC"}],
            "Metadata": f"[ONNX Layer: {name}]",
        }

    layers = [layer("/a/Conv", "Int8", "Half"), layer("/b/Conv", "Half", "Half"), layer("/c/Conv", "Float", "Float")]
    counts = count_engine(json.dumps({"Layers": layers, "I/O Tensors": []}), NAMES)
    assert counts is not None
    assert counts.convolutions == {"int8": 1, "fp16": 1, "fp32": 1}
    assert counts.layers == {"fp16": 2, "fp32": 1}


def test_uint8_is_not_int8():
    counts = count_engine(
        json.dumps({"Layers": [ten("/a/Conv", "Row major UInt8 format", "FP16")]}), frozenset({"/a/Conv"})
    )
    assert counts is not None
    assert counts.convolutions == {"uint8": 1}


def test_an_engine_that_does_not_say_is_not_believed():
    whole = ten(
        "{ForeignNode[ends/Cast...ends/Gather]}", "UInt8", "FP32", "[ONNX Layer: /a/Conv]\x1e[ONNX Layer: /b/Conv]"
    )
    assert count_engine(json.dumps({"Layers": [whole]}), NAMES) is None
    assert count_engine(json.dumps({"Layers": ["/a/Conv", "/b/Conv", "/c/Conv"]}), NAMES) is None
    assert count_engine(json.dumps({"Layers": [ten("/a/Conv", "Int8", "Int8")]}), NAMES) is None
    assert count_engine("not json", NAMES) is None
