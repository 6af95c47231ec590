"""What is made of an export is compared with the export's own file, by code that does not serve."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from builder.errors import ExportError
from builder.export import load_export
from builder.families.base import InputFormat
from builder.source import Placement, SourceNetwork, decode
from builder.source_check import check_source
from builder.surgery import graft_ends, make_batch_dynamic
from builder.verification import detection_differences
from pipeline.postprocess import ImageSegmentation
from tests.exports import segmentation_export

SIZE = (64, 96)
IMAGES = np.random.default_rng(3).integers(0, 256, (4, *SIZE, 3), dtype=np.uint8)


def made_of(path, spoil=lambda network: None):
    """An export and what is made of it; ``spoil`` changes the network before its ends are grafted."""
    export = load_export(path, input_size=SIZE)
    network = make_batch_dynamic(export)
    spoil(network)
    return export, network, graft_ends(network, export)


def exported(tmp_path, **options):
    return segmentation_export(tmp_path / "m.onnx", height=SIZE[0], width=SIZE[1], **options)


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_boxes_and_scores_are_those_of_the_file(tmp_path, batch):
    export, *made = made_of(exported(tmp_path, batch=batch))
    assert export.batch == batch
    found = check_source(export, *made, IMAGES)
    assert found.box_max_px < 0.1
    assert found.score_max < 1e-4
    assert found.images == 4
    assert found.matched > 100


def test_what_is_dynamic_keeps_its_nodes(tmp_path):
    export, *made = made_of(exported(tmp_path, batch=None))
    before = [(node.op_type, list(node.input)[1:], list(node.output)) for node in export.model.graph.node]
    after = [(node.op_type, list(node.input)[1:], list(node.output)) for node in made[0].graph.node]
    assert before == after
    assert {t.name for t in export.model.graph.initializer} == {t.name for t in made[0].graph.initializer}
    assert export.batch is None


def test_exchanged_axes_of_the_grid_are_refused_with_the_node(tmp_path):
    def spoil(network):
        for tensor in network.graph.initializer:
            if tensor.name == "across_shape8":  # [1, -1] of the grid taken for a batch
                tensor.CopyFrom(numpy_helper.from_array(np.array([0, -1], np.int64), tensor.name))

    export, *made = made_of(exported(tmp_path, batch=None), spoil)
    with pytest.raises(ExportError, match=r"first node that differs is 'across8' \(Reshape\)"):
        check_source(export, *made, IMAGES)


def shift_boxes(network):
    """Moves boxes by half a pixel where the batch has more than one image."""
    for name, value in (("half", np.float32(0.5)), ("one", np.int64(1)), ("zero_index", np.int64(0))):
        network.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    scale = next(node for node in network.graph.node if node.name == "scale")
    scale.output[0] = "right_boxes"
    at = list(network.graph.node).index(scale) + 1
    added = [
        onnx.helper.make_node("Shape", ["right_boxes"], ["box_shape"], name="box_shape"),
        onnx.helper.make_node("Gather", ["box_shape", "zero_index"], ["count"], name="count"),
        onnx.helper.make_node("Sub", ["count", "one"], ["more"], name="more"),
        onnx.helper.make_node("Cast", ["more"], ["more_float"], name="cast_more", to=1),
        onnx.helper.make_node("Mul", ["more_float", "half"], ["shift"], name="shift"),
        onnx.helper.make_node("Add", ["right_boxes", "shift"], ["boxes"], name="shifted"),
    ]
    for offset, node in enumerate(added):
        network.graph.node.insert(at + offset, node)


def test_a_fault_at_a_batch_of_two_is_found(tmp_path):
    export, *made = made_of(exported(tmp_path), shift_boxes)
    with pytest.raises(ExportError, match=r"with 2 images at a time .* boxes up to 0\.5 network pixels.*dynamic=True"):
        check_source(export, *made, IMAGES)


@pytest.mark.parametrize("batch", [1, None])
def test_a_baked_batch_is_refused_with_its_node(tmp_path, batch):
    path = exported(tmp_path, batch=batch)
    model = onnx.load(path)
    # Adds the first image's prototypes to every image: right for a batch of one only.
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "first"))
    output = next(node for node in model.graph.node if node.output[0] == "output1")
    output.output[0] = "planes"
    model.graph.node.extend(
        [
            onnx.helper.make_node("Gather", ["planes", "first"], ["first_planes"], name="gather", axis=0),
            onnx.helper.make_node("Add", ["planes", "first_planes"], ["output1"], name="add"),
        ]
    )
    onnx.save(model, path)
    export, *made = made_of(path)
    remedy = "dynamic=True" if batch else "dynamic=False batch=1"
    with pytest.raises(ExportError, match=rf"batch size is baked.*'(gather|add)' \((Gather|Add)\).*{remedy}"):
        check_source(export, *made, IMAGES)


def test_scores_that_are_logits_are_refused(tmp_path):
    export, *made = made_of(exported(tmp_path, sigmoid=False))
    with pytest.raises(ExportError, match=r"scores lie outside \[0, 1\].*logits.*Sigmoid"):
        check_source(export, *made, IMAGES)


def test_normalized_boxes_are_refused(tmp_path):
    path = exported(tmp_path)
    model = onnx.load(path)
    factor = next(tensor for tensor in model.graph.initializer if tensor.name == "factor")
    factor.CopyFrom(numpy_helper.from_array(np.array(0.1, np.float32), "factor"))
    onnx.save(model, path)
    export, *made = made_of(path)
    with pytest.raises(ExportError, match="normalized"):
        check_source(export, *made, IMAGES)


def test_outputs_that_are_no_numbers_are_refused_with_the_node(tmp_path):
    path = exported(tmp_path)
    model = onnx.load(path)
    absolute = next(node for node in model.graph.node if node.name == "abs")
    absolute.op_type = "Log"
    onnx.save(model, path)
    export, *made = made_of(path)
    with pytest.raises(ExportError, match=r"NaN or infinite.*'abs' \(Log\)"):
        check_source(export, *made, IMAGES)


def test_other_masks_are_refused(tmp_path):
    def spoil(network):
        conv = next(node for node in network.graph.node if node.output[0] == "output1")
        weights = next(tensor for tensor in network.graph.initializer if tensor.name == conv.input[1])
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights)[::-1].copy(), weights.name))

    export, *made = made_of(exported(tmp_path), spoil)
    with pytest.raises(ExportError, match=r"other mask prototypes.*output1"):
        check_source(export, *made, IMAGES)


def test_the_file_is_run_in_its_own_batch(tmp_path):
    path = exported(tmp_path, batch=4)
    export = load_export(path)
    detections, prototypes = SourceNetwork(export).run(IMAGES[:3])
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"images": InputFormat().planes(IMAGES)})
    np.testing.assert_array_equal(detections, expected[0][:3].astype(np.float64))
    np.testing.assert_array_equal(prototypes, expected[1][:3].astype(np.float64))
    assert detections.dtype == np.float64


def test_decoding_by_hand():
    """Two boxes of one class that overlap, one of another class, one below the threshold; masks known by hand."""
    anchors = np.array(
        [  # cx, cy, w, h, two classes, one coefficient
            [20, 20, 16, 16, 0.9, 0.1, 1.0],
            [21, 20, 16, 16, 0.8, 0.1, 1.0],
            [22, 20, 16, 16, 0.1, 0.7, -1.0],
            [50, 20, 8, 8, 0.2, 0.1, 1.0],
        ]
    ).T
    prototypes = np.full((1, 16, 16), -1.0)
    prototypes[0, :, 4:] = 1.0  # network columns from 4 * 4 = 16 on; linear in between
    placement = Placement(height=32, width=32, scale_x=2.0, scale_y=2.0, left=0, top=0)
    found = decode(anchors, prototypes, 2, placement, (64, 64), (0.25, 0.45, 10, 10))
    assert found.left_out == 0
    assert decode(anchors, prototypes, 2, placement, (64, 64), (0.25, 0.45, 10, 2)).left_out == pytest.approx(0.7)
    np.testing.assert_allclose(found.boxes, [[6, 6, 14, 14], [7, 6, 15, 14]])
    np.testing.assert_allclose(found.scores, [0.9, 0.7])
    assert found.class_ids.tolist() == [0, 1]
    # The logit crosses 0 at network column 16, image column 8: pixels 8 to 13 of the first, 7 of the other's 8 to 14.
    from pycocotools import mask as coco_mask

    masks = [coco_mask.decode({"size": [32, 32], "counts": counts}) for counts in found.masks]
    assert masks[0].sum() == 6 * 8
    assert masks[0][6:14, 8:14].all()
    assert masks[1].sum() == 1 * 8
    assert masks[1][6:14, 7].all()


def instances(boxes, scores, classes):
    count = len(scores)
    return ImageSegmentation(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int32),
        [b""] * count,
        100,
        200,
    )


def test_differences_are_in_network_pixels():
    one = instances([[10, 10, 50, 50], [60, 10, 90, 50]], [0.9, 0.8], [0, 1])
    other = instances([[11, 10, 50, 50], [60, 10, 90, 50]], [0.9, 0.7], [0, 1])
    found = detection_differences([one], [other], (50, 100), 0.25)
    assert (found.matched, found.box_max_px, found.box_mean_px) == (2, 0.5, 0.25)
    assert found.score_max == pytest.approx(0.1)
    assert detection_differences([instances([], [], [])], [other], (50, 100), 0.25).matched == 0


_FAMILIES = [f"families.{path.stem}" for path in (Path(__file__).parents[3] / "builder" / "families").glob("[a-z]*.py")]
_SHARED = (
    "errors",
    "export",
    "families",
    "first_run",
    "inspection",
    "onnx_tools",
    "source",
    "source_check",
    *_FAMILIES,
)
SHARED = {f"builder.{name}" for name in _SHARED}


@pytest.mark.parametrize(
    "module",
    [
        "source",
        "source_check",
        "export",
        "first_run",
        "inspection",
        "onnx_tools",
        *(name.replace(".", "/") for name in _FAMILIES),
    ],
)
def test_the_reference_shares_no_code_with_what_serves(module):
    tree = ast.parse((Path(__file__).parents[3] / "builder" / f"{module}.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] == "pipeline"]
    ours = {name for name in names if name.startswith("builder")}
    assert ours <= SHARED


def test_a_layout_without_its_file(tmp_path):
    export = load_export(exported(tmp_path))
    with pytest.raises(ExportError, match="does not load"):
        SourceNetwork(replace(export, path=tmp_path / "gone.onnx"))
