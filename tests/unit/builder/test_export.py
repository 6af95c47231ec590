"""Which exports are accepted, and what is said of those that are not."""

import onnx
import pytest
from onnx import TensorProto, helper

from builder.errors import ExportError
from builder.export import load_export, slug
from tests.exports import segmentation_export


@pytest.mark.parametrize(("classes", "height", "width"), [(1, 64, 64), (80, 96, 160), (3, 160, 96)])
def test_any_class_count_and_rectangular_inputs(tmp_path, classes, height, width):
    path = segmentation_export(tmp_path / "m.onnx", classes=classes, height=height, width=width)
    export, _ = load_export(path)
    assert (export.num_classes, export.input_height, export.input_width) == (classes, height, width)
    assert export.num_coefficients == 32
    assert export.num_anchors == sum((height // s) * (width // s) for s in (8, 16, 32))
    assert export.class_names == tuple(f"class_{i}" for i in range(classes))
    assert export.name == "m"


def test_names_come_from_the_metadata(tmp_path):
    metadata = {
        "names": "{0: 'cat', 1: 'dog', 2: 'it''s'}",
        "description": "Ultralytics YOLOv8n-seg model trained on coco.yaml",
        "task": "segment",
    }
    export, _ = load_export(segmentation_export(tmp_path / "m.onnx", metadata=metadata))
    assert export.class_names == ("cat", "dog", "its")
    assert export.name == "yolov8n-seg"
    assert load_export(tmp_path / "m.onnx", name="My Model")[0].name == "my-model"


@pytest.mark.parametrize("names", ["not python", "{0: 'a'}x", "[1, 2", "['only one']", "__import__('os')"])
def test_broken_names_are_passed_over(tmp_path, names):
    export, _ = load_export(segmentation_export(tmp_path / "m.onnx", metadata={"names": names}))
    assert export.class_names == ("class_0", "class_1", "class_2")


def refused(path, **options):
    with pytest.raises(ExportError) as caught:
        load_export(path, **options)
    return str(caught.value)


def test_a_missing_file(tmp_path):
    assert "no such file" in refused(tmp_path / "none.onnx")


def test_not_an_onnx_file(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"hello, I am a text file")
    assert "not a readable ONNX model" in refused(path)
    path.write_bytes(b"")
    assert "ONNX model" in refused(path)


def test_a_truncated_file(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-500])
    assert "not a readable ONNX model" in refused(path)


def test_a_detection_export(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx", outputs=("output0",), metadata={"task": "detect"})
    message = refused(path)
    assert "detection" in message
    assert "task='detect'" in message


def test_missing_prototypes(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx", outputs=("output0",), metadata={"task": "segment"})
    assert "lack the mask prototypes" in refused(path)


def test_nms_inside(tmp_path):
    node = helper.make_node("NonMaxSuppression", ["b", "s"], ["kept"], name="/nms/NonMaxSuppression")
    path = segmentation_export(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input.extend([helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 4]) for n in ("b", "s")])
    model.graph.node.append(node)
    onnx.save(model, path)
    message = refused(path)
    assert "non-maximum suppression is already inside" in message
    assert "/nms/NonMaxSuppression" in message
    assert "nms=False" in message


def test_an_end_to_end_export(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["m"], axes=[1, 2, 3], keepdims=1),
            helper.make_node("Squeeze", ["m", "three"], ["m3"]),
            helper.make_node("Expand", ["m3", "shape"], ["output0"]),
        ],
        "e2e",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 30, 38])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [3], [1, 30, 38]),
            helper.make_tensor("three", TensorProto.INT64, [1], [3]),
        ],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert "nms=False" in refused(path)


@pytest.mark.parametrize("opset", [11, 12, 23])
def test_wrong_opset(tmp_path, opset):
    path = segmentation_export(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = opset
    onnx.save(model, path)
    try:
        message = refused(path)
    except onnx.checker.ValidationError as error:  # pragma: no cover - would be a defect
        pytest.fail(str(error))
    assert f"opset {opset}" in message or "not a readable ONNX model" in message


def test_half_precision_export(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, path)
    assert "half=False" in refused(path)


def test_dynamic_input_size_asks_for_one(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx")
    model = onnx.load(path)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    onnx.save(model, path)
    assert "--input-size" in refused(path)
    export, _ = load_export(path, input_size=(64, 64))
    assert (export.input_height, export.input_width) == (64, 64)


def test_input_size_that_contradicts_the_export(tmp_path):
    assert "fixed at 64x64" in refused(segmentation_export(tmp_path / "m.onnx"), input_size=(96, 96))


@pytest.mark.parametrize(("text", "expected"), [("YOLOv8n-seg", "yolov8n-seg"), ("a b/c", "a-b-c"), ("é!", "model")])
def test_slug(text, expected):
    assert slug(text) == expected
