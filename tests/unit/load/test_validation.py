import numpy as np
import pytest

from load.payloads import Payload
from load.validation import fault_of
from pipeline.mask_formats import encode_masks
from pipeline.masks import MaskRuns
from pipeline.result import Segmentation

HEIGHT, WIDTH = 40, 60
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[5:20, 10:30] = 1


def fault(*masks, mask_format="rle", expected=2, tolerance=0.0):
    """Of an answer with these masks; what the client refuses to read is tested there."""
    boxes = np.tile(np.array([10, 5, 30, 20], np.float32), (len(masks), 1))
    scores, classes = np.full(len(masks), 0.5, np.float32), np.zeros(len(masks), np.int32)
    result = Segmentation(boxes, scores, classes, masks, mask_format, (HEIGHT, WIDTH))
    return fault_of(result, Payload("card", b"", (HEIGHT, WIDTH), expected), tolerance)


def masks_of(image, mask_format="rle"):
    return encode_masks([MaskRuns.from_image(image)] * 2, mask_format)


@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png", "none"])
def test_a_right_answer_has_no_fault(mask_format):
    assert fault(*masks_of(MASK, mask_format), mask_format=mask_format) is None


@pytest.mark.parametrize(
    ("masks", "mask_format", "expected"),
    [
        (masks_of(0 * MASK), "rle", "card: mask 0 is empty"),
        (masks_of(0 * MASK, "polygon"), "polygon", "card: mask 0 is empty"),
        ((b"[[0,0,9]]", b""), "polygon", "card: mask 0 does not decode"),
        ((b"no", b"png"), "png", "card: mask 0 does not decode"),
    ],
)
def test_a_wrong_mask_is_reported(masks, mask_format, expected):
    assert fault(*masks, mask_format=mask_format).startswith(expected)


@pytest.mark.parametrize(
    ("expected", "tolerance", "right"),
    [(2, 0.0, True), (1, 0.25, False), (3, 0.25, False), (3, 0.4, True), (1, 1.0, True), (0, 9.0, False), (None, 0, 1)],
)
def test_the_number_of_detections(expected, tolerance, right):
    assert (fault(*masks_of(MASK), expected=expected, tolerance=tolerance) is None) == right


def test_nothing_where_something_is_expected_is_wrong():
    assert fault(tolerance=0.25) == "card: 0 detections; expected 2"
    assert fault(expected=0) is None
