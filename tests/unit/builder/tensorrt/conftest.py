"""Small networks with the parts of a segmentation network: backbone, head with DFL, prototypes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 64


def _convolution(nodes, weights, name, source, channels_in, channels_out, kernel=3, stride=1, activation=True):
    rng = np.random.default_rng(len(nodes))
    scale = 1.0 / np.sqrt(channels_in * kernel * kernel)
    weight = rng.normal(0, scale, (channels_out, channels_in, kernel, kernel)).astype(np.float32)
    weights.append(numpy_helper.from_array(weight, f"{name}.weight"))
    weights.append(numpy_helper.from_array(np.zeros(channels_out, np.float32), f"{name}.bias"))
    out = f"{name}/Conv_output_0"
    nodes.append(
        helper.make_node(
            "Conv",
            [source, f"{name}.weight", f"{name}.bias"],
            [out],
            name=f"{name}/Conv",
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            kernel_shape=[kernel, kernel],
        )
    )
    if not activation:
        return out
    nodes.append(helper.make_node("Sigmoid", [out], [f"{name}/Sigmoid_output_0"], name=f"{name}/act/Sigmoid"))
    nodes.append(
        helper.make_node("Mul", [out, f"{name}/Sigmoid_output_0"], [f"{name}/Mul_output_0"], name=f"{name}/act/Mul")
    )
    return f"{name}/Mul_output_0"


def make_network() -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = [
        numpy_helper.from_array(np.float32(1 / 255), "scale"),
        numpy_helper.from_array(np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1), "dfl.weight"),
        numpy_helper.from_array(np.array([0, 4, 16, -1]), "to_bins"),
        numpy_helper.from_array(np.array([0, 4, -1]), "to_boxes"),
        numpy_helper.from_array(np.array([0, 1, -1]), "to_scores"),
        numpy_helper.from_array(np.array([0, 32, -1]), "to_coefficients"),
        numpy_helper.from_array(
            np.random.default_rng(0).normal(0, 0.2, (16, 16, 2, 2)).astype(np.float32), "up.weight"
        ),
    ]
    nodes.append(helper.make_node("Cast", ["images"], ["float"], name="ends/Cast", to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Transpose", ["float"], ["planes"], name="ends/Transpose", perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("Mul", ["planes", "scale"], ["input"], name="ends/Mul"))
    x = _convolution(nodes, weights, "/m0", "input", 3, 16, stride=2)
    x = _convolution(nodes, weights, "/m1", x, 16, 16, stride=2)
    x = _convolution(nodes, weights, "/m2", x, 16, 16)
    boxes = _convolution(nodes, weights, "/head/cv2", x, 16, 64, kernel=1, activation=False)
    scores = _convolution(nodes, weights, "/head/cv3", x, 16, 1, kernel=1, activation=False)
    coefficients = _convolution(nodes, weights, "/head/cv4", x, 16, 32, kernel=1, activation=False)
    nodes += [
        helper.make_node("Reshape", [boxes, "to_bins"], ["bins"], name="/dfl/Reshape"),
        helper.make_node("Transpose", ["bins"], ["bins_t"], name="/dfl/Transpose", perm=[0, 2, 1, 3]),
        helper.make_node("Softmax", ["bins_t"], ["weights"], name="/dfl/Softmax", axis=1),
        helper.make_node("Conv", ["weights", "dfl.weight"], ["mean"], name="/dfl/conv/Conv"),
        helper.make_node("Reshape", ["mean", "to_boxes"], ["boxes"], name="/dfl/Reshape_1"),
        helper.make_node("Reshape", [scores, "to_scores"], ["flat_scores"], name="/head/Reshape"),
        helper.make_node("Sigmoid", ["flat_scores"], ["probabilities"], name="/head/Sigmoid"),
        helper.make_node("Reshape", [coefficients, "to_coefficients"], ["flat_coefs"], name="/head/Reshape_1"),
        helper.make_node("Concat", ["boxes", "probabilities", "flat_coefs"], ["all"], name="/head/Concat", axis=1),
        helper.make_node("Transpose", ["all"], ["candidates"], name="ends/Transpose_1", perm=[0, 2, 1]),
        helper.make_node(
            "ConvTranspose", [x, "up.weight"], ["up"], name="/proto/upsample/ConvTranspose", strides=[2, 2]
        ),
    ]
    proto = _convolution(nodes, weights, "/proto/cv3", "up", 16, 32)
    nodes.append(helper.make_node("Cast", [proto], ["prototypes"], name="ends/Cast_1", to=TensorProto.FLOAT16))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info("candidates", TensorProto.FLOAT, ["batch", (SIZE // 4) ** 2, 37]),
            helper.make_tensor_value_info("prototypes", TensorProto.FLOAT16, ["batch", 32, SIZE // 2, SIZE // 2]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def quantize_by_hand(model: onnx.ModelProto, leave_out: frozenset[str]) -> onnx.ModelProto:
    """Q/DQ in front of input and weights of every convolution, named as ModelOpt names them."""
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    graph = quantized.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(0.05), "q_scale"))
    graph.initializer.append(numpy_helper.from_array(np.int8(0), "q_zero"))
    for original in model.graph.node:
        node = onnx.NodeProto.FromString(original.SerializeToString())
        if node.op_type == "Conv" and node.name not in leave_out:
            for index in (0, 1):
                tensor = node.input[index]
                if tensor not in done:
                    done.add(tensor)
                    middle, back = f"{tensor}_QuantizeLinear_Output", f"{tensor}_DequantizeLinear_Output"
                    scale = ["q_scale", "q_zero"]
                    nodes.append(
                        helper.make_node("QuantizeLinear", [tensor, *scale], [middle], name=f"{tensor}_QuantizeLinear")
                    )
                    nodes.append(
                        helper.make_node(
                            "DequantizeLinear", [middle, *scale], [back], name=f"{tensor}_DequantizeLinear"
                        )
                    )
                node.input[index] = f"{tensor}_DequantizeLinear_Output"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


@pytest.fixture
def network() -> onnx.ModelProto:
    return make_network()


@pytest.fixture
def network_path(network: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    onnx.save(network, path)
    return path


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def quantize():
    return quantize_by_hand
