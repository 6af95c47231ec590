import numpy as np
import pytest

from load.payloads import Payload
from load.validation import fault_of
from pipeline.mask_formats import encode_masks
from pipeline.masks import MaskRuns
from pipeline.result import Segmentation

HEIGHT, WIDTH = 40, 60
PAYLOAD = Payload("card", b"", (HEIGHT, WIDTH), 2)


def segmentation(mask_format="rle", **changes):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:20, 10:30] = 1
    values = {
        "boxes": np.array([[10, 5, 30, 20], [0, 0, WIDTH, HEIGHT]], np.float32),
        "scores": np.array([0.9, 0.4], np.float32),
        "class_ids": np.zeros(2, np.int32),
        "encoded_masks": tuple(encode_masks([MaskRuns.from_image(mask)] * 2, mask_format)),
        "mask_format": mask_format,
        "image_size": (HEIGHT, WIDTH),
    }
    return Segmentation(**{**values, **changes})


@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png", "none"])
def test_a_right_answer_has_no_fault(mask_format):
    assert fault_of(segmentation(mask_format), PAYLOAD, 0.0) is None


EMPTY = np.zeros((HEIGHT, WIDTH), np.uint8)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"image_size": (HEIGHT, WIDTH + 1)}, "image_size"),
        ({"boxes": np.array([[10, 5, 30, 20], [0, 0, WIDTH + 1, 10]], np.float32)}, "does not lie inside"),
        ({"boxes": np.array([[10, 5, 30, 20], [-1, 0, 10, 10]], np.float32)}, "does not lie inside"),
        ({"boxes": np.array([[10, 5, 30, 20], [9, 0, 3, 10]], np.float32)}, "does not lie inside"),
        ({"boxes": np.array([[10, 5, 30, 20], [0, 0, np.nan, 10]], np.float32)}, "does not lie inside"),
        ({"scores": np.array([0.4, 0.9], np.float32)}, "do not fall"),
        ({"scores": np.array([1.4, 0.9], np.float32)}, "not in [0, 1]"),
        ({"encoded_masks": (b"\xff\xff", b"")}, "does not decode"),
        ({"encoded_masks": (b"11", b"11")}, "mask 0 is not one of"),
        ({"encoded_masks": tuple(encode_masks([MaskRuns.from_image(EMPTY)] * 2, "rle"))}, "mask 0 is empty"),
        ({"encoded_masks": (b"no", b"json"), "mask_format": "polygon"}, "does not decode"),
        ({"encoded_masks": (b"no", b"png"), "mask_format": "png"}, "does not decode"),
    ],
)
def test_a_wrong_answer_is_reported(changes, fault):
    found = fault_of(segmentation(**changes), PAYLOAD, 0.0)
    assert found is not None
    assert found.startswith("card: ")
    assert fault in found


@pytest.mark.parametrize(
    ("expected", "tolerance", "right"),
    [(2, 0.0, True), (1, 0.25, False), (3, 0.25, False), (3, 0.4, True), (1, 1.0, True), (0, 9.0, False), (None, 0, 1)],
)
def test_the_number_of_detections(expected, tolerance, right):
    fault = fault_of(segmentation(), Payload("card", b"", (HEIGHT, WIDTH), expected), tolerance)
    assert (fault is None) == right


def test_nothing_where_something_is_expected_is_wrong():
    nothing = segmentation(
        boxes=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        class_ids=np.zeros(0, np.int32),
        encoded_masks=(),
    )
    assert fault_of(nothing, PAYLOAD, 0.25) == "card: 0 detections; expected 2"
    assert fault_of(nothing, Payload("wall", b"", (HEIGHT, WIDTH), 0), 0.25) is None
