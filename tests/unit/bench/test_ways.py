"""What the benchmarks compare must give the same masks, or the comparison means nothing."""

import numpy as np
import pytest

from bench import plain
from bench.drive import encoded_request
from bench.synthetic import scene
from pipeline import contract, rle
from pipeline.parameters import RequestParameters
from pipeline.postprocess import postprocess


@pytest.mark.parametrize("instances", [1, 10, 40])
@pytest.mark.parametrize("size", [(480, 640), (700, 420)])
def test_scene_plain_way_and_this_project_agree(instances, size):
    outputs = scene(instances, *size)
    ours = postprocess(outputs.candidates, outputs.prototypes, outputs.geometry, RequestParameters())
    theirs = plain.finish(outputs.detections, outputs.wide_prototypes, outputs.geometry)
    assert len(ours.scores) == len(theirs.scores) == instances
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)
    for one, other in zip(ours.masks, theirs.masks, strict=True):
        mask, whole = rle.decode(one, *size), rle.decode(other, *size)
        union = (mask | whole).sum()
        assert union == 0 or (mask & whole).sum() / union > 0.95


def test_exact_masks_are_what_this_project_computes():
    outputs = scene(10, 300, 500)
    ours = postprocess(outputs.candidates, outputs.prototypes, outputs.geometry, RequestParameters())
    rows = outputs.candidates[outputs.candidates[:, 0] >= 0.25]
    for box, score, counts in zip(ours.boxes, ours.scores, ours.masks, strict=True):
        weights = rows[rows[:, 0] == score][0, contract.FIRST_COEFFICIENT_COLUMN :]
        (exact,) = plain.exact_masks(outputs.prototypes, weights[None], box[None], outputs.geometry)
        mask = rle.decode(counts, 300, 500)
        assert (mask & exact).sum() >= 0.999 * (mask | exact).sum()


def test_a_request_holds_its_images():
    request = encoded_request("segment_int8", [b"one", b"three"])
    assert list(request.inputs[0].shape) == [2, 1]
    assert request.raw_input_contents[0] == b"\x03\0\0\0one\x05\0\0\0three"
