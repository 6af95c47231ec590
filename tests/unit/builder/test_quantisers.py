import numpy as np
import onnx
import onnxruntime as ort
import pytest

from builder.calibration import calibration_set
from builder.export import load_export
from builder.quantisers import group_of, quantised_nodes, remove_quantisers
from builder.quantize_cpu import count_quantized_convolutions, quantize_for_cpu
from builder.sensitivity import Subject, groups_of, int8_size_bytes, rank_groups, trade_off
from builder.settings import Verification
from builder.surgery import find_head, graft_ends, make_batch_dynamic
from builder.verification import onnx_network, segment_set
from tests.exports import segmentation_export


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A small network, its Q/DQ twin, both grafted, and the images."""
    import cv2

    folder = tmp_path_factory.mktemp("quantisers")
    rng = np.random.default_rng(0)
    for index in range(4):
        noise = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (64, 64))
        cv2.imwrite(str(folder / f"{index}.png"), noise)
    export, model = load_export(segmentation_export(folder / "export.onnx"))
    network = make_batch_dynamic(model, export)
    images = calibration_set([folder], "")
    head = find_head(network, export)
    quantised = quantize_for_cpu(network, export, images, head.decode_nodes, lambda: None).model
    return graft_ends(network, export), graft_ends(quantised, export), images.paths


def run(model):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    return session.run(None, {"images": images})


def test_without_its_quantisers_a_network_is_what_it_was(networks):
    original, quantised, _ = networks
    assert not np.allclose(run(original)[0], run(quantised)[0], atol=1e-6)
    bare = remove_quantisers(quantised, original, quantised_nodes(quantised))
    assert not [node for node in bare.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for one, other in zip(run(original), run(bare), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    onnx.checker.check_model(bare)


def test_other_nodes_keep_theirs(networks):
    original, quantised, _ = networks
    before, total = count_quantized_convolutions(quantised)
    reduced = remove_quantisers(quantised, original, {"head8"})
    assert count_quantized_convolutions(reduced) == (before - 1, total)
    assert "head8" not in quantised_nodes(reduced)
    assert "stem8" in quantised_nodes(reduced)
    assert int8_size_bytes(reduced) > int8_size_bytes(quantised)


def test_inputs_are_left_alone(networks):
    original, quantised, _ = networks
    before = quantised.SerializeToString()
    remove_quantisers(quantised, original, quantised_nodes(quantised))
    assert quantised.SerializeToString() == before


@pytest.mark.parametrize(
    ("node", "group"),
    [
        ("/model.4/m.0/cv1/conv/Conv", "model.4"),
        ("/model.4/cv2/conv/Conv", "model.4"),
        ("/model.22/cv3.1/cv3.1.0/conv/Conv", "model.22.cv3"),
        ("/model.22/proto/cv1/conv/Conv", "model.22.proto"),
        ("/model/model.9/cv1/act/Mul", "model.9"),
        ("stem8", "stem8"),
    ],
)
def test_groups(node, group):
    assert group_of(node) == group


def test_groups_are_ranked_by_what_they_cost_alone(networks):
    original, quantised, paths = networks
    settings = Verification()
    reference = segment_set(onnx_network(original.SerializeToString()), paths, (64, 64), settings, lambda: None)
    subject = Subject(quantised, original, paths, reference, (64, 64), settings)
    seen = []
    ranking = rank_groups(subject, lambda: seen.append(1))
    groups = groups_of(quantised)
    assert len(seen) == len(ranking) == len(groups)
    assert {cost.group for cost in ranking} == set(groups)
    assert [cost.cost for cost in ranking] == sorted((cost.cost for cost in ranking), reverse=True)
    trades = trade_off(subject, ranking, [0, len(ranking)], lambda: None)
    assert trades[0].int8_convolutions == count_quantized_convolutions(quantised)[0]
    assert trades[1].int8_convolutions == 0
    assert trades[1].comparison.f1 == 1
    assert trades[1].comparison.mask_iou == pytest.approx(1, abs=2e-3)
    assert trades[1].size_bytes > trades[0].size_bytes
