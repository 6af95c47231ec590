import json

import cv2
import numpy as np
import pytest

from builder.datasets import VerificationSet
from builder.errors import CalibrationError
from builder.settings import Gate
from builder.verification import compare, mask_map, sample_warnings
from pipeline import rle
from pipeline.postprocess import ImageSegmentation

HEIGHT, WIDTH = 80, 100


def image(*instances):
    """Instances of (left, top, right, bottom, score, class); masks fill the boxes."""
    boxes = np.array([instance[:4] for instance in instances], np.float32).reshape(-1, 4)
    masks = []
    for left, top, right, bottom, *_ in instances:
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[top:bottom, left:right] = True
        masks.append(rle.encode(mask))
    scores = np.array([instance[4] for instance in instances], np.float32)
    classes = np.array([instance[5] for instance in instances], np.int32)
    return ImageSegmentation(boxes, scores, classes, masks, HEIGHT, WIDTH)


ONE = (10, 10, 50, 50, 0.9, 0)
TWO = (60, 20, 90, 60, 0.8, 1)


LOW = (60, 20, 90, 60, 0.1, 1)
TWIN = (11, 10, 51, 50, 0.6, 0)


def test_equal_results():
    result = compare([image(ONE, TWO), image()], [image(ONE, TWO), image()], 0.25)
    assert (result.f1, result.mask_iou, result.score_difference, result.matched) == (1, 1, 0, 2)
    assert result.failures(Gate(f1=1, mask_iou=1)) == []


@pytest.mark.parametrize(
    ("reference", "found", "f1", "matched"),
    [
        pytest.param([ONE, TWO], [ONE], 2 / 3, 1, id="missing"),
        pytest.param([ONE], [ONE, TWO], 2 / 3, 1, id="surplus"),
        pytest.param([ONE], [(*ONE[:5], 1)], 0, 0, id="another class"),
        pytest.param([ONE, LOW], [ONE], 1, 1, id="below the threshold"),
        pytest.param([ONE], [ONE, TWIN], 2 / 3, 1, id="matched once"),
    ],
)
def test_detections_are_counted(reference, found, f1, matched):
    result = compare([image(*reference)], [image(*found)], 0.25)
    assert (result.f1, result.matched) == (pytest.approx(f1), matched)


def test_shifted_boxes_and_scores():
    shifted = (14, 10, 54, 50, 0.7, 0)
    result = compare([image(ONE)], [image(shifted)], 0.25)
    assert result.f1 == 1
    assert result.mask_iou == pytest.approx(36 / 44)
    assert result.score_difference == pytest.approx(0.2)
    (failure,) = result.failures(Gate(f1=0.9, mask_iou=0.95))
    assert failure == "mask IoU 0.8182 < 0.95"


def test_two_empty_masks_are_the_same():
    empty = ImageSegmentation(
        np.array([[1, 1, 9, 9]], np.float32),
        np.array([0.9], np.float32),
        np.array([0], np.int32),
        [rle.encode(np.zeros((HEIGHT, WIDTH), bool))],
        HEIGHT,
        WIDTH,
    )
    assert compare([empty], [empty], 0.25).mask_iou == 1


GATE = Gate(f1=0.97, mask_iou=0.95)
"""That of int8, as shipped."""


def scene(*counts, lost=(), shift=0):
    """Images of one instance each: counts[i] instances of class i; those of the classes ``lost`` are not found."""
    found = []
    for class_id, count in enumerate(counts):
        instance = (10, 10, 50, 50, 0.9, class_id)
        moved = (10 + shift, 10, 50 + shift, 50, 0.9, class_id) if class_id in lost and shift else None
        here = [instance] if class_id not in lost else [moved] if moved else []
        found += [image(*here) for _ in range(count)]
    return found


@pytest.mark.parametrize("counts", [(400, 20), (95, 5), (38, 2), (200, 20, 3), (400, 0, 3)])
def test_a_class_that_is_lost_does_not_pass(counts):
    last = len(counts) - 1
    result = compare(scene(*counts), scene(*counts, lost=(last,)), 0.25, ["van", "car", "bus"])
    assert result.f1 >= 0.97
    assert result.mask_iou == 1
    (failure,) = result.failures(GATE)
    assert repr(["van", "car", "bus"][last]) in failure
    assert f"of {counts[last]} found" in failure
    assert result.missing(GATE) > 0.5


def test_a_class_whose_masks_are_bad_does_not_pass():
    result = compare(scene(400, 12), scene(400, 12, lost=(1,), shift=6), 0.25, ["van"])
    assert result.mask_iou > 0.95
    assert result.failures(GATE) == ["class 'class_1': mask IoU 0.7391 < 0.9"]


def test_a_class_that_is_made_up_does_not_pass():
    made_up = (60, 20, 90, 60, 0.8, 1)
    found = [image(ONE, made_up)] * 12 + [image(ONE)] * 488
    (failure,) = compare([image(ONE)] * 500, found, 0.25).failures(GATE)
    assert "class 'class_1': F1 0.0000 < 0.87 (0 of 0 found, 12 surplus)" in failure


def test_one_or_two_instances_are_no_class_gate():
    assert compare(scene(200, 2), scene(200, 2, lost=(1,)), 0.25).failures(GATE) == []
    assert compare(scene(400, 12), scene(400, 10) + scene(0, 2, lost=(1,)), 0.25).failures(GATE) == []


def test_the_worst_classes_come_first_and_many_are_counted():
    counts = [200] + [10] * 8
    result = compare(scene(*counts), scene(*counts, lost=range(3, 9)), 0.25)
    failures = result.failures(GATE)
    assert failures[0].startswith("F1 0.")
    assert failures[-1] == "3 more conditions of single classes"
    assert len(result.classes) == 9


@pytest.mark.parametrize(("images", "each", "weak"), [(20, 3, False), (19, 3, True), (24, 2, True), (25, 2, False)])
def test_weak_evidence_is_called_so(images, each, weak):
    found = [image(*[(10 * i, 10, 10 * i + 8, 50, 0.9, 0) for i in range(each)])] * images
    warnings = sample_warnings(compare(found, found, 0.25))
    assert bool(warnings) == weak
    if weak:
        assert f"{images} image(s) with {images * each} instance(s)" in warnings[0]


def test_the_class_gates_follow_the_whole_where_left_out():
    assert (GATE.class_f1, GATE.class_mask_iou) == (0.87, 0.9)
    assert Gate(f1=0, mask_iou=0.02).class_mask_iou == 0
    assert Gate(f1=0.5, mask_iou=0.5, class_f1=0.5).class_f1 == 0.5


def test_a_reference_that_finds_nothing_passes_no_gate():
    assert "finds nothing" in compare([image()], [image()], 0.25).failures(Gate(f1=0, mask_iou=0))[0]


def coco_file(path, *annotations):
    names = sorted({name for name, *_ in annotations})
    document = {
        "images": [{"id": 7 + i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names)],
        "categories": [{"id": 1, "name": "a"}, {"id": 5, "name": "b"}],
        "annotations": [
            {
                "id": index + 1,
                "image_id": 7 + names.index(name),
                "category_id": category,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            }
            for index, (name, left, top, right, bottom, category) in enumerate(annotations)
        ],
    }
    path.write_text(json.dumps(document))
    return path


def test_map_of_known_results(tmp_path):
    annotations = coco_file(tmp_path / "a.json", ("x.png", 10, 10, 50, 50, 1), ("x.png", 60, 20, 90, 60, 5))
    paths = [tmp_path / "x.png"]
    assert mask_map([image(ONE, TWO)], paths, annotations) == pytest.approx((1, 1), abs=1e-3)
    assert mask_map([image(ONE)], paths, annotations) == pytest.approx((0.5, 0.5), abs=1e-3)
    # 36 of 44 columns agree: right at IoU 0.5 to 0.8, wrong at 0.85 and above.
    shifted = (14, 10, 54, 50, 0.9, 0)
    assert mask_map([image(shifted, TWO)], paths, annotations) == pytest.approx((0.85, 1), abs=1e-3)
    assert mask_map([image()], paths, annotations) == (0, 0)


def test_annotations_of_other_images_are_refused(tmp_path):
    annotations = coco_file(tmp_path / "a.json", ("x.png", 10, 10, 50, 50, 1))
    with pytest.raises(CalibrationError, match=r"lacks 1 of the images, y\.png"):
        mask_map([image(ONE)], [tmp_path / "y.png"], annotations)
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(CalibrationError, match="not a COCO instances file"):
        mask_map([image(ONE)], [tmp_path / "x.png"], tmp_path / "b.json")


def test_calibration_images_are_left_out_by_content(tmp_path):
    for name, value in (("a", 1), ("b", 2), ("copy_of_a", 1)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((4, 4, 3), value, np.uint8))
    found = VerificationSet.of(sorted(tmp_path.glob("*.png")), calibration=[tmp_path / "a.png"])
    assert [path.name for path in found.paths] == ["b.png"]
