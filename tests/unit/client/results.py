"""Results made of drawn shapes, for the tests of this folder."""

import numpy as np

from pipeline import rle
from pipeline.result import Segmentation


def disc(height, width, center_x, center_y, radius):
    """Bool [height, width], set inside a circle."""
    y, x = np.mgrid[:height, :width]
    return (x - center_x) ** 2 + (y - center_y) ** 2 <= radius**2


def bounding_box(mask):
    """x1, y1, x2, y2 of the pixels set."""
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def segmentation_of(masks, class_ids=None, scores=None):
    """The result for an image with these masks, as run lengths."""
    height, width = masks[0].shape
    n = len(masks)
    return Segmentation(
        boxes=np.array([bounding_box(mask) for mask in masks], np.float32).reshape(n, 4),
        scores=np.array(scores if scores is not None else np.linspace(0.9, 0.5, n), np.float32),
        class_ids=np.array(class_ids if class_ids is not None else [0] * n, np.int32),
        encoded_masks=tuple(rle.encode(mask) for mask in masks),
        mask_format="rle",
        image_size=(height, width),
    )


def empty_segmentation(height, width):
    """The result for an image without instances."""
    return Segmentation(
        boxes=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        class_ids=np.zeros(0, np.int32),
        encoded_masks=(),
        mask_format="rle",
        image_size=(height, width),
    )
