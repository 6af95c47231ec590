"""``python -m builder inspect`` says what a file is, from what it does."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builder.__main__ import main
from builder.errors import ExportError
from builder.export import load_export
from builder.inspection import examine
from builder.source_check import check_source
from builder.surgery import graft_ends, make_batch_dynamic
from tests.exports import segmentation_export
from tests.families import end_to_end_export, names, objectness_export, suppressed_export

SIZE = {"height": 64, "width": 96}


def found_in(path, **options):
    found = examine(path, options.get("input_size"), options.get("family"), options.get("names", ()), 2)
    return found, {row.question: row.answer for row in found.evidence}


@pytest.mark.parametrize(
    ("make", "family", "boxes", "objectness", "suppression"),
    [
        (segmentation_export, "yolo", "centers", "no", "not inside"),
        (objectness_export, "yolov5", "centers", "yes", "not inside"),
        (end_to_end_export, "end-to-end", "corners", "no", "none needed"),
        (suppressed_export, "suppressed", "corners", "no", "inside: confidence 0.6, iou 0.5"),
    ],
)
def test_families_are_recognized(tmp_path, make, family, boxes, objectness, suppression):
    found, answers = found_in(make(tmp_path / "m.onnx", **SIZE))
    assert found.served, found.refusal
    assert found.family == family
    assert answers["boxes"].startswith(boxes)
    assert answers["objectness"].startswith(objectness)
    assert answers["suppression"].startswith(suppression)
    assert answers["unit of boxes"].startswith("pixels")
    assert answers["scores"] == "in [0, 1]"


def test_logits_and_shares_are_seen(tmp_path):
    found, answers = found_in(segmentation_export(tmp_path / "m.onnx", sigmoid=False, **SIZE))
    assert answers["scores"].startswith("logits")
    assert not found.served
    assert "Sigmoid" in found.refusal
    path = segmentation_export(tmp_path / "n.onnx", **SIZE)
    model = onnx.load(path)
    factor = next(tensor for tensor in model.graph.initializer if tensor.name == "factor")
    factor.CopyFrom(numpy_helper.from_array(np.array(0.1, np.float32), "factor"))
    onnx.save(model, path)
    found, answers = found_in(path)
    assert answers["unit of boxes"].startswith("shares")
    assert "normalized" in found.refusal


def test_a_value_too_many_asks_for_the_family(tmp_path):
    """Objectness and two classes look like three classes: only the user knows."""
    path = segmentation_export(tmp_path / "m.onnx", classes=3, metadata=names(2), **SIZE)
    found, _ = found_in(path)
    assert "say so with --family yolo" in found.refusal
    assert found_in(path, family="yolo")[0].served


def test_boxes_that_are_corners_are_refused(tmp_path):
    """The shape is that of centers and sizes; the place of the boxes around their anchors says otherwise."""
    path = segmentation_export(tmp_path / "m.onnx", batch=None, **SIZE)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)

    def checked():
        export = load_export(path, input_size=(64, 96))
        network = make_batch_dynamic(export)
        return check_source(export, network, graft_ends(network, export), images)

    model = onnx.load(path)
    join = next(node for node in model.graph.node if node.output[0] == "output0")
    for name, value in (("halves", np.array([2, 2])), ("enough", np.float32(1)), ("nothing", np.float32(0))):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    at = list(model.graph.node).index(join)
    # The points of the grid are the centers of the boxes here, and what the network gives their half sizes.
    added = [
        helper.make_node("Split", ["boxes", "halves"], ["at", "wide"], name="cut", axis=1),
        helper.make_node("Mul", ["wide", "enough"], ["narrow"], name="narrow"),
        helper.make_node("Split", ["grid", "halves"], ["one_point", "zero"], name="cut_grid", axis=1),
        helper.make_node("Mul", ["wide", "nothing"], ["zeros"], name="zeros"),
        helper.make_node("Add", ["zeros", "one_point"], ["point"], name="point"),
        helper.make_node("Concat", ["point", "narrow"], ["centered"], name="centered", axis=1),
        helper.make_node("Sub", ["point", "narrow"], ["first"], name="first"),
        helper.make_node("Add", ["point", "narrow"], ["second"], name="second"),
        helper.make_node("Concat", ["first", "second"], ["cornered"], name="cornered", axis=1),
    ]
    for offset, node in enumerate(added):
        model.graph.node.insert(at + offset, node)
    for boxes, refused in (("centered", False), ("cornered", True)):
        join = next(node for node in model.graph.node if node.output[0] == "output0")
        join.input[0] = boxes
        onnx.save(model, path)
        if refused:
            with pytest.raises(ExportError, match=r"boxes are corners \(x1, y1, x2, y2\)"):
                checked()
        else:
            assert checked().box_max_px < 0.01


@pytest.mark.parametrize("operator", ["Div", "Mul"])
def test_a_file_that_divides_by_255_itself_is_refused(tmp_path, operator):
    path = segmentation_export(tmp_path / "m.onnx", **SIZE)
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["scaled" if name == "images" else name for name in node.input]
    value = np.float32(255 if operator == "Div" else 1 / 255)
    model.graph.initializer.append(numpy_helper.from_array(np.array(value), "by"))
    model.graph.node.insert(0, helper.make_node(operator, ["images", "by"], ["scaled"], name="preprocess"))
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"scales its input by 1/255 itself \(node 'preprocess'"):
        load_export(path)


def test_the_command_prints_a_table_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    metadata = {**names(3), "task": "segment", "imgsz": "[64, 96]", "version": "8.4.190"}
    path = segmentation_export(tmp_path / "m.onnx", batch=None, metadata=metadata, **SIZE)
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "'thing 0', 'thing 1', 'thing 2'" in shown
    assert "64x96" in shown  # the metadata's size
    assert "(--family yolo): can be built" in shown
    pose = segmentation_export(tmp_path / "p.onnx", outputs=("output0",), metadata={"task": "pose"})
    assert main(["inspect", str(pose), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["served"]
    assert "this is a pose export" in found["refusal"]
    assert found["facts"]["metadata task"] == "pose"
    assert TensorProto.DataType.Name(TensorProto.FLOAT) in found["facts"]["inputs"]
    assert main(["inspect", str(tmp_path / "none.onnx")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_what_is_no_onnx_file_is_said(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"hello, I am a text file")
    assert "not a readable ONNX model" in found_in(tmp_path / "m.onnx")[0].refusal
