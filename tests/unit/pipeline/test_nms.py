"""Suppression in blocks against the definition, one box at a time."""

import numpy as np
import pytest

from pipeline.nms import box_iou, nms


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
