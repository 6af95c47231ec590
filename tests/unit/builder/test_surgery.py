"""The grafted graph gives what the plain export gives, whatever the batch."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from builder.export import load_export
from builder.families.head import find_head
from builder.surgery import graft_ends, make_batch_dynamic
from pipeline import contract
from tests.exports import segmentation_export


def session(model):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("classes", "height", "width", "opset", "top_k"),
    [(1, 64, 64, 17, 1000), (80, 96, 160, 13, 50), (3, 160, 96, 18, 20), (5, 64, 64, 22, 7)],
)
def test_grafted_equals_plain(tmp_path, classes, height, width, opset, top_k):
    path = segmentation_export(tmp_path / "m.onnx", classes=classes, height=height, width=width, opset=opset)
    export = load_export(path)
    grafted = session(graft_ends(make_batch_dynamic(export), export, top_k))
    images = np.random.default_rng(1).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    candidates, prototypes = grafted.run(None, {"images": images})
    k = min(top_k, export.num_anchors)
    assert candidates.shape == (3, k, 6 + 32)
    assert prototypes.dtype == np.float16
    plain = session(onnx.load(path))
    for image, rows, planes in zip(images, candidates, prototypes, strict=True):
        blob = image.transpose(2, 0, 1)[None].astype(np.float32) / 255
        detections, expected_planes = (output[0] for output in plain.run(None, {"images": blob}))
        scores = detections[4 : 4 + classes]
        best = np.argsort(-scores.max(0), kind="stable")[:k]
        np.testing.assert_allclose(rows[:, contract.SCORE_COLUMN], scores.max(0)[best], rtol=1e-5, atol=1e-6)
        # Equal scores may come in any order: compare only rows whose score is unique.
        distinct = np.concatenate([[True], np.diff(scores.max(0)[best]) < -1e-5])
        distinct &= np.concatenate([distinct[1:], [False]])
        picked = best[distinct]
        np.testing.assert_allclose(rows[distinct, 1:5], detections[:4, picked].T, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(rows[distinct, contract.CLASS_COLUMN], scores.argmax(0)[picked])
        np.testing.assert_allclose(rows[distinct, 6:], detections[4 + classes :, picked].T, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(planes, expected_planes, atol=2e-3)


def test_the_head_is_found(tmp_path):
    export = load_export(segmentation_export(tmp_path / "m.onnx"))
    head = find_head(make_batch_dynamic(export), export.detections_name)
    assert head.output_convolutions == ("head8", "head16", "head32")
    assert {"split", "sigmoid", "detections", "concat"} <= set(head.decode_nodes)
    assert not any(name.startswith("stem") for name in head.decode_nodes)


def test_a_baked_batch_of_areas_is_freed(tmp_path):
    """Attention that works area by area (YOLO12) brings batch x areas to the front and back again."""
    path = segmentation_export(tmp_path / "m.onnx")
    model = onnx.load(path)
    for name, shape in (("areas", [4, 8, 256]), ("back", [1, 32, 16, 16])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape, np.int64), name))
    output = next(node for node in model.graph.node if node.output[0] == "output1")
    output.output[0] = "planes"
    model.graph.node.extend(
        [
            onnx.helper.make_node("Reshape", ["planes", "areas"], ["in_areas"], name="to_areas"),
            onnx.helper.make_node("Softmax", ["in_areas"], ["attended"], name="attend", axis=-1),
            onnx.helper.make_node("Reshape", ["attended", "back"], ["output1"], name="from_areas"),
        ]
    )
    onnx.save(model, path)
    export = load_export(path)
    network = session(make_batch_dynamic(export))
    images = np.random.default_rng(0).random((3, 3, 64, 64), np.float32)
    together = network.run(None, {"network_input": images})
    plain = session(export.model)
    for index, image in enumerate(images):
        for whole, alone in zip(together, plain.run(None, {"images": image[None]}), strict=True):
            np.testing.assert_allclose(whole[index], alone[0], rtol=1e-4, atol=1e-5)


def test_the_head_does_not_reach_through_shapes(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx", batch=None)
    export = load_export(path, input_size=(64, 64))
    head = find_head(make_batch_dynamic(export), export.detections_name)
    assert head.output_convolutions == ("head8", "head16", "head32")
    assert not any(name.startswith("stem") for name in head.decode_nodes)


def test_inputs_of_surgery_are_left_alone(tmp_path):
    export = load_export(segmentation_export(tmp_path / "m.onnx"))
    before = export.model.SerializeToString()
    network = make_batch_dynamic(export)
    middle = network.SerializeToString()
    graft_ends(network, export)
    assert export.model.SerializeToString() == before
    assert network.SerializeToString() == middle


def test_a_baked_batch_of_resized_shapes_is_freed(tmp_path):
    """YOLO26's prototypes, as ultralytics before 8.4.142 exports them, are enlarged to a constant shape."""
    path = segmentation_export(tmp_path / "m.onnx")
    model = onnx.load(path)
    sizes = onnx.numpy_helper.from_array(np.array([1, 32, 16, 16], np.int64), "enlarged")
    model.graph.initializer.append(sizes)
    output = next(node for node in model.graph.node if node.output[0] == "output1")
    output.output[0] = "planes"
    model.graph.node.extend(
        [
            onnx.helper.make_node("MaxPool", ["planes"], ["small"], name="small", kernel_shape=[2, 2], strides=[2, 2]),
            onnx.helper.make_node("Resize", ["small", "", "", "enlarged"], ["output1"], name="enlarge", mode="nearest"),
        ]
    )
    onnx.save(model, path)
    export = load_export(path)
    network = session(make_batch_dynamic(export))
    images = np.random.default_rng(0).random((3, 3, 64, 64), np.float32)
    plain = session(export.model)
    for index, image in enumerate(images):
        together = network.run(None, {"network_input": images})[1][index]
        np.testing.assert_allclose(together, plain.run(None, {"images": image[None]})[1][0], rtol=1e-4, atol=1e-5)
