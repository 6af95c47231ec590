import numpy as np
import pytest

from pipeline.decode import decode_candidates
from pipeline.letterbox import Geometry
from pipeline.nms import box_iou, nms
from pipeline.parameters import RequestParameters

GEOMETRY = Geometry.fit(640, 640, 640, 640)


def candidate(score, box, class_id, coefficient=0.0):
    return [score, *box, class_id, *([coefficient] * 32)]


def brute_force_nms(boxes, class_ids, threshold):
    kept = []
    for index in range(len(boxes)):
        suppressed = any(
            class_ids[index] == class_ids[other] and box_iou(boxes[other], boxes[index : index + 1])[0] > threshold
            for other in kept
        )
        if not suppressed:
            kept.append(index)
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_nms_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    corner = rng.random((200, 2)) * 100
    boxes = np.concatenate([corner, corner + 10 + rng.random((200, 2)) * 40], axis=1).astype(np.float32)
    classes = rng.integers(0, 3, 200).astype(np.int32)
    assert nms(boxes, classes, 0.45, 1000).tolist() == brute_force_nms(boxes, classes, 0.45)
    assert nms(boxes, classes, 0.45, 7).tolist() == brute_force_nms(boxes, classes, 0.45)[:7]


def test_iou_of_known_boxes():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(box_iou(boxes[0], boxes), [1, 1 / 3, 0, 0])
    assert box_iou(boxes[3], boxes[3:])[0] == 0


def test_nothing_above_the_threshold():
    found = decode_candidates(np.zeros((10, 38), np.float32), GEOMETRY, RequestParameters())
    assert found.boxes.shape == (0, 4)
    assert found.coefficients.shape == (0, 32)


def test_threshold_class_filter_suppression_and_bound():
    rows = np.array(
        [
            candidate(0.9, (100, 100, 50, 50), 0, 1),
            candidate(0.8, (102, 100, 50, 50), 0, 2),  # suppressed by the first
            candidate(0.7, (102, 100, 50, 50), 1, 3),  # another class: stays
            candidate(0.6, (300, 300, 20, 40), 2, 4),
            candidate(0.2, (500, 500, 20, 40), 2, 5),  # below the threshold
        ],
        np.float32,
    )
    found = decode_candidates(rows, GEOMETRY, RequestParameters())
    assert found.class_ids.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.boxes[2], [290, 280, 310, 320])
    assert found.coefficients[:, 0].tolist() == [1, 3, 4]
    only = decode_candidates(rows, GEOMETRY, RequestParameters(classes=frozenset({2}), confidence=0.1))
    np.testing.assert_allclose(only.scores, [0.6, 0.2])
    assert len(decode_candidates(rows, GEOMETRY, RequestParameters(max_detections=2)).scores) == 2


def test_a_box_in_the_border_is_dropped():
    geometry = Geometry.fit(320, 640, 640, 640)  # 160 rows of border above
    rows = np.array([candidate(0.9, (100, 50, 40, 40), 0), candidate(0.8, (100, 200, 40, 40), 0)], np.float32)
    found = decode_candidates(rows, geometry, RequestParameters())
    np.testing.assert_allclose(found.scores, [0.8])
