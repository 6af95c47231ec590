"""The result for one image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.class_names import name_of
from pipeline.mask_formats import decode_mask


@dataclass(frozen=True, eq=False)
class Detection:
    """One instance.

    Attributes:
        box: float32 [4] of x1, y1, x2, y2 in pixels of the original image.
        score: in [0, 1].
        class_id: index into the model's class names.
        encoded_mask: the mask as it came.
        mask_format: ``rle``, ``polygon``, ``png``, ``png_base64`` or ``none``.
        image_size: height and width of the original image, in pixels.
        class_name: the model's name of the class; its number as text where the model has none.
    """

    box: NDArray[np.float32]
    score: float
    class_id: int
    encoded_mask: bytes = field(repr=False)
    mask_format: str
    image_size: tuple[int, int]
    class_name: str = ""

    def mask(self) -> NDArray[np.bool_]:
        """Decode the mask: bool [height, width] of the original image.

        Raises:
            ValueError: ``mask_format`` is ``none``, or the bytes are not such a mask.
        """
        return decode_mask(self.encoded_mask, self.mask_format, *self.image_size)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The instances found in one image, best first; there may be none.

    Attributes:
        boxes: float32 [n, 4] of x1, y1, x2, y2 in pixels of the original image.
        scores: float32 [n] in [0, 1], falling.
        class_ids: int32 [n], indices into the model's class names.
        encoded_masks: n masks as they came: COCO compressed ``counts`` (``rle``), JSON lists of x, y (``polygon``),
            PNG files (``png``), the same as base64 text (``png_base64``), or empty (``none``).
        mask_format: of ``encoded_masks``.
        image_size: height and width of the original image, in pixels, upright (EXIF orientation applied).
        class_names: of the model's classes 0, 1, and so on; empty where the server does not say them.

    Example:
        >>> result = Segmentation(
        ...     np.array([[0, 0, 1, 2]], np.float32), np.array([0.9]), np.array([0]), (b"024",), "rle", (2, 3)
        ... )
        >>> [(detection.class_id, int(detection.mask().sum())) for detection in result]
        [(0, 2)]
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    encoded_masks: tuple[bytes, ...] = field(repr=False)
    mask_format: str
    image_size: tuple[int, int]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int) -> Detection:
        return Detection(
            self.boxes[index],
            float(self.scores[index]),
            int(self.class_ids[index]),
            self.encoded_masks[index],
            self.mask_format,
            self.image_size,
            name_of(int(self.class_ids[index]), self.class_names),
        )

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Decode one mask: bool [height, width] of the original image.

        Raises:
            ValueError: ``mask_format`` is ``none``, or the bytes are not such a mask.
            IndexError: there is no detection of this index.
        """
        return decode_mask(self.encoded_masks[index], self.mask_format, *self.image_size)

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """All masks, bool [n, height, width], decoded on first use and kept.

        That takes a byte per pixel and detection: for many detections in a large image, use :meth:`mask`.

        Raises:
            ValueError: ``mask_format`` is ``none``, or the bytes are not such masks.
        """
        masks = np.zeros((len(self), *self.image_size), np.bool_)
        for index in range(len(self)):
            masks[index] = self.mask(index)
        return masks
