import time

import numpy as np
import pytest

from pipeline.decode import Detections, may_be_cut
from pipeline.errors import ParameterError
from pipeline.letterbox import Geometry
from pipeline.mask_work import check_mask_work
from pipeline.parameters import RequestParameters
from pipeline.postprocess import segmentation_of

LARGE = Geometry.fit(6000, 8160, 640, 640)


def found(count, box=(100, 100, 8000, 5900)):
    boxes = np.tile(np.array([box], np.float32), (count, 1))
    return Detections(
        boxes, np.ones(count, np.float32), np.zeros(count, np.int32), np.ones((count, 4), np.float32) / 100
    )


@pytest.mark.parametrize("mask_format", ["png", "png_base64", "polygon"])
def test_too_much_work_is_refused_with_what_would_be_allowed(mask_format):
    parameters = RequestParameters(mask_format=mask_format)
    with pytest.raises(
        ParameterError, match=r"1000 detections as '\w+', in an image of 8160x6000.*allowed: 1.5 s"
    ) as no:
        check_mask_work([found(1000).boxes], [LARGE], parameters, 1.5)
    fitting = int(str(no.value).split("max_detections to ")[1].split()[0])
    assert 0 < check_mask_work([found(fitting).boxes], [LARGE], parameters, 1.5) <= 1.5
    with pytest.raises(ParameterError):
        check_mask_work([found(fitting + 1).boxes], [LARGE], parameters, 1.5)


def test_the_images_of_a_request_count_together():
    parameters = RequestParameters(mask_format="png")
    alone = check_mask_work([found(20).boxes], [LARGE], parameters, 9.0)
    assert check_mask_work([found(20).boxes] * 8, [LARGE] * 8, parameters, 9.0) == pytest.approx(8 * alone)
    with pytest.raises(ParameterError, match=r"images of up to 8160x6000.*fewer images"):
        check_mask_work([found(20).boxes] * 8, [LARGE] * 8, parameters, 7 * alone)


@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png"])
def test_ordinary_work_is_allowed(mask_format):
    cards = found(36, (100, 100, 700, 600))
    where = Geometry.fit(3000, 4000, 640, 640)
    assert check_mask_work([cards.boxes] * 8, [where] * 8, RequestParameters(mask_format=mask_format), 1.5) < 1.5
    assert check_mask_work([found(0).boxes], [where], RequestParameters(mask_format=mask_format), 1.5) == 0
    assert check_mask_work([found(1000).boxes], [LARGE], RequestParameters(mask_format="none"), 1e-9) == 0


@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png"])
def test_the_estimate_is_near_the_time_taken(mask_format):
    parameters = RequestParameters(mask_format=mask_format)
    rng = np.random.default_rng(0)
    prototypes = np.repeat(np.repeat(rng.standard_normal((4, 20, 20)), 8, 1), 8, 2).astype(np.float16)
    some, where = found(12, (100, 100, 4000, 2900)), Geometry.fit(3000, 4080, 640, 640)
    estimate = check_mask_work([some.boxes], [where], parameters, 9.0)
    taken = []
    for _ in range(3):
        started = time.process_time()
        segmentation_of(some, prototypes, where, parameters)
        taken.append(time.process_time() - started)
    assert estimate / 8 < min(taken) < estimate * 4


def test_candidates_that_were_cut_off_are_noticed():
    rows = np.zeros((5, 6 + 4), np.float32)
    rows[:, 0] = (0.9, 0.8, 0.7, 0.6, 0.5)
    rows[:, 3:5] = 10
    assert may_be_cut(rows, RequestParameters(confidence=0.5))
    assert not may_be_cut(rows, RequestParameters(confidence=0.51))
    assert may_be_cut(rows, RequestParameters(confidence=0.0))
    rows[-1, 0] = 0  # background: nothing is lost
    assert not may_be_cut(rows, RequestParameters(confidence=0.0))
    assert not may_be_cut(rows[:0], RequestParameters())
