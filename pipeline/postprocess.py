"""From the network's outputs to boxes, scores and encoded masks of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import contract
from pipeline.decode import Detections, decode_candidates
from pipeline.letterbox import Geometry
from pipeline.mask_formats import encode_masks
from pipeline.masks import mask_runs
from pipeline.parameters import RequestParameters


@dataclass(frozen=True)
class ImageSegmentation:
    """The instances found in one image, best first; n may be 0.

    Attributes:
        boxes: float32 [n, 4] of x1, y1, x2, y2 in pixels of the original image.
        scores: float32 [n] in [0, 1], falling.
        class_ids: int32 [n].
        masks: n encoded masks.
        height: of the original image, in pixels.
        width: of the original image, in pixels.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    masks: list[bytes]
    height: int
    width: int


def postprocess(
    candidates: NDArray[np.float32],
    prototypes: NDArray[np.float16] | NDArray[np.float32],
    geometry: Geometry,
    parameters: RequestParameters,
) -> ImageSegmentation:
    """Find the instances of one image.

    Args:
        candidates: float32 [K, 6 + C] (see :func:`pipeline.decode.decode_candidates`).
        prototypes: float16 or float32 [C, proto_height, proto_width].
        geometry: where the image lies in the network's input.
        parameters: what the caller asked for.

    Example:
        >>> candidates = np.array([[0.9, 320, 320, 100, 50, 0, 1]], np.float32)  # one coefficient
        >>> prototypes = np.ones((1, 160, 160), np.float32)
        >>> found = postprocess(candidates, prototypes, Geometry.fit(640, 640, 640, 640), RequestParameters())
        >>> found.boxes.tolist(), len(found.masks)
        ([[270.0, 295.0, 370.0, 345.0]], 1)
    """
    return segmentation_of(decode_candidates(candidates, geometry, parameters), prototypes, geometry, parameters)


def segmentation_of(
    found: Detections,
    prototypes: NDArray[np.float16] | NDArray[np.float32],
    geometry: Geometry,
    parameters: RequestParameters,
) -> ImageSegmentation:
    """Add the masks to the detections of one image; arguments as in :func:`postprocess`."""
    masks = [b""] * len(found.scores)
    if parameters.mask_format != "none":
        runs = mask_runs(prototypes, found.coefficients, found.boxes, geometry)
        masks = encode_masks(runs, parameters.mask_format)
    return ImageSegmentation(found.boxes, found.scores, found.class_ids, masks, geometry.height, geometry.width)


def pack_response(images: Sequence[ImageSegmentation]) -> dict[str, NDArray[np.generic]]:
    """Pack the answers of one request into its response tensors.

    Args:
        images: one entry per image of the request, at least one.

    Returns:
        Tensor name to array, batch axis first. The detection axis is as long as the fullest image needs, at least 1;
        the padding after an image's detections is 0, and empty in ``masks``.

    Example:
        >>> nothing = ImageSegmentation(np.zeros((0, 4)), np.zeros(0), np.zeros(0), [], height=480, width=640)
        >>> tensors = pack_response([nothing])
        >>> tensors["num_detections"].tolist(), tensors["image_size"].tolist(), tensors["boxes"].shape
        ([[0]], [[480, 640]], (1, 1, 4))
    """
    batch = len(images)
    depth = max(1, *(len(image.scores) for image in images))
    boxes = np.zeros((batch, depth, 4), np.float32)
    scores = np.zeros((batch, depth), np.float32)
    class_ids = np.zeros((batch, depth), np.int32)
    masks = np.full((batch, depth), b"", dtype=object)
    for index, image in enumerate(images):
        n = len(image.scores)
        boxes[index, :n] = image.boxes
        scores[index, :n] = image.scores
        class_ids[index, :n] = image.class_ids
        masks[index, :n] = image.masks
    return {
        contract.NUM_DETECTIONS.name: np.array([[len(image.scores)] for image in images], np.int32),
        contract.BOXES.name: boxes,
        contract.SCORES.name: scores,
        contract.CLASS_IDS.name: class_ids,
        contract.MASKS.name: masks,
        contract.IMAGE_SIZE.name: np.array([[image.height, image.width] for image in images], np.int32),
    }
