import numpy as np
import pytest

from pipeline.decode import decode_candidates
from pipeline.letterbox import Geometry
from pipeline.nms import box_iou, nms
from pipeline.parameters import RequestParameters

GEOMETRY = Geometry.fit(640, 640, 640, 640)


def candidate(score, box, class_id, coefficient=0.0):
    return [score, *box, class_id, *([coefficient] * 32)]


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


@pytest.mark.parametrize("parameters", [RequestParameters(), RequestParameters(max_detections=1)])
@pytest.mark.parametrize("box", [(100, 50, 40, 40), (100, 140, 40, 40)])  # the second overlaps one in the image
def test_a_box_in_the_border_counts_for_nothing(box, parameters):
    geometry = Geometry.fit(320, 640, 640, 640)  # 160 rows of border above
    rows = np.array([candidate(0.9, box, 0), candidate(0.8, (100, 145, 40, 40), 0)], np.float32)
    found = decode_candidates(rows, geometry, parameters)
    np.testing.assert_allclose(found.scores, [0.8])


def one_at_a_time(boxes, class_ids, threshold, limit):
    kept = []
    for index in range(len(boxes)):
        same = [other for other in kept if class_ids[other] == class_ids[index]]
        if len(kept) < limit and not any(
            box_iou(boxes[other], boxes[index : index + 1])[0] > threshold for other in same
        ):
            kept.append(index)
    return kept


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("threshold", [0.0, 0.45, 1.0])
@pytest.mark.parametrize("limit", [1, 7, 300])
def test_equals_the_definition(count, threshold, limit):
    rng = np.random.default_rng(count)
    corners = rng.choice(rng.random((max(1, count // 8), 2)) * 500, count) + rng.normal(0, 8, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (count, 2))], axis=1).astype(np.float32)
    class_ids = rng.integers(0, 3, count).astype(np.int32)
    kept = nms(boxes, class_ids, threshold, limit)
    assert kept.dtype == np.intp
    assert kept.tolist() == one_at_a_time(boxes, class_ids, threshold, limit)
