"""Each family is recognized, served as its own file answers, and refused where it is not what it seems."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from rich.console import Console

from base.progress import Steps
from builder.build import build
from builder.errors import ExportError
from builder.export import load_export
from builder.families import FAMILIES
from builder.families.end_to_end import standard_of_rows
from builder.settings import load_settings
from builder.source import SourceNetwork
from builder.source_check import check_source
from builder.surgery import graft_ends, make_batch_dynamic
from repository.errors import RepositoryError
from repository.store import ModelRepository, read_config
from serving.preflight import preflight
from tests.exports import segmentation_export
from tests.families import (
    COEFFICIENTS,
    end_to_end_export,
    objectness_export,
    old_end_to_end_export,
    query_export,
    suppressed_export,
)

SIZE = {"height": 64, "width": 96}
IMAGES = np.random.default_rng(3).integers(0, 256, (4, 64, 96, 3), dtype=np.uint8)


def checked(path, **options):
    """An export, and how far what is served differs from it."""
    export = load_export(path, **options)
    network = make_batch_dynamic(export)
    return export, check_source(export, network, graft_ends(network, export), IMAGES)


@pytest.mark.parametrize(
    ("make", "key", "rows"),
    [(segmentation_export, "yolo", 126), (end_to_end_export, "end-to-end", 30), (objectness_export, "yolov5", 378)],
)
@pytest.mark.parametrize("classes", [1, 3])
def test_served_as_the_file_answers(tmp_path, make, key, rows, classes):
    export, found = checked(make(tmp_path / "m.onnx", classes=classes, **SIZE))
    assert export.layout.family.key == key
    assert (export.num_classes, export.num_coefficients, export.num_anchors) == (classes, COEFFICIENTS, rows)
    assert found.matched > 100
    assert found.box_max_px < 0.01
    assert found.score_max < 1e-5


@pytest.mark.parametrize("classes", [1, 3, 4])  # as many logits as sides of a box: recognized by their order
def test_queries_are_served_as_the_file_answers(tmp_path, classes):
    """Normalized and stretched images, the best pairs of query and class, and masks that need no prototypes."""
    export, found = checked(query_export(tmp_path / "m.onnx", classes=classes, **SIZE), input_size=(64, 96))
    assert export.layout.family.key == "rf-detr"
    assert (export.num_classes, export.num_coefficients, export.num_anchors) == (classes, 1, 12)
    assert export.stretch
    assert found.matched >= 12 * len(IMAGES)
    assert found.box_max_px < 0.01
    assert found.score_max < 1e-5


def test_queries_of_one_batch_are_refused_with_the_command(tmp_path):
    path = query_export(tmp_path / "m.onnx", **SIZE)
    model = onnx.load(path)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 64, 96), strict=True):
        dim.dim_value = size
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"RF-DETR-seg is made for 1 image.*export\(dynamic_batch=True\)"):
        load_export(path)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_choice_of_older_end_to_end_heads_is_made_again_for_any_batch(tmp_path, batch, classes):
    export, found = checked(old_end_to_end_export(tmp_path / "m.onnx", batch=batch, classes=classes, **SIZE))
    assert export.layout.family.key == "end-to-end"
    assert export.detections_name == "joined"
    assert export.num_classes == classes  # of the head's channels: no names are needed
    assert not [node for node in export.model.graph.node if node.op_type in ("TopK", "Tile", "Mod")]
    assert found.box_max_px < 0.01
    assert found.score_max < 1e-5
    scores = SourceNetwork(export).run(IMAGES)[0][:, 4 : 4 + classes]
    if classes > 1:  # some anchors give several classes
        assert any(
            len(np.unique(boxes, axis=0)) < 30
            for boxes in SourceNetwork(export).run(IMAGES)[0][:, :4].transpose(0, 2, 1)
        )
    assert (scores.max(axis=1) > 0).all()


def test_suppression_is_cut_and_its_thresholds_read(tmp_path):
    export, found = checked(suppressed_export(tmp_path / "m.onnx", confidence=0.65, iou=0.5, rows=90, **SIZE))
    assert export.layout.family.key == "suppressed"
    assert export.layout.limits == pytest.approx({"least_confidence": 0.65, "most_iou": 0.5, "most_detections": 90})
    assert "confidence 0.65 or more, iou 0.5 or less, at most 90" in export.notes[0]
    assert not [node for node in export.model.graph.node if node.op_type in ("NonMaxSuppression", "NonZero")]
    scores = SourceNetwork(export).run(IMAGES)[0][:, 4:7].max(axis=1)
    assert 4 < (scores > 0).sum() < 4 * 90  # the file's own suppression leaves some, and not all
    assert found.box_max_px < 0.01


def test_suppression_over_all_classes_is_refused(tmp_path):
    path = suppressed_export(tmp_path / "m.onnx", agnostic=True, **SIZE)
    with pytest.raises(ExportError, match=r"different classes \(agnostic_nms=True\).*Export again without it"):
        load_export(path)


def test_thresholds_that_were_read_wrongly_do_not_pass(tmp_path):
    """The file runs as it is: a threshold that the builder mistakes shows as detections that one side lacks."""
    export = load_export(suppressed_export(tmp_path / "m.onnx", iou=0.5, **SIZE))
    export.layout.limits["most_iou"] = 0.9
    network = make_batch_dynamic(export)
    with pytest.raises(ExportError, match=r"gives boxes|no anchor"):
        check_source(export, network, graft_ends(network, export), IMAGES)


def test_rows_without_class_names_need_them(tmp_path):
    path = end_to_end_export(tmp_path / "m.onnx", metadata={}, **SIZE)
    with pytest.raises(ExportError, match="--class-names"):
        load_export(path)
    export = load_export(path, names=("a", "b", "c"))
    assert export.class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("order", "say"),
    [([0, 1, 2, 3, 5, 4], "not always the number of a class"), ([2, 3, 0, 1, 4, 5], "third and fourth")],
)
def test_rows_in_another_order_are_refused(order, say):
    row = [10.0, 10, 50, 40, 0.9, 1]
    standard = standard_of_rows(np.array([[[*row, 7.0]]]), 2)
    assert standard.ravel().tolist() == [30, 25, 40, 30, 0, 0.9, 7]
    FAMILIES["end-to-end"].check(standard, 2, 64, 64)
    with pytest.raises(ExportError, match=say):
        standard = standard_of_rows(np.array([[[*(row[index] for index in order), 7.0]]]), 2)
        FAMILIES["end-to-end"].check(standard, 2, 64, 64)


def test_a_family_that_does_not_fit_is_named(tmp_path):
    path = segmentation_export(tmp_path / "m.onnx", **SIZE)
    with pytest.raises(ExportError, match="--family yolov5: the outputs"):
        load_export(path, family="yolov5")
    assert load_export(path, family="yolo").layout.family is FAMILIES["yolo"]


@pytest.mark.parametrize(
    ("task", "say"),
    [("pose", "a pose export"), ("classify", "a classification export"), ("detect", "a detection export")],
)
def test_exports_of_other_tasks_are_named(tmp_path, task, say):
    path = segmentation_export(tmp_path / "m.onnx", outputs=("output0",), metadata={"task": task})
    with pytest.raises(ExportError, match=rf"this is {say}.*yolov8n-seg\.pt"):
        load_export(path)


@pytest.mark.parametrize("keep_io", [True, False])
def test_half_precision_is_promoted_exactly(tmp_path, keep_io):
    path = segmentation_export(tmp_path / "m.onnx", **SIZE)
    half = convert_float_to_float16(onnx.load(path), keep_io_types=keep_io)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in half.graph.initializer}
    onnx.save(half, path)
    export, found = checked(path)
    assert export.is_half
    assert "half precision" in export.notes[0]
    for tensor in export.model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        assert values.dtype != np.float16
        np.testing.assert_array_equal(values, weights[tensor.name])
    assert not [node for node in export.model.graph.node if node.op_type == "Cast"]
    assert found.score_max < 1e-5
    scores = [SourceNetwork(export, as_it_is=plain).run(IMAGES)[0][:, 4:7] for plain in (True, False)]
    assert 0 < np.abs(scores[0] - scores[1]).max() < 4e-3


def test_an_unknown_operator_behind_the_suppression_is_refused(tmp_path):
    path = suppressed_export(tmp_path / "m.onnx", **SIZE)
    model = onnx.load(path)
    last = next(node for node in model.graph.node if node.output[0] == "output0")
    last.output[0] = "rows"
    model.graph.node.append(helper.make_node("Tanh", ["rows"], ["output0"], name="odd"))
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"not as ultralytics builds it.*'odd', operator Tanh"):
        load_export(path)


def test_a_build_writes_what_its_end_allows_of_requests(tmp_path):
    """Into the steps that answer; and no network of another kind of end comes into the same repository."""
    images = tmp_path / "images"
    images.mkdir()
    for index, image in enumerate(IMAGES):
        cv2.imwrite(str(images / f"{index}.png"), image)

    def built(path, repository):
        settings = {"onnx": path, "repository": tmp_path / repository, "precisions": ("fp32",), "top_k": 30}
        verification = {"verification.images": (images,), "verification.confidence": 0.7}
        build(load_settings(None, settings | verification), Steps(Console(quiet=True)))
        return ModelRepository.existing(tmp_path / repository)

    def written(repository, path):
        return {name: value.string_value for name, value in read_config(repository.path / path).parameters.items()}

    plain = segmentation_export(tmp_path / "plain.onnx", **SIZE)
    rows = end_to_end_export(tmp_path / "rows.onnx", **SIZE)
    repository = built(rows, "one")
    for path in ("postprocess/config.pbtxt", "network_fp32/configs/cuda.pbtxt"):
        assert written(repository, path).items() >= {"least_iou": "1", "most_iou": "1"}.items()
    assert "least_iou" not in written(repository, "network_fp32/configs/cpu.pbtxt")
    (manifest,) = repository.manifests("fp32")
    assert manifest.source["family"] == "end-to-end"
    path = repository.path / "postprocess" / "config.pbtxt"
    text = path.read_text()
    assert preflight(repository, "cpu", ("fp32",)).models[0].ready
    path.write_text(text.replace('string_value: "1"', 'string_value: "0.5"'))
    wrong = preflight(repository, "cpu", ("fp32",)).models[0]
    assert "its parameters are {'least_iou': '0.5'" in "\n".join(wrong.lines())
    path.write_text(text)
    assert manifest.verification["iou"] == 1
    onnx_names = onnx.load(plain)
    helper.set_model_props(onnx_names, {"names": "{0: 'thing 0', 1: 'thing 1', 2: 'thing 2'}"})
    onnx.save(onnx_names, plain)
    with pytest.raises(RepositoryError, match="one kind of end"):
        built(plain, "one")
    inside = suppressed_export(tmp_path / "inside.onnx", confidence=0.75, **SIZE)
    repository = built(inside, "two")
    assert float(written(repository, "postprocess/config.pbtxt")["least_confidence"]) == 0.75
    assert repository.manifests("fp32")[0].verification["confidence"] == 0.75
    assert "least_confidence" not in written(built(plain, "three"), "postprocess/config.pbtxt")


def test_weights_beside_a_file_with_suppression_are_read(tmp_path):
    """It runs as it is, too, with its weights."""
    inside = suppressed_export(tmp_path / "inside.onnx", **SIZE)
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(inside), path, save_as_external_data=True, location="m.data", size_threshold=0)
    export, found = checked(path)
    assert set(export.files) == {"m.onnx", "m.data"}
    assert found.matched > 100


def test_weights_of_more_than_two_gigabytes_are_refused(tmp_path, monkeypatch):
    path = segmentation_export(tmp_path / "m.onnx", **SIZE)
    monkeypatch.setattr("builder.export._MOST_BYTES", 10_000)
    with pytest.raises(ExportError, match=r"its weights have 0\.00 GB; allowed: less than 0\.00 GB"):
        load_export(path)
