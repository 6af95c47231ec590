"""The result for one image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.class_names import name_of
from pipeline.mask_formats import decode_mask, encode_masks
from pipeline.masks import MaskRuns
from pipeline.optional import optional


@dataclass(frozen=True, eq=False)
class Detection:
    """One instance.

    Attributes:
        box: float32 [4] of x1, y1, x2, y2 in pixels of the original image.
        score: in [0, 1].
        class_id: index into the model's class names.
        encoded_mask: the mask as it came.
        mask_format: one of :data:`pipeline.contract.MASK_FORMATS`.
        image_size: height and width of the original image, in pixels.
        class_name: the model's name of the class; its number as text where the model has none.
        track_id: stays with an object from frame to frame; None without a tracker, or before it is sure.
    """

    box: NDArray[np.float32]
    score: float
    class_id: int
    encoded_mask: bytes = field(repr=False)
    mask_format: str
    image_size: tuple[int, int]
    class_name: str = ""
    track_id: int | None = None

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
        track_ids: of each detection, from a tracker (:mod:`client.tracking`); None without one.

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
    track_ids: tuple[int | None, ...] | None = None

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
            self.track_ids[index] if self.track_ids is not None else None,
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

    def to_polygons(self) -> list[list[NDArray[np.int32]]]:
        """Per detection its polygons, int32 [points, 2] of x, y along the sides of pixels; see ``docs/contract.md``.

        Raises:
            ValueError: ``mask_format`` is ``none``, or the bytes are not such masks.

        Example:
            >>> box = np.array([[0, 0, 1, 2]], np.float32)
            >>> result = Segmentation(box, np.array([0.9]), np.array([0]), (b"024",), "rle", (2, 3))
            >>> result.to_polygons()[0][0].tolist()
            [[1, 0], [1, 2], [0, 2], [0, 0]]
        """
        found = []
        for one in self:
            encoded = one.encoded_mask
            if self.mask_format != "polygon":
                (encoded,) = encode_masks([MaskRuns.from_image(one.mask())], "polygon")
            found.append([np.array(polygon, np.int32).reshape(-1, 2) for polygon in json.loads(encoded)])
        return found

    def to_supervision(self) -> Any:
        """The same as ``supervision.Detections``, with ``class_name`` in its ``data``.

        Masks become a ``CompactMask`` where supervision has it and ``mask_format`` is ``rle``, so that many detections
        in a large picture take little memory; else a bool array [n, height, width]; none with ``none``.

        Raises:
            ImportError: supervision is missing; says what to install.
            ValueError: the bytes are not such masks.
        """
        supervision = optional("supervision", "supervision")
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=self._supervision_masks(supervision) if len(self) else None,
            confidence=self.scores.astype(np.float32),
            class_id=self.class_ids.astype(int),
            data={"class_name": np.array([found.class_name for found in self], dtype=str)},
        )

    def _supervision_masks(self, supervision: Any) -> Any:
        if self.mask_format == "none":
            return None
        compact: Any = getattr(supervision, "CompactMask", None)
        if self.mask_format != "rle" or not hasattr(compact, "from_coco_rle"):
            return self.masks
        height, width = self.image_size
        whole = np.hstack([np.floor(self.boxes[:, :2]) - 1, np.ceil(self.boxes[:, 2:])])  # its boxes hold their ends
        crops = np.clip(whole, 0, np.array([width, height, width, height]) - 1)
        rles = [{"size": list(self.image_size), "counts": mask} for mask in self.encoded_masks]
        return compact.from_coco_rle(rles, crops, self.image_size)
