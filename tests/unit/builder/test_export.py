"""Which exports are accepted, and the messages for the others."""

import hashlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnxruntime.transformers.float16 import convert_float_to_float16

from builder.errors import ExportError
from builder.export import WORKING_OPSETS, inspect, load_export, slug
from builder.families.metadata import advice_without_suppression
from tests.exports import segmentation_export


@pytest.mark.parametrize(("classes", "height", "width"), [(1, 64, 64), (80, 96, 160), (3, 160, 96)])
def test_any_class_count_and_rectangular_inputs(tmp_path, classes, height, width):
    path = segmentation_export(tmp_path / "m.onnx", classes=classes, height=height, width=width)
    export = load_export(path)
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
    export = load_export(segmentation_export(tmp_path / "m.onnx", metadata=metadata))
    assert export.class_names == ("cat", "dog", "its")
    assert export.name == "yolov8n-seg"
    assert load_export(tmp_path / "m.onnx", name="My Model").name == "my-model"


HOSTILE_NAMES = [
    "-" * 100_000 + "1",
    "1+" * 100_000 + "1j",
    "[" * 100_000 + "]" * 100_000,
    "{'a': " * 90 + "1" + "}" * 90,
    "{[1]: 2}",
    "{{}: 1}",
    "{0: {}}",
    "[" + "9" * 5000 + "]",
    "5",
    "'abc'",
    "\0",
    "{" + ", ".join(f"{index}: 'x'" for index in range(200_000)) + "}",
    "['a', 'b', 'c'" + ", 'd'" * 50_000 + "]",
]


def test_class_names_are_printable(tmp_path):
    names = "{0: '\\ud800', 1: '\\x1b[2J', 2: 'größe'}"
    export = load_export(segmentation_export(tmp_path / "m.onnx", metadata={"names": names}))
    assert export.class_names == ("\ufffd", "\ufffd[2J", "größe")
    assert "2 class names held characters" in export.notes[0]


@pytest.mark.parametrize("key", ["names", "description", "task", "version", "end2end"])
@pytest.mark.parametrize("value", ["9" * 5000 + ".1.1", "yolo" * 100_000 + "-seg", "\x1b]0;x\x07"])
def test_other_metadata_may_be_anything(tmp_path, key, value):
    path = segmentation_export(tmp_path / "m.onnx", metadata={key: value})
    export = load_export(path)
    assert len(export.name) <= 100
    segmentation_export(tmp_path / "d.onnx", outputs=("output0",), metadata={key: value})
    with pytest.raises(ExportError) as raised:
        load_export(tmp_path / "d.onnx")
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize("damage", [b"Cnv\xff", b"\xff\xfe\xfd\xfc"])
def test_operators_that_are_no_utf8(tmp_path, damage):
    path = segmentation_export(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"Conv", damage))
    with pytest.raises(ExportError, match="not a readable ONNX model"):
        inspect(path, None)


@pytest.mark.parametrize("place", ["input", "weights"])
def test_types_that_onnx_does_not_know(tmp_path, place):
    path = segmentation_export(tmp_path / "m.onnx")
    model = onnx.load(path)
    if place == "input":
        model.graph.input[0].type.tensor_type.elem_type = 33
    else:
        model.graph.initializer[0].data_type = 61
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="not a readable ONNX model"):
        inspect(path, None)


def test_metadata_that_is_no_utf8(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx", metadata={"names": "NAMES", "description": "ABCDEF"})
    path.write_bytes(path.read_bytes().replace(b"NAMES", b"\xff\xfeMES").replace(b"ABCDEF", b"AB\xff\xfeEF"))
    assert load_export(path).class_names == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize(
    "names", ["not python", "{0: 'a'}x", "[1, 2", "['only one']", "__import__('os')", *HOSTILE_NAMES]
)
def test_broken_names_are_ignored(tmp_path, names):
    export = load_export(segmentation_export(tmp_path / "m.onnx", metadata={"names": names}))
    assert export.class_names == ("class_0", "class_1", "class_2")
    (note,) = export.notes
    assert "'names' is ignored" in note


def refused(path, **options):
    with pytest.raises(ExportError) as caught:
        load_export(path, **options)
    return str(caught.value)


def changed(tmp_path, change, **options):
    """An export that ``change`` has been applied to."""
    path = segmentation_export(tmp_path / "m.onnx", **options)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def test_what_is_no_onnx_file_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "none.onnx")
    path = segmentation_export(tmp_path / "m.onnx")
    for content in (path.read_bytes()[:-500], b"hello, I am a text file"):
        path.write_bytes(content)
        assert "not a readable ONNX model" in refused(path)
    path.write_bytes(b"")
    assert "ONNX model has no graph" in refused(path)


@pytest.mark.parametrize(
    ("task", "words"), [("detect", ("detection", "task='detect'")), ("segment", ("lack the mask prototypes",))]
)
def test_exports_without_prototypes_are_refused(tmp_path, task, words):
    message = refused(segmentation_export(tmp_path / "m.onnx", outputs=("output0",), metadata={"task": task}))
    assert all(word in message for word in words)


def with_suppression(tmp_path, metadata):
    def add(model):
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4]) for name in ("b", "s")]
        model.graph.input.extend(inputs)
        model.graph.node.add().CopyFrom(
            helper.make_node("NonMaxSuppression", ["b", "s"], ["kept"], name="/nms/NonMaxSuppression")
        )

    return changed(tmp_path, add, metadata=metadata)


def test_nms_inside(tmp_path):
    message = refused(with_suppression(tmp_path, {}))
    assert "non-maximum suppression is already inside" in message
    assert "/nms/NonMaxSuppression" in message
    assert "leave `nms`" in message


@pytest.mark.parametrize("target", [11, 12, 23, 24])
def test_older_and_newer_opsets_are_converted(tmp_path, target):
    path = segmentation_export(tmp_path / "m.onnx", metadata={"names": "{0: 'a', 1: 'b', 2: 'c'}"})
    model = onnx.load(path)
    if target < 13:  # Split takes its sizes as an attribute there
        split = next(node for node in model.graph.node if node.op_type == "Split")
        del split.input[1]
        split.attribute.append(helper.make_attribute("split", [4, 3, 32]))
        for node in model.graph.node:
            if node.op_type == "Reshape":  # and allowzero is not there yet
                del node.attribute[:]
        model.opset_import[0].version = target
    else:
        model = version_converter.convert_version(model, target)
    onnx.save(model, path)
    export = load_export(path)
    graph = export.model
    assert export.opset == target
    assert graph.opset_import[0].version in WORKING_OPSETS
    assert export.class_names == ("a", "b", "c")
    blob = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    expected, found = (
        ort.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"images": blob})
        for source in (str(path), graph.SerializeToString())
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [9, 99])
def test_wrong_opset(tmp_path, opset):
    message = refused(changed(tmp_path, lambda model: setattr(model.opset_import[0], "version", opset)))
    assert f"opset {opset}" in message
    assert "yolo export model=best.pt format=onnx opset=17" in message


def turn_nodes(model):
    """The nodes in reverse, as converters to half precision may leave them: not sorted."""
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def test_half_precision_is_promoted_in_any_order_of_nodes(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx")
    model = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    turn_nodes(model)
    onnx.save(model, path)
    export = load_export(path)
    assert export.is_half
    onnx.checker.check_model(export.model)


def test_nodes_in_any_order_are_sorted(tmp_path):
    path = changed(tmp_path, turn_nodes)
    graph = load_export(path).model
    onnx.checker.check_model(graph)
    assert len(graph.graph.node) == len(onnx.load(path).graph.node)


def test_a_quantized_export(tmp_path, networks):
    onnx.save(networks.quantized, tmp_path / "m.onnx")
    message = refused(tmp_path / "m.onnx")
    assert "quantized already" in message
    assert "DequantizeLinear" in message
    assert "without quantize=8" in message


@pytest.mark.parametrize(("value", "words"), [(np.nan, "1 NaN"), (np.inf, "1 infinite")])
def test_weights_that_are_no_numbers(tmp_path, value, words):
    def spoil(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "head8.weight")
        values = numpy_helper.to_array(tensor).copy()
        values[0, 0] = value
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    message = refused(changed(tmp_path, spoil))
    assert "'head8.weight'" in message
    assert words in message


@pytest.mark.parametrize(
    ("metadata", "say", "never"),
    [
        ({"end2end": "True", "version": "8.4.0"}, "update it", "end2end=False"),
        ({"end2end": "True", "version": "8.4.141"}, "format=onnx end2end=False", "with nms=False"),
        ({"end2end": "True", "version": "8.4.142"}, "leave `nms` and `end2end` out", "end2end=False"),
        ({"end2end": "True", "version": "8.4.190"}, "nms=False selects the end-to-end head", "end2end=False"),
        ({"end2end": "True"}, "8.4.142 or newer: leave `nms`", "with nms=False"),
    ],
)
def test_advice_for_end_to_end_exports_fits_the_version(metadata, say, never):
    message = advice_without_suppression(metadata)
    assert say in message
    assert never not in message


@pytest.mark.parametrize(
    ("version", "say"), [("8.2.103", "with nms=False"), ("8.3.200", "with nms=False"), ("8.4.190", "leave `nms`")]
)
def test_advice_for_suppression_inside_fits_the_version(tmp_path, version, say):
    path = with_suppression(tmp_path, {"end2end": "False", "version": version})
    assert say in refused(path)


def test_every_file_of_a_model_counts(tmp_path):
    alone = load_export(segmentation_export(tmp_path / "alone.onnx"))
    assert alone.sha256 == hashlib.sha256((tmp_path / "alone.onnx").read_bytes()).hexdigest()
    path = tmp_path / "m.onnx"
    onnx.save(
        onnx.load(tmp_path / "alone.onnx"), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0
    )
    before = load_export(path)
    assert set(before.files) == {"m.onnx", "m.onnx.data"}
    data = bytearray((tmp_path / "m.onnx.data").read_bytes())
    data[100:104] = np.float32(0.25).tobytes()
    (tmp_path / "m.onnx.data").write_bytes(data)
    after = load_export(path)
    assert after.files["m.onnx"] == before.files["m.onnx"]
    assert after.sha256 != before.sha256


@pytest.mark.parametrize("location", ["../outside.data", "/etc/hostname"])
def test_weights_outside_the_folder_are_refused(tmp_path, location):
    (tmp_path / "outside.data").write_bytes(bytes(1 << 16))
    (tmp_path / "model").mkdir()
    path = segmentation_export(tmp_path / "model" / "m.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    assert "not a readable ONNX model" in refused(path)


def test_dynamic_input_size_asks_for_one(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx", batch=None)
    assert "--input-size" in refused(path)
    assert load_export(path, input_size=(64, 64)).input_size == (64, 64)


def test_input_size_that_contradicts_the_export(tmp_path):
    assert "fixed at 64x64" in refused(segmentation_export(tmp_path / "m.onnx"), input_size=(96, 96))


@pytest.mark.parametrize(("text", "expected"), [("YOLOv8n-seg", "yolov8n-seg"), ("a b/c", "a-b-c"), ("é!", "model")])
def test_slug(text, expected):
    assert slug(text) == expected
