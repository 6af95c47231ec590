import numpy as np
import onnx
import onnxruntime as ort
import pytest

from builder.families.head import group_of
from builder.quantizers import count_convolutions, quantized_nodes, remove_quantizers
from builder.sensitivity import int8_size_bytes


def run(model):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    return session.run(None, {"images": images})


def test_without_its_quantizers_a_network_is_what_it_was(networks):
    original, quantized = networks.original, networks.quantized
    assert not np.allclose(run(original)[0], run(quantized)[0], atol=1e-6)
    bare = remove_quantizers(quantized, original, quantized_nodes(quantized))
    assert not [node for node in bare.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for one, other in zip(run(original), run(bare), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    onnx.checker.check_model(bare)


def test_other_nodes_keep_theirs(networks):
    original, quantized = networks.original, networks.quantized
    before, total = count_convolutions(quantized)
    reduced = remove_quantizers(quantized, original, {"head8"})
    assert count_convolutions(reduced) == (before - 1, total)
    assert "head8" not in quantized_nodes(reduced)
    assert "stem8" in quantized_nodes(reduced)
    assert int8_size_bytes(reduced) > int8_size_bytes(quantized)


def test_inputs_are_left_alone(networks):
    original, quantized = networks.original, networks.quantized
    before = quantized.SerializeToString()
    remove_quantizers(quantized, original, quantized_nodes(quantized))
    assert quantized.SerializeToString() == before


@pytest.mark.parametrize(
    ("node", "group"),
    [
        ("/model.4/m.0/cv1/conv/Conv", "model.4"),
        ("/model.4/cv2/conv/Conv", "model.4"),
        ("/model.22/cv3.1/cv3.1.0/conv/Conv", "model.22.cv3"),
        ("/model.22/proto/cv1/conv/Conv", "model.22.proto"),
        ("/model.23/cv3.0/cv3.0.1/cv3.0.1.0/conv/Conv", "model.23.cv3"),
        ("/model.6/m.0/cv3/conv/Conv", "model.6"),
        ("/model.10/m/m.0/attn/qkv/conv/Conv", "model.10"),
        ("/model/model.9/cv1/act/Mul", "model.9"),
        (
            "/backbone/backbone.0/encoder/encoder/layer.11/mlp/fc1/MatMul",
            "backbone.backbone.0.encoder.encoder.layer.11",
        ),
        ("/transformer/decoder/layers.1/cross_attn/GridSample", "transformer.decoder.layers.1"),
        ("stem8", "stem8"),
    ],
)
def test_groups(node, group):
    assert group_of(node) == group
