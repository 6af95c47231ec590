"""fp16 and int8 with the real ModelOpt on a small network, run by ONNX Runtime."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from builder.quantizers import quantized_convolutions
from builder.tensorrt import modelopt_env
from builder.tensorrt.autocast import convert_to_fp16
from builder.tensorrt.errors import ConversionError, ToolchainError
from builder.tensorrt.exclusions import exact_patterns, fp16_exclusions, int8_exclusions, names_of
from builder.tensorrt.graph_names import GraphNames
from builder.tensorrt.ptq import quantize as quantize_with_modelopt

HEAD = ("/head/cv2/Conv", "/head/cv3/Conv", "/head/cv4/Conv")


@pytest.fixture
def modelopt() -> None:
    pytest.importorskip("torch", reason="torch is missing; make test-tensorrt runs it")
    pytest.importorskip("modelopt", reason="ModelOpt is missing; make test-tensorrt runs it")


def run(model: onnx.ModelProto, images):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def test_default_exclusions_have_reason_and_source(network):
    convolutions, decoding, upsampling = int8_exclusions(network)
    assert convolutions.nodes == HEAD
    assert {"/dfl/Softmax", "/dfl/conv/Conv", "/head/Concat", "ends/Transpose_1"} <= set(decoding.nodes)
    assert not {"/m2/Conv", "/proto/cv3/Conv", "ends/Cast"} & set(decoding.nodes)
    assert upsampling.nodes == ("/proto/upsample/ConvTranspose",)
    (half,) = fp16_exclusions(network)
    assert half.nodes == decoding.nodes
    assert all(group.reason and group.source for group in (convolutions, decoding, upsampling, half))


def test_exclusions_do_not_change_with_quantizers(network, quantize):
    quantized = quantize(network, frozenset({"/dfl/conv/Conv"}))
    assert set(fp16_exclusions(quantized)[0].nodes) == set(fp16_exclusions(network)[0].nodes)


def test_names_become_exact_patterns():
    import re

    (pattern,) = exact_patterns(["/model.2/Conv"])
    assert re.match(pattern, "/model.2/Conv")
    assert not re.match(pattern, "/model.2/Conv_1")
    assert not re.match(pattern, "/modelX2/Conv")


def test_fp16(modelopt, network, network_path, images):
    half, excluded = convert_to_fp16(network_path, images, exclude=["/m2/Conv"])
    onnx.checker.check_model(half, full_check=True)
    types = {value.name: value.type.tensor_type.elem_type for value in [*half.graph.input, *half.graph.output]}
    assert types == {
        "images": onnx.TensorProto.UINT8,
        "candidates": onnx.TensorProto.FLOAT,
        "prototypes": onnx.TensorProto.FLOAT16,
    }
    weights = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert weights["/m1.weight"] == onnx.TensorProto.FLOAT16
    assert weights["/m2.weight"] == onnx.TensorProto.FLOAT
    assert weights["dfl.weight"] == onnx.TensorProto.FLOAT
    assert "/m2/Conv" in excluded
    for expected, got in zip(run(network, images), run(half, images), strict=True):
        np.testing.assert_allclose(np.float32(got), np.float32(expected), atol=0.02)


def test_int8(modelopt, network, network_path, images, capsys):
    result = quantize_with_modelopt(network_path, images, exclude=["/m1/Conv"])
    assert set(quantized_convolutions(result.model)) == {"/m0/Conv", "/m2/Conv", "/proto/cv3/Conv"}
    assert {"/m1/Conv", *HEAD} <= set(result.excluded)
    graph = GraphNames.from_model(result.model)
    assert not any(graph.is_quantized(name) for name in result.excluded)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
    candidates, prototypes = run(result.model, images)
    expected, expected_prototypes = run(network, images)
    assert np.abs(candidates[..., :4] - expected[..., :4]).max() < 1
    assert np.abs(np.float32(prototypes) - np.float32(expected_prototypes)).mean() < 0.05


def test_int8_then_fp16_keeps_the_quantizers(modelopt, network, network_path, images, tmp_path):
    result = quantize_with_modelopt(network_path, images)
    onnx.save(result.model, tmp_path / "q.onnx")
    half, excluded = convert_to_fp16(tmp_path / "q.onnx", images)
    graph = GraphNames.from_model(half)
    assert all(graph.is_quantized(name) for name in quantized_convolutions(result.model))
    first, second = run(result.model, images), run(half, images)
    assert np.abs(first[0] - second[0]).max() < 0.5
    assert names_of(fp16_exclusions(result.model)) == excluded


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 64, 64, 3), np.uint8), r"images are uint8 \[0, 64, 64, 3\]"),
        (np.zeros((1, 3, 64, 64), np.uint8), "needed: uint8"),
        (np.zeros((1, 64, 64, 3), np.float32), "images are float32"),
    ],
)
def test_bad_images_are_refused(network_path, images, message):
    for convert in (convert_to_fp16, quantize_with_modelopt):
        with pytest.raises(ConversionError, match=message):
            convert(network_path, images)


def test_bad_arguments_are_refused(network, network_path, images, tmp_path):
    with pytest.raises(ConversionError, match="allowed: max, entropy"):
        quantize_with_modelopt(network_path, images, method="mean")  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match="no such nodes to exclude: /nowhere"):
        quantize_with_modelopt(network_path, images, exclude=["/nowhere"])
    network.graph.node[0].name = ""
    onnx.save(network, tmp_path / "unnamed.onnx")
    with pytest.raises(ConversionError, match="nodes without a name"):
        quantize_with_modelopt(tmp_path / "unnamed.onnx", images)


def test_a_network_that_modelopt_cannot_run_is_a_clear_error(modelopt, network_path):
    wrong = np.zeros((1, 32, 64, 3), np.uint8)
    with pytest.raises(ConversionError, match=r"ModelOpt does not quantize network\.onnx"):
        quantize_with_modelopt(network_path, wrong)
    with pytest.raises(ConversionError, match=r"ModelOpt AutoCast fails on network\.onnx"):
        convert_to_fp16(network_path, wrong)


def test_a_missing_package_names_the_command(monkeypatch):
    def missing(name: str) -> ModuleType:
        raise ImportError("No module named 'onnxslim'\nPlease install optional ``[onnx]`` dependencies.")

    monkeypatch.setattr(modelopt_env.importlib, "import_module", missing)
    with pytest.raises(ToolchainError, match=r"No module named 'onnxslim'.*without the extra \[onnx\]") as caught:
        modelopt_env.import_modelopt("modelopt.onnx.quantization")
    assert "pip install 'nvidia-modelopt==0.47.*' 'onnx-graphsurgeon>=0.6.1'" in str(caught.value)


def test_a_package_of_type_stubs_is_hidden(monkeypatch):
    stubs = ModuleType("only_stubs")
    monkeypatch.setitem(sys.modules, "only_stubs", stubs)
    with modelopt_env._without_stub_package("only_stubs"), pytest.raises(ImportError):
        importlib.import_module("only_stubs")
    assert importlib.import_module("only_stubs") is stubs
    stubs.Logger = object  # type: ignore[attr-defined]
    with modelopt_env._without_stub_package("only_stubs"):
        assert importlib.import_module("only_stubs") is stubs
